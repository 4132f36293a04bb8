"""Detections in tomosynthesis volumes and the DBTex metric, on the host.

Shapes: N lesions and K detections of one volume; V volumes; P patients; T thresholds; R resamples.
Boxes are xyxy in pixels of a slice; slices are counted from 0.

Source: Konz et al., "A Competition, Benchmark, Code, and Data for Using AI to Detect Lesions in Digital Breast
Tomosynthesis", JAMA Netw Open 2023, e230524, and its published evaluation: a detection hits a lesion if its centre is
within half of the lesion's diagonal in the plane (at least 100 px) and within a quarter of the volume's slices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from elk_jax.errors import UserError
from elk_jax.evaluation import bootstrap
from elk_jax.evaluation.running import Running, running

LEAST_DISTANCE = 100.0
"""Distance in pixels within which a centre hits, however small the lesion."""
DEPTH_SHARE = 0.25
"""Share of the volume's slices by which a centre may be off."""
RATES_POSITIVE = (1.0, 2.0, 3.0, 4.0)
"""False positives per volume with lesions; the sensitivities at these rates are averaged."""
RATE_ALL = 2.0
"""False positives per volume, over all volumes."""
PRIMARY = "mean_sensitivity_positive"


@dataclass(frozen=True)
class VolumeDetections:
    """The detections of one volume, in any order: 3-D boxes.

    The centre along z is first + depth / 2; depth is 0 if a box covers one slice.
    """

    boxes: np.ndarray  # [K, 4] in the best slice
    first: np.ndarray  # [K] the first slice
    depth: np.ndarray  # [K] slices from the first to the last: last - first
    best: np.ndarray  # [K] int, the slice that shows it best
    scores: np.ndarray  # [K]
    labels: np.ndarray  # [K] int, 0-based class


def no_detections() -> VolumeDetections:
    """The detections of a volume in which nothing is found."""
    none = np.zeros(0, int)
    return VolumeDetections(np.zeros((0, 4)), np.zeros(0), np.zeros(0), none, np.zeros(0), none)


@dataclass(frozen=True)
class VolumeTruth:
    """One volume with its lesions, each marked in one slice."""

    patient_id: str
    study: str
    view: str
    slices: int
    boxes: np.ndarray  # [N, 4]
    at: np.ndarray  # [N] the slice of each

    @property
    def key(self) -> tuple[str, str]:
        """The identification of a volume in the tables of BCS-DBT."""
        return self.study, self.view


@dataclass(frozen=True)
class VolumeResult:
    """One volume: its lesions and its detections."""

    truth: VolumeTruth
    found: VolumeDetections


def hits(truth: VolumeTruth, found: VolumeDetections) -> np.ndarray:
    """[K] int: the lesion that each detection hits, -1 for none; the nearest of several, the first of equally near.

    For the nearest, distances in pixels and in slices are combined without scaling, as in the published evaluation.
    """
    if not len(truth.boxes):
        return np.full(len(found.scores), -1)
    lesions = np.asarray(truth.boxes, float)
    centre = (found.boxes[:, None, :2] + found.boxes[:, None, 2:]) / 2
    plane = np.linalg.norm(centre - (lesions[None, :, :2] + lesions[None, :, 2:]) / 2, axis=-1)  # [K, N]
    along = np.abs((found.first + found.depth / 2)[:, None] - truth.at[None])
    size = lesions[:, 2:] - lesions[:, :2]
    allowed = np.maximum(np.linalg.norm(size, axis=-1) / 2, LEAST_DISTANCE)
    inside = (plane <= allowed) & (along <= truth.slices * DEPTH_SHARE)
    nearest = np.where(inside, np.hypot(plane, along), np.inf).argmin(axis=1)
    return np.where(inside.any(axis=1), nearest, -1)


class VolumeStatistic:
    """The metric as a function of patient weights (see bootstrap.py).

    All volumes count for `sensitivity_at_2_fps_all`, those with lesions for `sensitivity_at_{1,2,3,4}_fps_positive` and
    their mean.
    """

    def __init__(self, results: Sequence[VolumeResult]):
        keys = Counter(result.truth.key for result in results)
        if twice := sorted(key for key, count in keys.items() if count > 1):
            raise UserError(
                f"the volume {' '.join(twice[0])} occurs twice", where="volumes", todo="keep one of its files"
            )
        self.patients = sorted({result.truth.patient_id for result in results})
        self._all = _count(results, self.patients)
        self._positive = _count([result for result in results if len(result.truth.boxes)], self.patients)

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        positive = _sensitivities(self._positive, weights, RATES_POSITIVE)
        values = {PRIMARY: positive.mean(axis=1)}
        values |= {f"sensitivity_at_{rate:g}_fps_positive": positive[:, i] for i, rate in enumerate(RATES_POSITIVE)}
        everywhere = _sensitivities(self._all, weights, (RATE_ALL,))
        return values | {f"sensitivity_at_{RATE_ALL:g}_fps_all": everywhere[:, 0]}


def evaluate_volumes(results: Sequence[VolumeResult], *, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """The DBTex metric with 95 % intervals over patients: {name: {"value", "low", "high"}} and counts.

    A value is None if there is no lesion. UserError for no volume, and for a duplicate volume.
    """
    if not results:
        raise UserError("no volume to evaluate", where="volumes", todo="choose a split with volumes")
    statistic = VolumeStatistic(results)
    return {
        "metrics": bootstrap.estimate(statistic, len(statistic.patients), resamples=resamples, seed=seed),
        "volumes": len(results),
        "volumes_with_lesions": sum(bool(len(result.truth.boxes)) for result in results),
        "lesions": sum(len(result.truth.boxes) for result in results),
        "detections": sum(len(result.found.scores) for result in results),
        "patients": len(statistic.patients),
    }


@dataclass(frozen=True)
class _Counts:
    """Counts per patient; columns of descending thresholds: above all scores, the score of every hit, below all."""

    volumes: np.ndarray  # [P]
    lesions: np.ndarray  # [P]
    found: Running  # [P, T] different lesions hit at the threshold
    wrong: Running  # [P, T] detections at the threshold that hit nothing
    hits: Running  # [P, T] detections at the threshold that hit a lesion


def _count(results: Sequence[VolumeResult], patients: Sequence[str]) -> _Counts:
    row = {patient: i for i, patient in enumerate(patients)}
    volumes, lesions = np.zeros(len(patients)), np.zeros(len(patients))
    best: list[tuple[int, float]] = []  # (patient, highest score) of each lesion that is hit
    wrong: list[tuple[int, float]] = []
    hit: list[tuple[int, float]] = []
    for result in results:
        patient, scores = row[result.truth.patient_id], result.found.scores
        volumes[patient] += 1
        lesions[patient] += len(result.truth.boxes)
        lesion = hits(result.truth, result.found)
        best += [(patient, float(scores[lesion == one].max())) for one in np.unique(lesion[lesion >= 0])]
        hit += [(patient, float(score)) for score in scores[lesion >= 0]]
        wrong += [(patient, float(score)) for score in scores[lesion < 0]]
    thresholds = np.array([np.inf, *sorted({score for _, score in hit}, reverse=True), -np.inf])

    def at_least(entries: Sequence[tuple[int, float]]) -> Running:
        rows, scores = np.array(entries, float).reshape(-1, 2).T
        columns = np.searchsorted(-thresholds, -scores)
        return running(rows.astype(int), columns, (len(patients), len(thresholds)))

    return _Counts(volumes, lesions, at_least(best), at_least(wrong), at_least(hit))


def _sensitivities(counts: _Counts, weights: np.ndarray, rates: Sequence[float]) -> np.ndarray:
    """[R, rates]: linear between the points of the hits, flat beyond the last one; NaN if no lesion is drawn.

    Of equal rates of false positives, the highest sensitivity counts. A resample has points only for its own hits.
    """
    weights = weights.astype(np.float64)
    volumes, lesions = weights @ counts.volumes, weights @ counts.lesions
    found, wrong = counts.found.weighted(weights), counts.wrong.weighted(weights)
    drawn = np.diff(counts.hits.weighted(weights), prepend=0) > 0  # the threshold is the score of a hit that is drawn
    drawn[:, [0, -1]] = True
    values = np.full((len(weights), len(rates)), np.nan)
    for i in np.flatnonzero(lesions):
        at = drawn[i]
        values[i] = np.interp(rates, wrong[i, at] / volumes[i], found[i, at] / lesions[i])
    return values
