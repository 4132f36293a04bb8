"""Whitening by public images."""

from __future__ import annotations

import numpy as np
import pytest

from elk_jax.features import whitening
from tests.refusals import refused

RANDOM = np.random.default_rng(0)
PUBLIC = RANDOM.normal(size=(60, 8)) @ RANDOM.normal(size=(8, 8)) * np.geomspace(0.1, 10, 8) + 5


def test_public_images_get_uncorrelated_components_of_variance_one():
    white = whitening.whiten(PUBLIC, whitening.fit(PUBLIC, 5))
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(white, rowvar=False), np.eye(5), atol=1e-3)


def test_components_are_the_principal_ones_in_order():
    fitted = whitening.fit(PUBLIC, 3)
    variances, directions = np.linalg.eigh(np.cov(PUBLIC, rowvar=False))
    expected = directions[:, ::-1][:, :3] / np.sqrt(variances[::-1][:3])
    np.testing.assert_allclose(np.abs(fitted.components), np.abs(expected), rtol=1e-3, atol=1e-6)


def test_fewer_components_are_the_first_of_more():
    """So that a search over their number fits them once."""
    some, all_of_them = whitening.fit(PUBLIC, 3), whitening.fit(PUBLIC, 8)
    np.testing.assert_array_equal(some.components, all_of_them.components[:, :3])
    np.testing.assert_array_equal(some.mean, all_of_them.mean)


def test_more_features_than_images_give_the_components_of_a_singular_value_decomposition():
    wide = RANDOM.normal(size=(20, 6)) @ (RANDOM.normal(size=(6, 90)) * np.geomspace(1e-3, 10, 90)) + 3
    _, deviations, directions = np.linalg.svd((wide - wide.mean(0)) / np.sqrt(19), full_matrices=False)
    fitted = whitening.fit(wide, 6)
    expected = directions[:6].T / deviations[:6]
    signs = np.sign((fitted.components * expected).sum(0))
    np.testing.assert_allclose(fitted.components * signs, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())
    with refused(7, 6):
        whitening.fit(wide, 7)


def test_other_images_change_nothing_of_it():
    fitted = whitening.fit(PUBLIC, 4)
    one = whitening.whiten(PUBLIC[:1] * 3, fitted)
    np.testing.assert_allclose(whitening.whiten(np.concatenate([PUBLIC[:1] * 3, PUBLIC]), fitted)[:1], one, rtol=1e-5)
    assert whitening.whiten(np.zeros((0, 8)), fitted).shape == (0, 4)


@pytest.mark.parametrize(
    ("public", "components", "words"),
    [
        (PUBLIC, 9, (9, 8)),
        (PUBLIC[:4], 4, (4, 3)),
        (PUBLIC[:1], 1, (1, 0)),
        (np.repeat(PUBLIC[:, :2], 4, axis=1), 3, (3, 2)),
        (PUBLIC, 0, (0,)),
        (np.where(np.arange(8) == 2, np.nan, PUBLIC), 2, ("NaN",)),
    ],
    ids=["more than features", "than images", "one image", "than there is content", "none", "NaN"],
)
def test_too_little_to_fit_is_refused(public, components, words):
    with refused(*words, where="here"):
        whitening.fit(public, components, where="here")


def test_unit_norm_leaves_zero_alone():
    np.testing.assert_allclose(whitening.unit_norm(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0.0, 0.0]])
