"""Average precision by COCO's definition, at any IoU threshold, and fast enough for bootstrapping.

The definition is that of pycocotools' `COCOeval` for boxes. Per image and class, the 100 best-scoring predictions are
matched, best first, each to the unmatched lesion of largest IoU >= threshold. Ignore boxes are COCO's "crowd": the
overlap is relative to the area of the prediction, and any number of predictions may match one; none of these counts.
Precision is made monotone and read at 101 recalls, and classes are averaged. Equal scores keep the order of images.

Precision has its local maxima directly after a hit, so only these corners are computed.

Shapes: P patients, R weightings of them, T thresholds, S near predictions (see `Counts`), J hits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from elk_jax.evaluation.detections import ImageResult
from elk_jax.evaluation.running import Running, running
from elk_jax.images.boxes import intersection, iou

COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10))
RECALLS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 100


@dataclass(frozen=True)
class Counts:
    """Sufficient statistics of one class. The near predictions are those that match a box at some IoU threshold; all
    others are false positives at every threshold, and are counted once for all."""

    thresholds: tuple[float, ...]  # T values of IoU
    rows: np.ndarray  # [S] patient of each near prediction, best-scoring first
    hit: np.ndarray  # [T, S] bool
    false: np.ndarray  # [T, S] bool: a false positive, neither a hit nor on an ignore box
    others: Running  # [P, S] other predictions that score higher than the near one
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
) -> dict[int, Counts]:
    """Match all images once. Returns the counts of every class that has lesions, by its label.

    patients: their order along the first axis of the counts. Default: order of appearance.
    """
    patients = list(dict.fromkeys(r.patient_id for r in results)) if patients is None else patients
    row_of = {patient: row for row, patient in enumerate(patients)}
    classes = np.unique(np.concatenate([np.zeros(0, int), *(r.gt_labels[~r.gt_ignore] for r in results)]))
    found: dict[int, Counts] = {}
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
        near = (all_hits | all_ignored).any(axis=0)
        places = np.cumsum(near)[~near]  # number of near predictions that score higher than each other one
        found[label] = Counts(
            tuple(map(float, thresholds)),
            rows=all_rows[near],
            hit=all_hits[:, near],
            false=~(all_hits | all_ignored)[:, near],
            others=running(all_rows[~near], places, (len(patients), int(near.sum()))),
            lesions=lesions,
        )
    return found


class Precisions:
    """AP of every class that has lesions at every IoU threshold, for weightings of patients [R, P]."""

    def __init__(self, counts: Mapping[int, Counts], weights: np.ndarray):
        self._rows = len(weights)
        self._values = {label: average_precisions(one, weights) for label, one in counts.items()}

    def mean(self, thresholds: Sequence[float], label: int | None = None) -> np.ndarray:
        """COCO's AP: mean over thresholds, and over the classes with lesions or of one class -> [R]; NaN without
        lesions."""
        chosen = [of_class for own, of_class in self._values.items() if label in (None, own)]
        return _mean([of_class[float(threshold)] for threshold in thresholds for of_class in chosen], self._rows)


def average_precisions(counts: Counts, weights: np.ndarray) -> dict[float, np.ndarray]:
    """AP of one class by IoU threshold, per weighting of patients [R, P] -> [R]; NaN without lesions."""
    weights = np.asarray(weights, np.float32)
    total = (weights @ counts.lesions).astype(float)
    others, own = counts.others.weighted(weights), weights[:, counts.rows].astype(float)
    found = {}
    for threshold, hit, false in zip(counts.thresholds, counts.hit, counts.false, strict=True):
        hits = np.cumsum(own[:, hit], axis=1)
        wrong = others[:, hit] + np.cumsum(own * false, axis=1)[:, hit]
        found[threshold] = _average(hits, wrong, total)
    return found


def _average(hits: np.ndarray, wrong: np.ndarray, total: np.ndarray) -> np.ndarray:
    """The average precision [R] from the hits and the false positives [R, J] up to each hit, and all lesions [R]."""
    if hits.shape[1] == 0:
        return np.where(total > 0, 0.0, np.nan)
    precision = hits / np.maximum(hits + wrong, 1.0)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = hits / np.maximum(total, 1.0)[:, None]
    reached = np.searchsorted(RECALLS, recall, side="right")  # how many of the 101 recalls are reached
    new = np.diff(reached, axis=1, prepend=0)
    return np.where(total > 0, (new * precision).sum(axis=1) / len(RECALLS), np.nan)


def _mean(values: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """The mean [R] of those that are defined."""
    if not values:
        return np.full(rows, np.nan)
    stacked = np.stack(values)
    defined = np.isfinite(stacked)
    total = np.where(defined, stacked, 0.0).sum(axis=0)
    return np.where(defined.any(axis=0), total / np.maximum(defined.sum(axis=0), 1), np.nan)
