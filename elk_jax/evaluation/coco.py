"""Average precision by COCO's definition, at any IoU threshold, and fast enough for bootstrapping.

The definition is that of pycocotools' `COCOeval` for boxes. Per image and class, the 100 best-scoring predictions are
matched, best first, each to the unmatched lesion of largest IoU >= threshold. Ignore boxes are COCO's "crowd": the
overlap is relative to the area of the prediction, and any number of predictions may match one; none of these counts.
Precision is made monotone and read at 101 recalls, and classes are averaged. Equal scores keep the order of images.

Precision has its local maxima directly after a hit, so only these corners are stored (P patients, J hits, R
weightings).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from elk_jax.evaluation.detections import ImageResult
from elk_jax.images.boxes import intersection, iou

COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10))
RECALLS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 100


@dataclass(frozen=True)
class Counts:
    """Sufficient statistics of one class at one IoU threshold."""

    hits: np.ndarray  # [P, J] hits of each patient up to and including the j-th best-scoring hit overall
    false_positives: np.ndarray  # [P, J] false positives of each patient that score higher than it
    lesions: np.ndarray  # [P]


def match_image(
    boxes: np.ndarray, gt_boxes: np.ndarray, crowd: np.ndarray, thresholds: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's greedy matching of one image and class.

    boxes: [K, 4] predictions, best first. gt_boxes: [N, 4]. crowd: [N] bool, ignore boxes, each of which may be matched
    by any number of predictions. thresholds: T values of IoU.

    Returns (hit [T, K] bool: matches a lesion that counts; ignored [T, K] bool: matches an ignore box).
    """
    limits = np.asarray(thresholds, float)[:, None]
    hit = np.zeros((len(limits), len(boxes)), bool)
    ignored = np.zeros_like(hit)
    if len(boxes) == 0 or len(gt_boxes) == 0:
        return hit, ignored
    own_area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1)[:, None]
    shared = intersection(boxes, gt_boxes)
    of_own = np.divide(shared, own_area, out=np.zeros_like(shared), where=own_area > 0)
    overlaps = np.where(crowd[None], of_own, iou(boxes, gt_boxes))
    free = np.ones((len(limits), len(gt_boxes)), bool)
    for k in np.flatnonzero(overlaps.max(axis=1) >= limits.min()):
        fits = (overlaps[k][None] >= limits) & (free | crowd[None])
        lesion, lesion_fits = _best(overlaps[k], fits & ~crowd[None])
        other, other_fits = _best(overlaps[k], fits & crowd[None])
        hit[:, k] = lesion_fits
        ignored[:, k] = other_fits & ~lesion_fits
        for rows, chosen in ((hit[:, k], lesion), (ignored[:, k], other)):
            free[rows, chosen[rows]] = False
    return hit, ignored


def _best(overlaps: np.ndarray, fits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per threshold, the eligible box of largest overlap (the last of equals, as in COCOeval), and whether there is
    one."""
    masked = np.where(fits, overlaps[None], -1.0)[:, ::-1]
    return fits.shape[1] - 1 - np.argmax(masked, axis=1), np.any(fits, axis=1)


def count(
    results: Sequence[ImageResult], thresholds: Sequence[float], patients: Sequence[str] | None = None
) -> dict[float, dict[int, Counts]]:
    """Match all images once. Returns, per IoU threshold, the counts of every class that has lesions, by its label.

    patients: their order along the first axis of the counts. Default: order of appearance.
    """
    patients = list(dict.fromkeys(r.patient_id for r in results)) if patients is None else patients
    row_of = {patient: row for row, patient in enumerate(patients)}
    classes = np.unique(np.concatenate([np.zeros(0, int), *(r.gt_labels[~r.gt_ignore] for r in results)]))
    by_threshold: dict[float, dict[int, Counts]] = {float(threshold): {} for threshold in thresholds}
    for label in map(int, classes):
        scores: list[np.ndarray] = []
        rows: list[np.ndarray] = []
        hits: list[np.ndarray] = []
        ignored: list[np.ndarray] = []
        lesions = np.zeros(len(patients), np.float32)
        for result in results:
            own, truth = result.labels == label, result.gt_labels == label
            best = np.argsort(-result.scores[own], kind="stable")[:MAX_DETECTIONS]
            boxes, gt_boxes, crowd = result.boxes[own][best], result.gt_boxes[truth], result.gt_ignore[truth]
            hit, neutral = match_image(boxes, gt_boxes, crowd, thresholds)
            row = row_of[result.patient_id]
            lesions[row] += (~crowd).sum()
            scores.append(result.scores[own][best])
            rows.append(np.full(len(best), row))
            hits.append(hit)
            ignored.append(neutral)
        if lesions.sum() == 0:
            continue
        order = np.argsort(-np.concatenate(scores), kind="stable")
        all_rows = np.concatenate(rows)[order]
        all_hits, all_ignored = (np.concatenate(of, axis=1)[:, order] for of in (hits, ignored))
        for position, threshold in enumerate(thresholds):
            own = _counts(all_rows, all_hits[position], all_ignored[position], lesions)
            by_threshold[float(threshold)][label] = own
    return by_threshold


def _counts(rows: np.ndarray, hit: np.ndarray, ignored: np.ndarray, lesions: np.ndarray) -> Counts:
    places = np.cumsum(hit) - hit  # number of hits that score higher than each prediction
    columns = int(hit.sum())

    def running(chosen: np.ndarray) -> np.ndarray:
        table = np.zeros((len(lesions), columns + 1), np.float32)
        np.add.at(table, (rows[chosen], places[chosen]), 1)
        return np.cumsum(table[:, :-1], axis=1)

    return Counts(hits=running(hit), false_positives=running(~hit & ~ignored), lesions=lesions)


def average_precision(counts: Counts, weights: np.ndarray) -> np.ndarray:
    """AP of one class at one IoU threshold, per weighting of patients [R, P] -> [R]; NaN without lesions."""
    weights = np.asarray(weights, np.float32)
    total = (weights @ counts.lesions).astype(float)
    hits = (weights @ counts.hits).astype(float)
    wrong = (weights @ counts.false_positives).astype(float)
    if hits.shape[1] == 0:
        return np.where(total > 0, 0.0, np.nan)
    precision = hits / np.maximum(hits + wrong, 1.0)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = hits / np.maximum(total, 1.0)[:, None]
    reached = np.searchsorted(RECALLS, recall, side="right")  # how many of the 101 recalls are reached
    new = np.diff(reached, axis=1, prepend=0)
    return np.where(total > 0, (new * precision).sum(axis=1) / len(RECALLS), np.nan)


class Precisions:
    """AP of every class that has lesions at every IoU threshold, for weightings of patients [R, P]."""

    def __init__(self, counts: Mapping[float, Mapping[int, Counts]], weights: np.ndarray):
        self._rows = len(weights)
        self._values = {
            threshold: {label: average_precision(one, weights) for label, one in of_class.items()}
            for threshold, of_class in counts.items()
        }

    def mean(self, thresholds: Sequence[float], label: int | None = None) -> np.ndarray:
        """COCO's AP: mean over thresholds, and over the classes with lesions or of one class -> [R]; NaN without
        lesions."""
        found = [self._values[float(threshold)] for threshold in thresholds]
        return _mean([ap for of_class in found for own, ap in of_class.items() if label in (None, own)], self._rows)


def _mean(values: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """The mean [R] of those that are defined."""
    if not values:
        return np.full(rows, np.nan)
    stacked = np.stack(values)
    defined = np.isfinite(stacked)
    total = np.where(defined, stacked, 0.0).sum(axis=0)
    return np.where(defined.any(axis=0), total / np.maximum(defined.sum(axis=0), 1), np.nan)
