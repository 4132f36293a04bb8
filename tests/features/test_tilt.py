"""Weights with wanted means: a closed form, the mean that is met, and how even they are."""

from __future__ import annotations

import numpy as np
import pytest

from elk_jax.features import tilt


def test_two_images_have_the_weights_of_a_hand():
    """At -1 and 1 the mean 0.6 needs the shares 0.2 and 0.8: the tilt is artanh(0.6)."""
    found = np.exp(tilt.tilted(np.array([[-1.0], [1.0]]), np.array([0.6]), 1e-9))
    np.testing.assert_allclose(found, [0.2, 0.8], atol=1e-5)
    # with a penalty p the tilt t solves tanh(t) + p t = 0.6: here t = 0.5
    penalty = (0.6 - np.tanh(0.5)) / 0.5
    found = np.exp(tilt.tilted(np.array([[-1.0], [1.0]]), np.array([0.6]), penalty))
    assert 0.5 * np.log(found[1] / found[0]) == pytest.approx(0.5, abs=1e-4)


def test_the_weighted_mean_is_the_wanted_one_and_no_weights_are_more_even():
    rng = np.random.default_rng(0)
    pool, wanted = rng.normal(size=(50, 3)), np.array([0.4, -0.2, 0.1])
    logs = tilt.tilted(pool, wanted, 1e-7)
    weights = np.exp(logs)
    assert weights.sum() == pytest.approx(1) and (weights > 0).all()
    np.testing.assert_allclose(weights @ pool, wanted, atol=1e-4)
    # any change that keeps sum and mean lowers the entropy
    kept = np.concatenate([np.ones((50, 1)), pool], axis=1)
    change = rng.normal(size=50)
    change -= kept @ np.linalg.lstsq(kept, change, rcond=None)[0]
    changed = weights + 1e-3 * weights.min() * change / np.abs(change).max()
    entropy = lambda w: -(w * np.log(w)).sum()
    assert entropy(changed) < entropy(weights)


def test_a_mean_that_no_weights_have_is_approached():
    found = np.exp(tilt.tilted(np.array([[-1.0], [1.0]]), np.array([5.0]), 0.1))
    assert found[1] > 0.999 and np.isfinite(found).all()


def test_the_mean_of_the_pool_needs_no_change():
    pool = np.random.default_rng(1).normal(size=(20, 2))
    logs = tilt.tilted(pool, pool.mean(0), 0.1)
    np.testing.assert_allclose(np.exp(logs), 1 / 20, atol=1e-6)
    assert tilt.effective_number(logs) == pytest.approx(20, rel=1e-5)
    with np.errstate(divide="ignore"):
        assert tilt.effective_number(np.log([0.5, 0.5, 0.0])) == pytest.approx(2)
