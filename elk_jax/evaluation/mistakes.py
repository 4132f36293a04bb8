"""The kinds of false positives and misses of a detector at one threshold.

Boxes that are drawn differently from the annotation are distinguished from lesions that are not seen and from boxes on
healthy tissue: the first depend on how several lumps are grouped, and better image analysis would not remove them.

Shapes: K predictions, N lesions (or regions) of one class of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from elk_jax.evaluation import froc
from elk_jax.evaluation.detections import ImageResult, above
from elk_jax.evaluation.hits import ELK_RULE, Criterion, lies_on
from elk_jax.images.boxes import area, iou, relative_side

REPEATED = 0.5
"""IoU from which a false positive repeats a better one."""

FALSE_POSITIVES = {
    "larger": "on a missed lesion, larger than it",
    "smaller": "on a missed lesion, no larger than it",
    "duplicate": "on a lesion that another box finds",
    "other_class": "on a lesion of another class",
    "repeated": "elsewhere, over a better false positive",
    "elsewhere": "elsewhere",
}
"""Descriptions of the kinds of false positives; each has exactly one kind."""
MISSES = {
    "shown": "a box lies on it",
    "unsure": "a box hits it, with a score below the threshold",
    "faint": "a box lies on it, with a score below the threshold",
    "other_class": "only boxes of another class lie on it",
    "nothing": "no box",
}
"""Descriptions of the kinds of missed lesions; each has the first kind that applies."""
SIDES = (0.0, 0.05, 0.08, 0.16, 0.3, 1.0)
"""Boundaries between the sizes of lesions (`boxes.relative_side`): with 512 px, 26, 41, 82 and 154."""


def mistakes(
    results: Sequence[ImageResult], criterion: Criterion = ELK_RULE, threshold: float = 0.0
) -> dict[str, dict[str, int]]:
    """Counts by kind: {"false_positives": {kind: n}, "misses": {kind: n}}, for predictions that score >= `threshold`.

    A false positive belongs to the lesion that it overlaps most, among those that it lies on (`hits.lies_on`).
    "round_several": the number of false positives that contain the centres of at least two lesions.
    """
    wrong = dict.fromkeys([*FALSE_POSITIVES, "round_several"], 0)
    missed = dict.fromkeys(MISSES, 0)
    for result in results:
        classes = froc.match(result, criterion)
        for one in classes:
            others = [other for other in classes if other is not one]
            for kind in _false_positives(one, others, threshold):
                wrong[kind] += 1
            for kind in _misses(one, others, threshold):
                missed[kind] += 1
            chosen = one.boxes[one.false & (one.scores >= threshold)]
            centres = (one.truth[:, :2] + one.truth[:, 2:]) / 2
            inside = (centres >= chosen[:, None, :2]) & (centres <= chosen[:, None, 2:])
            wrong["round_several"] += int((inside.all(axis=2).sum(axis=1) > 1).sum())
    return {"false_positives": wrong, "misses": missed}


def _false_positives(one: froc.Matches, others: Sequence[froc.Matches], threshold: float) -> list[str]:
    """The kind of each false positive of a class. others: the other classes of the image."""
    kinds: list[str] = []
    their_truth = np.concatenate([np.zeros((0, 4)), *(other.truth for other in others)])
    on_others: np.ndarray = np.any(lies_on(one.boxes, their_truth), axis=1)
    overlap = np.where(one.on, iou(one.boxes, one.truth), -1.0)
    better: list[int] = []  # better false positives elsewhere
    for k in np.argsort(-one.scores, kind="stable"):
        if not one.false[k] or one.scores[k] < threshold:
            continue
        if one.on[k].any():
            lesion = int(overlap[k].argmax())
            larger = area(one.boxes[[k]])[0] > area(one.truth[[lesion]])[0]
            found = one.found[lesion] >= threshold
            kinds.append("duplicate" if found else "larger" if larger else "smaller")
            continue
        if on_others[k]:
            kinds.append("other_class")
            continue
        again = iou(one.boxes[[k]], one.boxes[better]) >= REPEATED
        kinds.append("repeated" if again.any() else "elsewhere")
        better.append(int(k))
    return kinds


def _misses(one: froc.Matches, others: Sequence[froc.Matches], threshold: float) -> list[str]:
    """The kind of each miss of a class. others: the other classes of the image."""
    found = one.found
    their_boxes = np.concatenate([np.zeros((0, 4)), *(other.boxes for other in others)])
    of_others = lies_on(their_boxes, one.truth).any(axis=0)
    shown = (one.on & (one.scores[:, None] >= threshold)).any(axis=0)
    conditions = [shown, found > froc.NEVER, one.on.any(axis=0), of_others]
    kinds = np.select(conditions, ["shown", "unsure", "faint", "other_class"], default="nothing")
    return [str(kind) for kind in kinds[found < threshold]]


def found_by_size(
    results: Sequence[ImageResult], criterion: Criterion = ELK_RULE, threshold: float = 0.0
) -> list[dict[str, Any]]:
    """Lesions or regions by size: [{"sides": [low, high), "lesions": n, "found": n}], by SIDES."""
    sides, found = [np.zeros(0)], [np.zeros(0, bool)]
    for result in results:
        for one in froc.match(result, criterion):
            sides.append(relative_side(one.truth, result.width, result.height))
            found.append(one.found >= threshold)
    hit, size = np.concatenate(found), np.searchsorted(SIDES[1:-1], np.concatenate(sides), side="right")
    return [
        {"sides": [low, high], "lesions": int((size == k).sum()), "found": int(hit[size == k].sum())}
        for k, (low, high) in enumerate(pairwise(SIDES))
    ]


def confusion(
    results: Sequence[ImageResult], classes: int, criterion: Criterion = ELK_RULE, threshold: float = 0.0
) -> list[list[int]]:
    """Lesions by annotated class (Q rows) and by the class of the best-scoring box that hits them (Q + 1 columns).

    Boxes of all classes with a score of at least `threshold` count; the last column is of lesions that none hits. Every
    lesion counts, also by a criterion for regions. Of boxes with equal scores, the first class counts.
    """
    table = np.zeros((classes, classes + 1), int)
    for result in above(results, threshold):
        order = np.lexsort((result.labels, -result.scores))
        lesions = result.gt_boxes[~result.gt_ignore]
        hits = np.concatenate([criterion(result.boxes[order], lesions), np.ones((1, len(lesions)), bool)])
        labels = np.append(result.labels[order], classes)
        np.add.at(table, (result.gt_labels[~result.gt_ignore], labels[hits.argmax(axis=0)]), 1)
    return table.tolist()


def at_rate(
    results: Sequence[ImageResult], criterion: Criterion, rate: float, threshold: float | None
) -> dict[str, Any]:
    """`mistakes` and `found_by_size` ("by_size") at the operating point with `rate` false positives per image, with its
    rate and threshold; {} if there is no such point."""
    if threshold is None:
        return {}
    by_size = found_by_size(results, criterion, threshold)
    return {"rate": rate, "threshold": threshold, "by_size": by_size, **mistakes(results, criterion, threshold)}
