"""What private images say of public ones: by hand, how far one patient moves it, and what noise is added."""

from __future__ import annotations

import dp_accounting
import jax
import numpy as np
import pytest

from elk_jax.features.whitening import unit_norm
from elk_jax.privacy import accounting, noise, release, secret

N, D, U, Q, M = 30, 4, 9, 2, 12


@pytest.fixture(scope="module")
def data():
    """Features [N, D] of norm 1, labels [N] and patients [N] of unequal size, with images of both classes each."""
    rng = np.random.default_rng(0)
    units = np.concatenate([np.arange(U), np.sort(rng.integers(0, U, N - U))])
    return unit_norm(rng.normal(size=(N, D))), rng.integers(0, Q, N), units


def contributions(kind, features, labels, units):
    if kind == "means":
        return release.class_features(features, labels, units, classes=Q, num_units=U, count_scale=0.5)
    pool = unit_norm(np.random.default_rng(1).normal(size=(M, D)))
    chosen = release.nearest(features, pool, 3)
    return release.votes(chosen, labels, units, classes=Q, pool=M, num_units=U)


def test_class_features_are_those_of_a_hand():
    """Patient 0 has two images of different classes, patient 1 one; a count of half the scale of the features."""
    features = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    labels, units = np.array([0, 1, 1]), np.array([0, 0, 1])
    found = release.class_features(features, labels, units, classes=2, num_units=2, count_scale=0.5)
    expected = [[[0.5, 0, 0.25], [0, 0.5, 0.25]], [[0, 0, 0], [0.6, 0.8, 0.5]]]
    np.testing.assert_allclose(found, np.array(expected) / np.sqrt(1.25))
    # class 0 has half a patient, at (1, 0); class 1 the other half, at (0, 1), and a whole one: (0.4, 0.8667)
    means = release.class_means(found.sum(0), 0.5)
    np.testing.assert_allclose(means, [[0.5, 0], [0.4, 2.6 / 3]])


def test_a_class_that_noise_has_emptied_counts_as_one_patient():
    total = np.array([[0.3, 0.4, -2.0], [30.0, 40.0, 0.0]])
    means = release.class_means(total, 1.0)
    np.testing.assert_allclose(means[0], np.array([0.3, 0.4]) * np.sqrt(2))
    np.testing.assert_allclose(means[1], [0.6, 0.8])  # a mean of features of norm 1 has no larger one


def test_votes_are_those_of_a_hand():
    """Patient 0 votes with two images, once for the same patch: (2, 1, 1) / sqrt(6); patient 1 with one image."""
    pool = np.array([[0.0], [1.0], [2.0], [10.0]])
    features, labels, units = np.array([[0.4], [1.6], [9.0]]), np.array([0, 0, 1]), np.array([0, 0, 1])
    chosen = release.nearest(features, pool, 2)
    np.testing.assert_array_equal(chosen, [[0, 1], [2, 1], [3, 2]])
    found = release.votes(chosen, labels, units, classes=2, pool=4, num_units=3)
    np.testing.assert_allclose(found[0, 0], np.array([1, 2, 1, 0]) / np.sqrt(6))
    np.testing.assert_allclose(found[1, 1], np.array([0, 0, 1, 1]) / np.sqrt(2))
    assert not found[0, 1].any() and not found[1, 0].any() and not found[2].any()


def test_of_equally_near_patches_the_first_is_chosen():
    assert release.nearest(np.array([[0.0]]), np.array([[1.0], [-1.0], [1.0]]), 2).tolist() == [[0, 1]]


@pytest.mark.parametrize("kind", ["means", "votes"])
def test_one_patient_moves_the_sum_by_at_most_one(data, kind):
    """In the L2 norm, whatever its images are like; the bound is nearly reached by a patient with images that agree."""
    features, labels, units = data
    alike = units == 0
    features = np.where(alike[:, None], features[0], features)
    labels = np.where(alike, labels[0], labels)
    found = contributions(kind, features, labels, units)
    quiet = secret.known(0).noise_key()
    whole = release.released(found, 0.0, quiet)
    moves = []
    for unit in range(U):
        without = found.copy()
        without[unit] = 0
        moves.append(np.linalg.norm(whole - release.released(without, 0.0, quiet)))
    assert max(moves) <= 1 + 1e-12 and moves[0] == pytest.approx(1)


def test_a_patient_that_says_too_much_is_clipped_and_one_of_nans_says_nothing():
    said = np.array([[3.0, 4.0], [0.3, 0.4], [np.nan, 1.0], [np.inf, 0.0]])
    np.testing.assert_allclose(release.released(said, 0.0, secret.known(0).noise_key()), [0.9, 1.2])


def test_the_noise_has_the_deviation_that_epsilon_asks_for():
    """On 40,000 numbers: half or twice the noise would be seen. Its multiplier is dp-accounting's own."""
    epsilon, delta = 1.0, 1e-4
    multiplier = accounting.gaussian_noise_multiplier(epsilon, delta)
    assert multiplier == pytest.approx(dp_accounting.get_sigma_gaussian(epsilon, delta))
    accountant = dp_accounting.pld.PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL, 1e-4)
    accountant.compose(dp_accounting.GaussianDpEvent(multiplier))
    assert accountant.get_epsilon(delta) == pytest.approx(epsilon, rel=2e-3)
    found = release.released(np.zeros((2, 2, 20_000)), multiplier, secret.known(3).noise_key())
    assert found.std() == pytest.approx(multiplier, rel=0.02) and abs(found.mean()) < 0.05 * multiplier
    assert abs(np.corrcoef(found[0], found[1])[0, 1]) < 0.03


def test_the_noise_is_that_of_threefry_whatever_jax_draws_by():
    """From the first two words of the secret, which draw nothing else."""
    one = secret.known(5)
    key = jax.random.wrap_key_data(np.array(one.words[:2], np.uint32), impl="threefry2x32")
    with jax.default_prng_impl("unsafe_rbg"):
        found = release.released(np.ones((1, 2, 3)), 2.0, one.noise_key())
    expected = 1 / np.sqrt(6) + 2.0 * np.asarray(noise.gaussian(key, 6)).reshape(2, 3)
    np.testing.assert_allclose(found, expected, atol=2.0 * noise.GRID / 2 + 1e-6)


def test_fresh_noise_is_never_the_same():
    zero = np.zeros((1, 8))
    drawn = [release.released(zero, 1.0, secret.fresh().noise_key()) for _ in range(2)]
    again = [release.released(zero, 1.0, secret.known(1).noise_key()) for _ in range(2)]
    assert (drawn[0] != drawn[1]).all() and (again[0] == again[1]).all()
