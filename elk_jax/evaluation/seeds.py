"""Means over seeds, with intervals over patients and seeds: repeated training runs, evaluated on the same test images.

Patients and seeds are crossed: every seed is evaluated on the same patients. A resample therefore draws patients with
replacement and, independently, seeds with replacement (Owen, "The pigeonhole bootstrap", 2007). Two settings are
compared on the same draw of both. With few seeds, the contribution of seeds to an interval is too narrow by the factor
sqrt((S - 1) / S), as for any bootstrap of S values.

Shapes: S seeds, R resamples, P patients of any of the evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from elk_jax.evaluation import bootstrap
from elk_jax.evaluation.bootstrap import PatientStatistic


@dataclass(frozen=True)
class Resampling:
    """Draws of patients and seeds, the same for all settings."""

    patients: tuple[str, ...]  # [P] in order
    patient_weights: np.ndarray  # [R, P] how often each was drawn
    seed_weights: np.ndarray  # [R, S]

    def of(self, patients: Sequence[str]) -> np.ndarray:
        """The weights [R, p] of the given patients, in this order."""
        place = {patient: column for column, patient in enumerate(self.patients)}
        return self.patient_weights[:, [place[patient] for patient in patients]]


def draw(patients: Sequence[str], seeds: int, resamples: int, seed: int = 0) -> Resampling:
    """patients: of all evaluations, in any order, with repetitions."""
    names = tuple(sorted(set(patients)))
    return Resampling(
        names,
        bootstrap.draw_weights(max(len(names), 1), resamples, seed)[:, : len(names)],
        bootstrap.draw_weights(seeds, resamples, seed + 1),
    )


@dataclass(frozen=True)
class Measured:
    """One metric of one setting. values: [S], NaN for a seed without it. draws: [R, S] over resampled patients; None
    for a metric known only as a single value, whose intervals are over seeds."""

    values: np.ndarray
    draws: np.ndarray | None = None

    @property
    def known(self) -> np.ndarray:
        """Whether each seed [S] has a value."""
        return np.isfinite(self.values)

    @property
    def over(self) -> str:
        """The units over which its interval is taken."""
        seeds = "seeds" if self.known.sum() > 1 else ""
        return " and ".join(filter(None, ("patients" if self.draws is not None else "", seeds)))

    def minus(self, other: Measured) -> Measured:
        """The differences of two settings, seed by seed, on the same patients."""
        both = self.draws is not None and other.draws is not None
        return Measured(self.values - other.values, self.draws - other.draws if both else None)  # type: ignore[operator]


def resampled(statistics: Sequence[PatientStatistic | None], resampling: Resampling) -> dict[str, np.ndarray]:
    """Draws [R, S] of each metric, from the statistic of each seed; None for a seed without one gives NaN."""
    columns = [bootstrap.evaluate(one, resampling.of(one.patients)) if one is not None else {} for one in statistics]
    names = {name: None for column in columns for name in column}
    nothing = np.full(len(resampling.seed_weights), np.nan)
    return {name: np.stack([column.get(name, nothing) for column in columns], axis=1) for name in names}


def summarise(measured: Measured, resampling: Resampling) -> dict[str, Any]:
    """{"value": mean over seeds, "deviation" (of one seed, n - 1), "seeds", "low", "high", "p_value", "over"}.

    The interval is the 95 % percentile interval of the resampled means; None if there is nothing to resample. The
    p-value is two-sided for "the mean is 0", and is meant for differences. A seed without a value is left out.
    """
    known = measured.known
    count = int(known.sum())
    nothing = {"value": None, "deviation": None, "seeds": 0, "low": None, "high": None, "p_value": None, "over": ""}
    if not count:
        return nothing
    value = float(measured.values[known].mean())
    found = {**nothing, "value": value, "seeds": count, "over": measured.over}
    if count > 1:
        found["deviation"] = float(measured.values[known].std(ddof=1))
    if not measured.over or not len(resampling.seed_weights):
        return found
    means = _resampled_means(measured, resampling)
    if not np.isfinite(means).any():
        return found
    return found | bootstrap.interval(means, value) | {"p_value": bootstrap.two_sided(means)}


def _resampled_means(measured: Measured, resampling: Resampling) -> np.ndarray:
    """The mean [R] over the drawn seeds, on the drawn patients; NaN if undefined."""
    weights = resampling.seed_weights * measured.known
    if measured.draws is None:
        draws = np.broadcast_to(np.where(measured.known, measured.values, 0.0), weights.shape)
    else:
        draws = measured.draws
    total = np.where(weights > 0, weights * draws, 0.0).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / weights.sum(axis=1)
