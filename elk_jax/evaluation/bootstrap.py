"""Confidence intervals and comparisons by resampling PATIENTS, since the images of one patient are not independent.

A metric is given as a *statistic*: a function of patient weights [R, P] (how often each of the P patients was drawn in
each of R resamples) that returns [R] values per name. A metric therefore sorts its predictions once, and a resample is
a matrix product; a row of ones is the original sample. NaN means "not defined in this resample".

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993): percentile intervals, chapter 13; optimism of a
choice made on the sample, chapter 17.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
from scipy import stats

from elk_jax.errors import UserError
from elk_jax.fields import Between, described
from elk_jax.randomness import check_seed

Statistic = Callable[[np.ndarray], Mapping[str, np.ndarray]]
Estimate = dict[str, float | None]


class PatientStatistic(Protocol):
    """A `Statistic` with its patients, in the order of their weights."""

    @property
    def patients(self) -> list[str]: ...

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class Prefixed:
    """A statistic whose names get a prefix, for values that form a section of an evaluation."""

    statistic: PatientStatistic
    prefix: str

    @property
    def patients(self) -> list[str]:
        return self.statistic.patients

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        return {f"{self.prefix}{name}": values for name, values in self.statistic(weights).items()}


MOST = 100_000
"""Most resamples; their weights are drawn at once."""
Resamples = Annotated[int, Between(0, MOST)]
"""Setting: number of resamples of patients; 0: no intervals."""

LEAST_PATIENTS = 20
"""With fewer, intervals are reported as doubtful: the spread of so few patients is itself too narrow (measured for
thresholds of detectors, docs/results/thresholds.md)."""
LEVEL = 0.95
LEAST_RESAMPLES = 40
"""With fewer, less than one resample lies beyond either end of an interval: its ends are the extremes."""
CHUNK = 250  # resamples processed at once: limits the memory for large data sets


def draw_weights(patients: int, resamples: int, seed: int) -> np.ndarray:
    """Patient weights [R, P] of `resamples` draws with replacement; rows sum to P. Deterministic for a seed."""
    rng = np.random.default_rng(seed)
    weights = np.empty((resamples, patients), np.float32)
    for start in range(0, resamples, CHUNK):  # NumPy draws whole numbers of 64 bits
        rows = weights[start : start + CHUNK]
        rows[:] = rng.multinomial(patients, np.full(patients, 1.0 / patients), size=len(rows))
    return weights


def weights_of(patients: int, resamples: int, seed: int) -> np.ndarray:
    """Like `draw_weights`; [0, P] with fewer than two patients, whose draws are uninformative."""
    return draw_weights(patients, resamples, seed) if patients > 1 else np.zeros((0, patients), np.float32)


def check(resamples: object, seed: object) -> None:
    """UserError for an impossible number of resamples or seed."""
    check_seed(seed)
    if isinstance(resamples, bool) or not isinstance(resamples, int | np.integer) or not 0 <= resamples <= MOST:
        raise UserError(f"resamples is {resamples!r}", where="resamples", todo=f"give {described(Resamples)}")


def evaluate(statistic: Statistic, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The statistic for all rows of `weights`, in chunks of rows; values [R] or [R, ...] by name."""
    chunks = [statistic(weights[start : start + CHUNK]) for start in range(0, len(weights), CHUNK)]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def doubts(resamples: int, patients: int, main: Estimate) -> list[str]:
    """A note where intervals cannot be given, have too few resamples for their ends, or, for the estimate `main`, no
    width; for none asked for, no note."""
    if resamples and patients < 2:
        return ["fewer than two patients: no intervals"]
    if 0 < resamples < LEAST_RESAMPLES:
        return [f"{resamples} resamples: the ends of a 95 % interval take at least {LEAST_RESAMPLES}, and better 2000"]
    if main["low"] is not None and main["low"] == main["high"]:
        what = f"at least {LEVEL:.0%} of the resamples give {main['low']:.3f}, so the interval has no width"
        return [f"{what}; other patients may give other values"]
    return []


def estimate(statistic: Statistic, patients: int, *, resamples: int = 2000, seed: int = 0) -> dict[str, Estimate]:
    """Value and 95 % percentile interval of every metric: {"value", "low", "high"} by name.

    Low and high are None with fewer than two patients or without resamples; value is None if the metric is not
    defined. Resamples in which a metric is not defined (no lesion drawn) are omitted from its interval.
    """
    values = statistic(np.ones((1, patients), np.float32))
    draws = _draw(statistic, patients, resamples, seed)
    return {
        name: {"value": _number(value[0]), **interval(draws.get(name), _number(value[0]))}
        for name, value in values.items()
    }


def bands(statistic: Statistic, patients: int, *, resamples: int = 2000, seed: int = 0) -> dict[str, list[Estimate]]:
    """95 % percentile intervals [{"low", "high"}, ...] of a statistic with values [R, G]: one for each of G places.

    {} with fewer than two patients or without resamples; None for a place that is not defined in any of them.
    """
    draws = _draw(statistic, patients, resamples, seed)
    return {name: [interval(column, 0.0) for column in values.T] for name, values in draws.items()}


def compare(
    first: Statistic, second: Statistic, patients: int, *, resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, float | None]]:
    """Paired bootstrap of two runs over the same patients in the same order: second minus first.

    Returns by name {"first", "second", "difference", "low", "high", "p_value"}. The p-value is two-sided for
    "no difference": twice the smaller share of resampled differences on either side of 0 (ties count on both),
    including the sample itself, so that it is never 0.
    """
    ones = np.ones((1, patients), np.float32)
    a, b = first(ones), second(ones)
    draws_a, draws_b = _draw(first, patients, resamples, seed), _draw(second, patients, resamples, seed)
    compared = {}
    for name in [name for name in a if name in b]:
        difference = _number(b[name][0] - a[name][0])
        draws = draws_b[name] - draws_a[name] if name in draws_a and name in draws_b else None
        bounds = interval(draws, difference)
        compared[name] = {
            "first": _number(a[name][0]),
            "second": _number(b[name][0]),
            "difference": difference,
            **bounds,
            "p_value": None if bounds["low"] is None or draws is None else two_sided(draws),
        }
    return compared


def interval(draws: np.ndarray | None, value: float | None) -> Estimate:
    """95 % percentile interval {"low", "high"} of resampled values; None without any."""
    defined = np.zeros(0) if draws is None or value is None else draws[np.isfinite(draws)]
    if len(defined) == 0:
        return {"low": None, "high": None}
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"low": float(low), "high": float(high)}


def on_others(value: float | None, there: np.ndarray, transferred: np.ndarray, patients: int) -> Estimate:
    """The expected share on other patients, for a choice that maximised it on the sample: {"value", "low", "high"}.

    value: the share on the sample, for the choice made there. there, transferred: for the choice made on each resample
    [R], its share on that resample and on the sample. Their difference is the combined error of choice and chance: its
    mean, the optimism, is subtracted from the value, and its spread gives a 95 % interval by Student's t.
    patients: number of patients behind the share. Shares are treated as angles, the arcsine of their root: their spread
    does not depend on the share, and the interval stays within [0, 1].

    All are None if the value is not defined, with fewer than two patients, and if fewer than two resamples define both
    shares; low and high are None if no resample errs, which is uninformative about others.
    `benchmarks/classifier_thresholds.py` measures the coverage of the interval, beside other methods.
    """
    errors = _angles(there) - _angles(transferred)
    errors = errors[np.isfinite(errors)]
    if value is None or patients < 2 or len(errors) < 2:
        return {"value": None, "low": None, "high": None}
    middle, half = _angles(np.array(value)) - errors.mean(), _student(patients) * errors.std(ddof=1)
    corrected, low, high = np.sin(np.clip([middle, middle - half, middle + half], 0.0, np.pi / 2)) ** 2
    known = half > 1e-9  # except for rounding
    return {"value": float(corrected), "low": float(low) if known else None, "high": float(high) if known else None}


def _student(patients: int) -> float:
    """Half the width of an interval, in standard deviations."""
    return float(stats.t.ppf((1 + LEVEL) / 2, patients - 1))


def _angles(shares: np.ndarray) -> np.ndarray:
    return np.arcsin(np.sqrt(np.clip(shares, 0.0, 1.0)))


def _draw(statistic: Statistic, patients: int, resamples: int, seed: int) -> dict[str, np.ndarray]:
    weights = weights_of(patients, resamples, seed)
    return evaluate(statistic, weights) if len(weights) else {}


def two_sided(draws: np.ndarray) -> float:
    """The two-sided p-value of "0" from resampled differences [R]; NaN ones do not count. See `compare`."""
    defined = draws[np.isfinite(draws)]
    # Two runs with equal predictions differ at most by rounding, which counts as a tie.
    below, above = (defined <= 1e-12).sum(), (defined >= -1e-12).sum()
    return float(min(1.0, 2.0 * (1 + min(below, above)) / (1 + len(defined))))


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
