"""A private head: what one unit can move, what the noise is, and that without noise it is logistic regression."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from elk_jax.privacy import head

N, D, U = 40, 5, 12


@pytest.fixture(scope="module")
def data():
    """Features [N, D], labels [N] and patients [N] of unequal size; patient 11 has no image."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(N, D)).astype(np.float32)
    labels = (features[:, 0] + rng.normal(size=N) > 0).astype(np.float32)
    return features, labels, np.sort(rng.integers(0, U - 1, N))


def clipped(data, weights, clip_norm, num_units=U):
    return np.asarray(jax.jit(head.clipped_sum, static_argnums=5)(weights, *data, clip_norm, num_units))


def by_hand(data, weights, clip_norm):
    """A loop over units."""
    features, labels, units = data
    total = np.zeros(D)
    for unit in np.unique(units[units >= 0]):
        of_unit = units == unit
        gradient = (expit(features[of_unit] @ weights) - labels[of_unit]) @ features[of_unit]
        total += gradient * min(1, clip_norm / np.linalg.norm(gradient))
    return total


@pytest.mark.parametrize("clip_norm", [0.05, 1.0, 100.0])
def test_a_patients_images_are_one_gradient_and_one_clip(data, clip_norm):
    weights = np.linspace(-1, 1, D).astype(np.float32)
    expected = by_hand(data, weights, clip_norm)
    np.testing.assert_allclose(clipped(data, weights, clip_norm), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clip_norm", [0.05, 1.0])
def test_one_unit_moves_the_sum_by_at_most_the_clip_norm(data, clip_norm):
    features, labels, units = data
    features = features * np.geomspace(1e-3, 1e3, N)[:, None].astype(np.float32)
    weights = np.ones(D, np.float32)
    whole = clipped((features, labels, units), weights, clip_norm)
    moves = [
        np.linalg.norm(whole - clipped((features, labels, np.where(units == unit, -1, units)), weights, clip_norm))
        for unit in range(U)
    ]
    assert max(moves) <= clip_norm * (1 + 1e-4)
    assert max(moves) > clip_norm * 0.99  # the bound is reached
    assert moves[U - 1] == 0  # who has no image moves nothing


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_unit_that_is_not_finite_adds_nothing(data, value):
    features, labels, units = data
    broken = features.copy()
    broken[units == 3] = value
    weights = np.ones(D, np.float32)
    without = (features, labels, np.where(units == 3, -1, units))
    np.testing.assert_array_equal(clipped((broken, labels, units), weights, 1.0), clipped(without, weights, 1.0))
    padding = np.where(units == 3, -1, units)
    np.testing.assert_array_equal(clipped((broken, labels, padding), weights, 1.0), clipped(without, weights, 1.0))


def test_no_unit_adds_nothing(data):
    features, labels, _ = data
    assert not clipped((features, labels, np.full(N, -1)), np.ones(D, np.float32), 1.0).any()


def train(data, descent, key=0, most_steps=30):
    return np.asarray(
        head.train(*data, head.Descent(*descent), jax.random.key(key), num_units=U, most_steps=most_steps)
    )


@pytest.mark.parametrize("averaged", [0.0, 0.5, 1.0])
def test_without_noise_it_is_gradient_descent_of_clipped_units(data, averaged):
    weights, iterates = np.zeros(D), []
    for _ in range(7):
        weights = weights - 2.0 * (by_hand(data, weights, 0.5) / U + 0.01 * weights)
        iterates.append(weights)
    expected = np.mean(iterates[min(int(7 * (1 - averaged)), 6) :], axis=0)
    found = train(data, (2.0, 7, 0.5, 0.0, 0.01, averaged))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_without_noise_and_clipping_it_finds_the_optimum(data):
    features, labels, _ = data

    def loss(weights):
        logits = features @ weights
        return (np.logaddexp(0, logits) - labels * logits).sum() / U + 0.05 * weights @ weights

    found = train(data, (0.5, 300, 1e9, 0.0, 0.1), most_steps=300)
    np.testing.assert_allclose(found, minimize(loss, np.zeros(D), tol=1e-10).x, atol=1e-4)


def test_many_trainings_are_the_single_ones(data):
    settings = [(1.0, 3, 0.5, 1.0, 0.0, 0.0), (0.2, 30, 2.0, 0.1, 0.1, 0.5)]
    keys = jax.random.split(jax.random.key(5), 2)
    descents = head.Descent(*(jnp.asarray(column, jnp.float32) for column in zip(*settings)))
    found = head.train_many(*data, descents, keys, num_units=U, most_steps=30)
    for s, setting in enumerate(settings):
        for k in range(2):
            one = head.train(*data, head.Descent(*setting), keys[k], num_units=U, most_steps=30)
            np.testing.assert_allclose(found[s, k], one, rtol=1e-4, atol=1e-5)


def test_the_noise_of_a_step_has_the_deviation_that_is_accounted_for():
    """Without data a step is noise alone: a million draws within 0.3 %, unrelated between steps."""
    size, clip_norm, multiplier, rate = 500_000, 0.5, 3.0, 2.0
    nobody = (jnp.zeros((1, size)), jnp.zeros(1), jnp.full(1, -1))
    one, two = (
        np.asarray(head.train(*nobody, head.Descent(rate, steps, clip_norm, multiplier), jax.random.key(9),
                              num_units=U, most_steps=2)) for steps in (1, 2)
    )  # fmt: skip
    steps = np.stack([one, two - one]) * U / rate
    assert steps.std() == pytest.approx(multiplier * clip_norm, rel=3e-3)
    assert abs(steps.mean()) < 4 * multiplier * clip_norm / np.sqrt(2 * size)
    assert abs(np.corrcoef(steps)[0, 1]) < 4 / np.sqrt(size)


def mean_of(data, clip_norm, multiplier=0.0, key=0):
    features, _, units = data
    return np.asarray(head.private_mean(features, units, clip_norm, multiplier, jax.random.key(key), num_units=U))


def test_a_private_mean_is_that_of_clipped_patients(data):
    features, labels, units = data
    means = [features[units == unit].mean(0) for unit in np.unique(units)]
    for clip_norm in (0.5, 100.0):
        expected = sum(mean * min(1, clip_norm / np.linalg.norm(mean)) for mean in means) / U
        np.testing.assert_allclose(mean_of(data, clip_norm), expected, rtol=1e-4, atol=1e-6)
    broken = features.copy()
    broken[units == 3] = np.nan
    without = mean_of((features, labels, np.where(units == 3, -1, units)), 0.5)
    np.testing.assert_array_equal(mean_of((broken, labels, units), 0.5), without)
    assert np.linalg.norm(without - mean_of(data, 0.5)) * U <= 0.5 * (1 + 1e-4)


def test_the_noise_of_a_private_mean_has_its_deviation():
    nobody = (jnp.zeros((1, 1_000_000)), None, jnp.full(1, -1))
    assert mean_of(nobody, 0.5, 3.0).std() * U == pytest.approx(1.5, rel=3e-3)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.9])
def test_a_mean_and_steps_cost_what_one_batch_costs(share):
    mean, step = head.split_noise(3.0, share, 20)
    assert 1 / mean**2 + 20 / step**2 == pytest.approx(1 / 3.0**2)
    assert (1 / mean**2) / (1 / 3.0**2) == pytest.approx(share)
