"""Folds of cross-validation: patients stay together, and every fold has both classes."""

from __future__ import annotations

import numpy as np
import pytest

from elk_jax.heads import folds
from tests.refusals import refused


@pytest.mark.parametrize("seed", range(3))
def test_patients_stay_together_in_folds_of_about_equal_size(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 60, 200)
    truth = rng.random(200) < 0.3
    found = folds.grouped(groups, truth, 5, np.random.default_rng(seed))
    assert set(found) == set(range(5))
    assert all(len(set(found[groups == patient])) == 1 for patient in set(groups))
    patients = [len(set(groups[found == fold])) for fold in range(5)]
    assert max(patients) - min(patients) <= 1
    np.testing.assert_array_equal(found, folds.grouped(groups, truth, 5, np.random.default_rng(seed)))
    assert (found != folds.grouped(groups, truth, 5, np.random.default_rng(seed + 9))).any()


def test_a_fold_without_a_class_is_refused():
    groups, truth = np.arange(6), np.array([True, True, False, False, False, False])
    assert sorted(folds.grouped(groups, truth, 2, np.random.default_rng(0))) == [0, 0, 0, 1, 1, 1]
    with refused("3 folds of 6 patients", where="config.head.search.folds"):
        folds.grouped(groups, truth, 3, np.random.default_rng(0), "config.head.search.folds")
