"""Kernel ridge regression against scikit-learn's, and what a head keeps of its training images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from elk_jax.heads import kernel
from elk_jax.heads.heads import architecture_of
from elk_jax.heads.kernel import Kernel
from elk_jax.weights import model_folder
from tests.refusals import refused

GOLDEN = dict(np.load(Path(__file__).parent.parent / "golden" / "kernel.npz"))
TRUTH = GOLDEN["truth"]
KINDS = {"waves": slice(0, 3), "net": slice(3, 7)}


def of_kinds(features):
    return {name: features[:, part] for name, part in KINDS.items()}


@pytest.fixture(scope="module")
def scaling():
    return {name: kernel.scaling_of(one) for name, one in of_kinds(GOLDEN["features"]).items()}


@pytest.fixture(scope="module")
def inputs(scaling):
    return kernel.scaled(of_kinds(GOLDEN["features"]), scaling)


@pytest.mark.parametrize("width, penalty", [(0.0, 0.1), (0.7, 0.03), (2.0, 3.0)])
def test_scores_are_those_of_scikit_learn(scaling, inputs, width, penalty):
    head = kernel.fit(inputs, scaling, TRUTH, width, penalty)
    np.testing.assert_allclose(head.log_odds(of_kinds(GOLDEN["others"])), GOLDEN[f"{width}_{penalty}"], atol=2e-5)


@pytest.mark.parametrize("width, kept", [(kernel.LINEAR, 1), (1.0, len(TRUTH))])
def test_a_linear_kernel_keeps_no_image(scaling, inputs, width, kept):
    head = kernel.fit(inputs, scaling, TRUTH, width, 1.0)
    assert head.anchors.shape == (kept, 7) and architecture_of(head) == "kernel_head"
    flat = model_folder.flatten(head.params())
    assert Kernel.shapes(flat, KINDS) == {name: np.shape(leaf) for name, leaf in flat.items()}
    again = Kernel.of(head.params(), KINDS)
    others = of_kinds(GOLDEN["others"])
    np.testing.assert_allclose(again.log_odds(others), head.log_odds(others))
    np.testing.assert_allclose(head.scaled(3.0, -1.0).log_odds(others), 3 * head.log_odds(others) - 1)


def test_every_image_is_scored_by_the_fit_without_its_fold(inputs):
    folds, penalties = np.arange(len(TRUTH)) % 3, (0.1, 1.0)
    matrix = kernel.gram(inputs, inputs, 1.0)
    found = kernel.cross_validated(matrix, TRUTH, folds, penalties)
    for row, penalty in zip(found, penalties):
        for fold in range(3):
            head = kernel.fit(inputs[folds != fold], {}, TRUTH[folds != fold], 1.0, penalty)
            expected = kernel.gram(inputs[folds == fold], head.anchors, 1.0) @ head.coefficients + head.bias
            np.testing.assert_allclose(row[folds == fold], expected, atol=1e-8)


def test_a_feature_that_is_the_same_in_all_training_images_counts_nothing():
    features = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    features[:, 1] = 7.0
    by = {"waves": kernel.scaling_of(features)}
    found = kernel.scaled({"waves": features}, by)
    np.testing.assert_allclose(found.std(0), [0.5**0.5, 0, 0.5**0.5], atol=1e-5)
    elsewhere = kernel.scaled({"waves": features + np.float32(5) * np.eye(3, dtype=np.float32)[1]}, by)
    np.testing.assert_array_equal(elsewhere, found)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(odd):
    with refused("NaN", where="stage heads"):
        kernel.scaling_of(np.array([[1.0, odd], [2.0, 3.0]]), "stage heads")
