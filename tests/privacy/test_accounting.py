"""Epsilon and noise of private training: by hand, by published values and by properties."""

from __future__ import annotations

import math

import pytest
from scipy.stats import norm

from elk_jax.privacy.accounting import gaussian_epsilon, gaussian_noise_multiplier
from tests.refusals import refused


def delta_by_hand(noise_multiplier: float, epsilon: float, steps: int) -> float:
    """Theorem 8 of Balle and Wang 2018, as it is printed."""
    mu = math.sqrt(steps) / noise_multiplier
    return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)


@pytest.mark.parametrize("steps", [1, 50, 2700])
@pytest.mark.parametrize(("epsilon", "delta"), [(0.01, 1e-3), (1, 1e-4), (6, 1e-10), (60, 1e-5)])
def test_full_batches_are_accounted_exactly(epsilon, delta, steps):
    noise = gaussian_noise_multiplier(epsilon, delta, steps)
    assert delta_by_hand(noise, epsilon, steps) == pytest.approx(delta, rel=1e-6)
    assert gaussian_epsilon(noise, delta, steps) == pytest.approx(epsilon, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "where"),
    [
        (lambda: gaussian_epsilon(0, 1e-4), "noise_multiplier"),
        (lambda: gaussian_epsilon(math.nan, 1e-4), "noise_multiplier"),
        (lambda: gaussian_epsilon(1, 0), "delta"),
        (lambda: gaussian_epsilon(1, 1), "delta"),
        (lambda: gaussian_epsilon(1, 1e-4, 0), "steps"),
        (lambda: gaussian_noise_multiplier(0, 1e-4), "epsilon"),
        (lambda: gaussian_noise_multiplier(math.inf, 1e-4), "epsilon"),
    ],
)
def test_impossible_values_are_refused(call, where):
    with refused(where=where):
        call()
