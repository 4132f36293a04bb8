"""Privacy accounting: the epsilon of private training, and the noise required by a budget. No data is read.

A private step sums the clipped gradients of the units (images or patients) in a batch and adds Gaussian noise. Its
noise multiplier is the standard deviation of that noise over the clip norm. A batch contains each unit with the same
probability, independently of the others (Poisson sampling); with probability 1 it is a full batch.

Two data sets are adjacent if the contribution of one unit is zeroed out (Kairouz et al. 2021, arXiv:2103.00039,
definition 1.1). The number of units is then public, and therefore the sampling rate and the number of steps. Adding or
removing a unit gives the same values; replacing one unit by another would be a stronger guarantee, not given here.

Libraries are imported where they are used: every program imports the types of this module, and they take seconds.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import numpy as np

from elk_jax.errors import UserError
from elk_jax.fields import ABOVE_ZERO, NOT_EMPTY, AtLeast, Checked, Range

Unit = Literal["image", "patient"]
"""The unit that is clipped, sampled and protected as a whole: one image, or all images of a patient."""

Accountant = Literal["pld", "rdp"]
"""pld: privacy loss distributions, tight; exact if all batches are full. rdp: Renyi divergences, a looser bound."""

ACCOUNTANTS: tuple[Accountant, ...] = get_args(Accountant)
DELTA = Range(0, 1, above=True, below=True)
RATE = Range(0, 1, above=True)
NOISE = AtLeast(0.01)
"""Range of a noise multiplier; a step with less noise has an epsilon of thousands."""
LOWEST = math.log(NOISE.low)
LEAST_DELTA = 1e-12
"""Smallest delta for privacy loss distributions: below it, rounding errors outweigh the tails."""
TOLERANCE = 5e-4
"""Relative tolerance of a noise multiplier: the smallest sufficient one is at most this much smaller."""
PRECISION = 2e-4
"""Relative precision of epsilon by privacy loss distributions. The error makes epsilon larger, never smaller."""
MOST_POINTS = 1 << 18
"""Most points of the grid of one step's privacy losses; more take many seconds. On a coarser grid epsilon is larger."""
ROUNDING = 1e-14
"""Rounding error of the logarithm of a mean in double precision. It is added, so a divergence is never too small."""


@dataclass(frozen=True)
class Phase(Checked):
    """Steps with the same sampling rate and the same noise."""

    sampling_rate: Annotated[float, RATE]
    """Probability that a unit is in a batch; 1 for full batches."""
    noise_multiplier: Annotated[float, NOISE]
    steps: Annotated[int, AtLeast(1)]


@dataclass(frozen=True)
class Ledger(Checked):
    """Everything released about the private data, in one or several runs, and the unit that the guarantee protects."""

    phases: Annotated[tuple[Phase, ...], NOT_EMPTY]
    unit: Unit
    adjacency: Literal["zero-out"] = "zero-out"


def epsilon_of(phases: Sequence[Phase], delta: float, accountant: Accountant = "pld") -> float:
    """Epsilon at `delta` for all phases together, in any order. An upper bound; see `Accountant` for its tightness.

    UserError for an impossible delta, and without phases.
    """
    _check(delta=(delta, DELTA))
    if not phases:
        raise UserError("nothing was released", where="phases", todo="give at least one phase")
    return _epsilon(_merged(phases), float(delta), accountant)


def noise_for(
    epsilon: float, delta: float, sampling_rate: float, steps: int, accountant: Accountant = "pld", runs: int = 1
) -> float:
    """The noise multiplier for which `runs` runs of `steps` steps together spend at most `epsilon`.

    It is at most `TOLERANCE` above the smallest sufficient one. UserError for impossible values, and if almost no noise
    is needed.
    """
    _check(epsilon=(epsilon, ABOVE_ZERO), delta=(delta, DELTA), sampling_rate=(sampling_rate, RATE))
    _check(steps=(steps, AtLeast(1)), runs=(runs, AtLeast(1)))
    return _noise(float(epsilon), float(delta), float(sampling_rate), steps * runs, accountant)


def gaussian_epsilon(noise_multiplier: float, delta: float, steps: int = 1) -> float:
    """Epsilon of `steps` full batches: exact, not a bound. UserError for impossible values.

    Balle and Wang 2018 (arXiv:1805.06530), theorem 8: delta = Phi(m/2 - e/m) - exp(e) Phi(-m/2 - e/m) with
    m = sqrt(steps) / noise_multiplier, since steps of the same noise compose to one of less noise.
    """
    import dp_accounting

    _check(noise_multiplier=(noise_multiplier, ABOVE_ZERO), delta=(delta, DELTA), steps=(steps, AtLeast(1)))
    with np.errstate(divide="ignore"):  # log(0) where delta underflows
        return float(dp_accounting.get_epsilon_gaussian(noise_multiplier / math.sqrt(steps), delta))


def gaussian_noise_multiplier(epsilon: float, delta: float, steps: int = 1) -> float:
    """The smallest noise for which `steps` full batches spend `epsilon`: the exact inverse of `gaussian_epsilon`."""
    import dp_accounting

    _check(epsilon=(epsilon, ABOVE_ZERO), delta=(delta, DELTA), steps=(steps, AtLeast(1)))
    with np.errstate(divide="ignore"):
        return float(dp_accounting.get_sigma_gaussian(epsilon, delta)) * math.sqrt(steps)


def renyi_divergence(phase: Phase, order: float) -> float:
    """Renyi divergence, of an order above 1, of all steps of a phase, in nats.

    Mironov, Talwar and Zhang 2019 (arXiv:1908.10530), equation 3: the mean over z ~ N(0, s^2) of
    (1 - q + q exp((2z - 1) / (2 s^2)))^order, by the trapezoidal rule, which converges exponentially for integrands
    that are analytic about the real line. Their series of section 3.3 converges like a power of its length, so that
    libraries leave out the orders that serve small noise best.
    """
    rate, noise = phase.sampling_rate, phase.noise_multiplier
    if rate == 1:
        return phase.steps * order / (2 * noise**2)
    spacing = min(noise / 8, noise**2 / 2)  # singularities are noise^2 pi away, the Gaussian factor is noise wide
    z = np.arange(-10 * noise, order + 10 * noise, spacing)
    ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * z - 1) / (2 * noise**2))
    logs = order * ratio - (z / noise) ** 2 / 2
    most = logs.max()
    mean = most + math.log(np.exp(logs - most).sum() * spacing / (noise * math.sqrt(2 * math.pi)))
    return phase.steps * (max(mean, 0.0) + ROUNDING) / (order - 1)


@functools.lru_cache(1024)
def _epsilon(phases: tuple[Phase, ...], delta: float, accountant: Accountant) -> float:
    if accountant == "rdp":
        return _renyi_epsilon(phases, delta)
    if all(phase.sampling_rate == 1 for phase in phases):
        together = sum(phase.steps / phase.noise_multiplier**2 for phase in phases)
        return gaussian_epsilon(1 / math.sqrt(together), delta)
    return _loss_epsilon(phases, delta, _interval(phases, delta))


@functools.lru_cache(1024)
def _noise(epsilon: float, delta: float, sampling_rate: float, steps: int, accountant: Accountant) -> float:
    def phases(noise: float) -> tuple[Phase, ...]:
        return (Phase(sampling_rate, noise, steps),)

    if accountant == "pld" and sampling_rate == 1:
        exact = gaussian_noise_multiplier(epsilon, delta, steps)
        if exact < NOISE.low:
            raise _needs_no_noise(epsilon)
        return exact
    if accountant == "pld" and steps * math.log1p(-sampling_rate) >= math.log1p(-delta):
        what = f"delta {delta:g} exceeds the probability that a unit is used at all, so no noise is needed"
        raise UserError(what, where="delta", todo="give a smaller delta")
    noise = _root(lambda noise: _renyi_epsilon(phases(noise), delta), epsilon, guess=1.0)
    if accountant == "pld":
        interval = _interval(phases(noise), delta)
        noise = _root(lambda noise: _loss_epsilon(phases(noise), delta, interval), epsilon, guess=noise)
    while _epsilon(phases(noise), delta, accountant) > epsilon:
        noise *= 1 + TOLERANCE / 5
    return noise


def _root(epsilon_of_noise: Callable[[float], float], epsilon: float, guess: float) -> float:
    """Nearly the smallest noise with at most `epsilon`, which decreases with the noise."""
    from scipy import optimize

    def excess(log_noise: float) -> float:
        return epsilon_of_noise(math.exp(log_noise)) - epsilon

    low = high = math.log(guess)
    width = 0.05
    if excess(high) > 0:
        while excess(high := high + width) > 0:
            low, width = high, 2 * width
    else:
        while excess(low := max(low - width, LOWEST)) <= 0:
            if low == LOWEST:
                raise _needs_no_noise(epsilon)
            high, width = low, 2 * width
    return math.exp(optimize.brentq(excess, low, high, xtol=TOLERANCE / 5) + TOLERANCE / 5)


def _needs_no_noise(epsilon: float) -> UserError:
    what = f"epsilon {epsilon:g} needs a noise multiplier below {NOISE.low:g}"
    return UserError(what, where="epsilon", todo="give a smaller epsilon, or a smaller delta")


def _renyi_epsilon(phases: Sequence[Phase], delta: float) -> float:
    """The smallest bound over all orders, by Canonne, Kamath and Steinke 2020 (arXiv:2004.00010), proposition 12.

    The bound is a convex function of the order over order - 1, so it has one minimum. Adding a phase never moves it to
    a larger order.
    """
    import dp_accounting
    from scipy import optimize

    def epsilon(log_order: float) -> float:
        order = 1 + math.exp(log_order)
        return dp_accounting.rdp.compute_epsilon([order], [sum(renyi_divergence(p, order) for p in phases)], delta)[0]

    least = math.log(0.0101)  # orders below 1.01 are left to the bound by the Kullback-Leibler divergence
    most = math.log(min(64 * max(1.0, min(phase.noise_multiplier for phase in phases) ** 2), 1e5))
    found = optimize.minimize_scalar(epsilon, bounds=(least, most), method="bounded", options={"xatol": 1e-4})
    return float(min(found.fun, epsilon(least)))


def _loss_epsilon(phases: Sequence[Phase], delta: float, interval: float) -> float:
    """An upper bound by privacy loss distributions on a grid of `interval`; its excess falls as interval squared.

    A grid with more than `MOST_POINTS` is made coarser.

    Doroshenko et al. 2022 (arXiv:2207.04380).
    """
    import dp_accounting

    relation = dp_accounting.NeighboringRelation.REPLACE_SPECIAL  # zero-out
    accountant = dp_accounting.pld.PLDAccountant(relation, max(interval, _finest(phases)))
    for phase in phases:
        noise = dp_accounting.GaussianDpEvent(phase.noise_multiplier)
        step = noise if phase.sampling_rate == 1 else dp_accounting.PoissonSampledDpEvent(phase.sampling_rate, noise)
        accountant.compose(dp_accounting.SelfComposedDpEvent(step, phase.steps))
    return float(accountant.get_epsilon(delta))


def _interval(phases: Sequence[Phase], delta: float) -> float:
    """The interval of a grid of privacy losses that is fine enough for `PRECISION`, or has `MOST_POINTS`.

    The search starts from a coarse grid, on which many steps are nearly Gaussian: the grid adds interval^2 / 6 per step
    to the variance of the loss.
    """
    from scipy import stats

    if delta < LEAST_DELTA:
        raise UserError(
            f"delta {delta:g} is too small for privacy loss distributions",
            where="delta",
            todo=f"give at least {LEAST_DELTA:g}, or choose the accountant rdp",
        )
    epsilon = max(_renyi_epsilon(phases, delta), 1e-9)
    tail = max(-stats.norm.ppf(delta), 0.1)
    deviation = math.sqrt(tail**2 + 2 * epsilon) - tail  # of a Gaussian loss with this epsilon
    slope = (deviation + tail) / (2 * deviation)
    interval = 16 * math.sqrt(6 * PRECISION * epsilon / (slope * sum(phase.steps for phase in phases)))
    coarse = math.inf
    while interval > _finest(phases):
        fine = _loss_epsilon(phases, delta, interval)
        if coarse - fine <= PRECISION * fine:
            break
        coarse, interval = fine, interval / 2
    return interval


def _finest(phases: Sequence[Phase]) -> float:
    """The interval of a grid of `MOST_POINTS` from no loss to that at ten standard deviations of noise, in one step."""

    def largest_loss(phase: Phase) -> float:
        unsampled = (1 + 20 * phase.noise_multiplier) / (2 * phase.noise_multiplier**2)
        unused = math.log1p(-phase.sampling_rate) if phase.sampling_rate < 1 else -math.inf
        return float(np.logaddexp(unused, math.log(phase.sampling_rate) + unsampled))

    return max(map(largest_loss, phases)) / MOST_POINTS


def _merged(phases: Sequence[Phase]) -> tuple[Phase, ...]:
    """Phases merged and in a fixed order, so that equal ledgers have equal values."""
    steps: Counter[tuple[float, float]] = Counter()
    for phase in phases:
        steps[phase.sampling_rate, phase.noise_multiplier] += phase.steps
    return tuple(Phase(rate, noise, number) for (rate, noise), number in sorted(steps.items()))


def _check(**values: tuple[float, Range]) -> None:
    """UserError for the first of name=(value, range) that is outside its range."""
    for name, (value, wanted) in values.items():
        if not wanted.takes(value):
            raise UserError(f"{name} is {value!r}", where=name, todo=f"give a number {wanted}")
