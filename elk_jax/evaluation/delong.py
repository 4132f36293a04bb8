"""DeLong's interval for the AUROC, and DeLong's test of two classifiers on the same images, without resampling.

The variance is that of the structural components: the rank of a positive image among the negative ones, and of a
negative one among the positive ones. Components of one patient are summed before squaring, since the images of a
patient are not independent (Obuchowski 1997); with one image per patient this is exactly DeLong's variance.

Sources: DeLong, DeLong and Clarke-Pearson, Biometrics 1988; Sun and Xu, IEEE Signal Processing Letters 2014 (mid-ranks,
O(N log N)); Obuchowski, Biometrics 1997.

Shapes: M positive and N negative images, C classifiers, P patients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np

from elk_jax.errors import UserError
from elk_jax.evaluation.bootstrap import LEVEL, Estimate
from elk_jax.evaluation.predictions import Predictions, aligned
from elk_jax.fields import described, fits

Over = Literal["patients", "images"]
"""The independent units."""

ROUNDING = 1e-14
"""Variance below which a difference counts as rounding."""


def delong(predictions: Predictions, positive: str, *, over: Over = "patients") -> Estimate:
    """AUROC of the class `positive` with its standard error and 95 % interval: {"value", "low", "high", "error"}.

    The interval is symmetric, clipped to [0, 1]. Low, high and error are None with fewer than two patients (images) of
    either kind. An AUROC of exactly 0 or 1 has an error of 0: use another kind of interval in that case.
    UserError unless there are images of both kinds.
    """
    areas, covariance = _areas([predictions], positive, over)
    value, variance = float(areas[0]), float(covariance[0, 0])
    if not math.isfinite(variance):
        return {"value": value, "low": None, "high": None, "error": None}
    error = math.sqrt(max(variance, 0.0))
    reach = NormalDist().inv_cdf((1 + LEVEL) / 2) * error
    return {"value": value, "low": max(0.0, value - reach), "high": min(1.0, value + reach), "error": error}


def compare_delong(first: Predictions, second: Predictions, positive: str, *, over: Over = "patients") -> Estimate:
    """Two classifiers on the same images, second minus first, with the entries of `bootstrap.compare`.

    The p-value is two-sided for "no difference": 1 for equal rankings, None if the difference has no variance.
    UserError unless both have the same images, with images of both kinds.
    """
    areas, covariance = _areas(aligned([first, second]), positive, over)
    difference = float(areas[1] - areas[0])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    found: Estimate = {"first": float(areas[0]), "second": float(areas[1]), "difference": difference}
    if not math.isfinite(variance):
        return found | {"low": None, "high": None, "p_value": None}
    if variance <= ROUNDING:
        same = abs(difference) <= 1e-12
        return found | {"low": difference, "high": difference, "p_value": 1.0 if same else None}
    error, normal = math.sqrt(variance), NormalDist()
    reach = normal.inv_cdf((1 + LEVEL) / 2) * error
    p_value = 2 * normal.cdf(-abs(difference) / error)
    return found | {"low": difference - reach, "high": difference + reach, "p_value": p_value}


def _areas(sets: Sequence[Predictions], positive: str, over: Over) -> tuple[np.ndarray, np.ndarray]:
    """AUROCs [C] and their covariance [C, C]; NaN with fewer than two patients (images) of either kind."""
    if not fits(over, Over):
        raise UserError(f"over is {over!r}", where="over", todo=f"give {described(Over)}")
    truth = sets[0].truth(positive)
    ids = sets[0].patient_ids if over == "patients" else sets[0].image_ids
    units = np.unique(np.array(ids), return_inverse=True)[1]
    components = [structural_components(one.scores(positive), truth) for one in sets]
    areas = np.array([above.mean() for above, _ in components])
    sums = [
        _unit_sums(
            np.stack([pair[kind] for pair in components], 1) - areas, units[truth == (kind == 0)], units.max() + 1
        )
        for kind in (0, 1)
    ]
    (positive_sums, positive_units), (negative_sums, negative_units) = sums
    either = units.max() + 1
    if min(positive_units, negative_units) < 2:
        return areas, np.full((len(sets), len(sets)), np.nan)
    m, n = int(truth.sum()), int((~truth).sum())
    cross = positive_sums.T @ negative_sums
    covariance = (
        _unbiased(positive_units) * (positive_sums.T @ positive_sums) / m**2
        + _unbiased(negative_units) * (negative_sums.T @ negative_sums) / n**2
        + _unbiased(either) * (cross + cross.T) / (m * n)
    )
    return areas, covariance


def structural_components(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each positive image [M] the share of negative ones that score lower, for each negative image [N] the share of
    positive ones that score higher; equal scores count half. The mean of both is the AUROC."""
    ranks, m, n = midranks(scores), int(truth.sum()), int((~truth).sum())
    above = (ranks[truth] - midranks(scores[truth])) / n
    below = 1 - (ranks[~truth] - midranks(scores[~truth])) / m
    return above, below


def midranks(values: np.ndarray) -> np.ndarray:
    """Ranks [N] from 1; equal values share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _unit_sums(components: np.ndarray, units: np.ndarray, number: int) -> tuple[np.ndarray, int]:
    """Sums [P, C] of components [images, C] over each patient, and the number of patients with any."""
    sums = np.zeros((number, components.shape[1]))
    np.add.at(sums, units, components)
    return sums, len(np.unique(units))


def _unbiased(count: int) -> float:
    return count / (count - 1)
