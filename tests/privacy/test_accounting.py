"""Epsilon and noise of private training: by hand, by a library, by published values and by properties."""

from __future__ import annotations

import math

import dp_accounting
import pytest
from scipy.stats import norm

from elk_jax.privacy.accounting import (
    ACCOUNTANTS,
    TOLERANCE,
    Ledger,
    Phase,
    epsilon_of,
    gaussian_epsilon,
    gaussian_noise_multiplier,
    noise_for,
    renyi_divergence,
)
from tests.refusals import refused

PUBLISHED = {  # sampling rate, steps: noise multipliers at epsilon 1, 6, 12, 20, 60 and delta 1e-4 (arXiv:2407.12669)
    (1 / 9, 2700): (20.31, 4.34, 2.54, 1.78, 0.96),
    (1 / 33, 9900): (10.63, 2.34, 1.45, 1.08, 0.68),
    (1 / 24, 7200): (12.50, 2.72, 1.65, 1.21, 0.73),
}


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
    assert noise_for(epsilon, delta, 1, steps) == noise
    assert epsilon_of([Phase(1, noise, steps)], delta) == pytest.approx(epsilon, rel=1e-6)


def test_full_batches_of_different_noise_compose_exactly():
    phases = [Phase(1.0, 10.0, 30), Phase(1.0, 20.0, 80)]  # 30 / 100 + 80 / 400 = 50 / 100
    assert epsilon_of(phases, 1e-5) == pytest.approx(gaussian_epsilon(10, 1e-5, 50), rel=1e-9)


@pytest.mark.parametrize("run", PUBLISHED)
def test_published_noise_is_reproduced_by_renyi_divergences(run):
    for epsilon, published in zip((1, 6, 12, 20, 60), PUBLISHED[run]):
        noise = noise_for(epsilon, 1e-4, *run, "rdp")
        assert noise == pytest.approx(published, rel=0.005 if epsilon < 60 else 0.01)
        assert (1 - 4 * TOLERANCE) * epsilon < epsilon_of([Phase(run[0], noise, run[1])], 1e-4, "rdp") <= epsilon


@pytest.mark.parametrize(("noise", "epsilon"), [(18.45, 1), (4.04, 6), (0.932, 60)])
def test_loss_distributions_need_the_known_noise(noise, epsilon):
    assert epsilon_of([Phase(1 / 9, noise, 2700)], 1e-4) == pytest.approx(epsilon, rel=0.003)


def test_the_noise_of_the_published_private_generator():
    """As docs/generation.md has it: batches of 8 of 1,104 patches, 414,000 updates, epsilon 100 at delta 1e-4."""
    rate, steps = 8 / 1104, 414_000
    assert noise_for(100, 1e-4, rate, steps, "rdp") == pytest.approx(0.732, abs=5e-4)
    assert epsilon_of([Phase(rate, 0.7204, steps)], 1e-4, "pld") == pytest.approx(100, rel=1e-3)


def test_an_epsilon_by_both_accountants():
    phases = [Phase(0.064, 1.1, 1000)]
    assert epsilon_of(phases, 1e-5) == pytest.approx(12.288, abs=0.003)
    assert 13.399 * 0.99 < epsilon_of(phases, 1e-5, "rdp") <= 13.399, "the library's orders are a subset of ours"


def test_noise_is_the_least_that_suffices():
    rate, steps, delta = 0.2, 100, 1e-5
    for accountant in ACCOUNTANTS:
        noise = noise_for(2, delta, rate, steps, accountant)
        assert epsilon_of([Phase(rate, noise, steps)], delta, accountant) <= 2
        less = noise * (1 - 2 * TOLERANCE)
        assert epsilon_of([Phase(rate, less, steps)], delta, accountant) > 2


@pytest.mark.parametrize("phase", [Phase(1 / 9, 0.96, 1), Phase(0.01, 20, 7), Phase(0.9, 0.2, 3), Phase(1, 3, 2)])
def test_renyi_divergences_of_whole_orders_equal_the_library(phase):
    event = dp_accounting.PoissonSampledDpEvent(
        phase.sampling_rate, dp_accounting.GaussianDpEvent(phase.noise_multiplier)
    )
    for order in (2, 3, 8, 64):
        library = dp_accounting.rdp.RdpAccountant([order]).compose(event, phase.steps).get_epsilon(1e-9)
        ours = dp_accounting.rdp.compute_epsilon([order], [renyi_divergence(phase, order)], 1e-9)[0]
        assert ours == pytest.approx(library, rel=1e-9)


def test_renyi_divergences_rise_with_the_order():
    found = [renyi_divergence(Phase(1 / 9, 0.96, 1), order) for order in (1.01, 1.1, 1.5, 1.9, 2, 2.1)]
    assert found == sorted(found) and found[0] > 0


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_composition_is_a_sum(accountant):
    one, other = Phase(0.1, 2.0, 50), Phase(0.3, 3.0, 20)
    both = epsilon_of([one, other], 1e-5, accountant)
    assert epsilon_of([other, one], 1e-5, accountant) == both, "in any order"
    assert epsilon_of([one, one], 1e-5, accountant) == epsilon_of([Phase(0.1, 2.0, 100)], 1e-5, accountant)
    alone = [epsilon_of([phase], 1e-5, accountant) for phase in (one, other)]
    assert max(alone) < both < sum(alone)
    assert noise_for(3, 1e-5, 0.1, 40, accountant, runs=2) == noise_for(3, 1e-5, 0.1, 80, accountant)


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_epsilon_falls_with_noise_and_delta_and_rises_with_steps_and_sampling(accountant):
    start = epsilon_of([Phase(0.1, 2.0, 50)], 1e-5, accountant)
    assert epsilon_of([Phase(0.1, 2.1, 50)], 1e-5, accountant) < start
    assert epsilon_of([Phase(0.1, 2.0, 50)], 2e-5, accountant) < start
    assert epsilon_of([Phase(0.1, 2.0, 55)], 1e-5, accountant) > start
    assert epsilon_of([Phase(0.11, 2.0, 50)], 1e-5, accountant) > start
    nearly = epsilon_of([Phase(1 - 1e-9, 5.0, 50)], 1e-5, accountant)
    assert nearly == pytest.approx(epsilon_of([Phase(1, 5.0, 50)], 1e-5, accountant), rel=1e-3), "almost full batches"


def test_loss_distributions_are_tighter_than_renyi_divergences():
    for phase in (Phase(0.1, 2.0, 50), Phase(1, 5.0, 50), Phase(0.5, 0.6, 1)):
        assert epsilon_of([phase], 1e-5, "pld") < epsilon_of([phase], 1e-5, "rdp")


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
        (lambda: epsilon_of([Phase(0.5, 1.0, 1)], 0), "delta"),
        (lambda: epsilon_of([Phase(0.5, 1.0, 1)], 1e-13), "delta"),
        (lambda: epsilon_of([], 1e-5), "phases"),
        (lambda: noise_for(-1, 1e-5, 0.1, 10), "epsilon"),
        (lambda: noise_for(1, 1e-5, 1.1, 10), "sampling_rate"),
        (lambda: noise_for(1, 1e-5, 0.1, 10, runs=0), "runs"),
        (lambda: noise_for(1, 1e-3, 1e-5, 10), "delta"),
        (lambda: noise_for(1e5, 1e-5, 0.5, 1, "rdp"), "epsilon"),
        (lambda: noise_for(1e6, 1e-5, 1, 1), "epsilon"),
        (lambda: Phase(0.1, 0.0, 10), "noise_multiplier"),
        (lambda: Phase(0.0, 1.0, 10), "sampling_rate"),
        (lambda: Phase(0.1, 1.0, 0), "steps"),
        (lambda: Ledger((), "patient"), "phases"),
        (lambda: Ledger((Phase(0.1, 1.0, 1),), "breast"), "unit"),
    ],
)
def test_impossible_values_are_refused(call, where):
    with refused(where=where):
        call()
