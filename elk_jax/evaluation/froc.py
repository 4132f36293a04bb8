"""Free-response ROC: sensitivity for lesions against false positives per image.

The rule is ELK's (Montoya-del-Angel et al., Deep-Breath 2024, and the repository Likalto4/CEM-Detect):

- every lesion looks for itself: it is found at the score of the best-scoring prediction that hits it (IoU >=
  0.3);
- a prediction that hits any lesion is never a false positive: neither the second-best on the same lesion, nor
  one whose lesion was found by a better one;
- so ONE prediction that hits TWO lesions finds both, each at its score, unless something better hits them;
- a prediction that hits nothing is a false positive, unless it lies on a box to be ignored (it meets the
  criterion there, or has its centre in it).

A class is matched with itself only. The curve has a point for every distinct score: predictions of equal
score enter together, which makes the curve independent of the order of images. It starts at (0, 0), is read
by linear interpolation (at a vertical step: the upper end), and goes on flat after its last point.

Shapes: P patients, R weightings of the patients, J distinct scores at which lesions are found, T read-off
rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from elk_jax.evaluation.detections import ImageResult
from elk_jax.evaluation.hits import Criterion, centre_in_box

NEVER = -np.inf  # the score of a lesion that no prediction hits


@dataclass(frozen=True)
class ImageScores:
    """All that the curve needs of one image."""

    lesions: np.ndarray  # [lesions to find] score at which each is found, NEVER where no prediction hits it
    false_positives: np.ndarray  # [false positives] their scores


def image_scores(result: ImageResult, criterion: Criterion) -> ImageScores:
    """Apply the rule above to one image."""
    lesions, false_positives = [], []
    for label in np.union1d(result.gt_labels, result.labels):
        truth = result.gt_labels == label
        lesion_boxes = result.gt_boxes[truth & ~result.gt_ignore]
        ignored_boxes = result.gt_boxes[truth & result.gt_ignore]
        boxes, scores = result.boxes[result.labels == label], result.scores[result.labels == label]
        hits = criterion(boxes, lesion_boxes)
        lesions.append(np.where(hits, scores[:, None], NEVER).max(axis=0, initial=NEVER))
        forgiven = criterion(boxes, ignored_boxes) | centre_in_box()(boxes, ignored_boxes)
        false_positives.append(scores[~hits.any(axis=1) & ~forgiven.any(axis=1)])
    none = np.zeros(0)
    return ImageScores(np.concatenate([none, *lesions]), np.concatenate([none, *false_positives]))


@dataclass(frozen=True)
class Counts:
    """Sufficient statistics of the curve: how much each patient contributes at each score. See `count`."""

    scores: np.ndarray  # [J] distinct scores at which a lesion is found, falling
    found: np.ndarray  # [P, J] lesions found at this score or a higher one
    above: np.ndarray  # [P, J] false positives that score more
    at_least: np.ndarray  # [P, J] false positives that score as much or more
    false_positives: np.ndarray  # [P] all of them
    lesions: np.ndarray  # [P]
    images: np.ndarray  # [P]

    @property
    def total_lesions(self) -> int:
        return int(self.lesions.sum())


def count(
    results: Sequence[ImageResult], criterion: Criterion, patients: Sequence[str] | None = None
) -> Counts:
    """Sort the predictions of all images once.

    Args:
      results: the images that count, each once in the denominator of "per image".
      patients: their order in the first axis; may name patients without images here. Default: order of
        appearance.
    """
    patients = list(dict.fromkeys(r.patient_id for r in results)) if patients is None else patients
    row_of = {patient: row for row, patient in enumerate(patients)}
    rows = np.array([row_of[result.patient_id] for result in results], int)
    per_image = [image_scores(result, criterion) for result in results]
    none = np.zeros(0)
    lesion_scores = np.concatenate([none, *(scores.lesions for scores in per_image)])
    lesion_rows = np.repeat(rows, [len(scores.lesions) for scores in per_image])
    wrong_scores = np.concatenate([none, *(scores.false_positives for scores in per_image)])
    wrong_rows = np.repeat(rows, [len(scores.false_positives) for scores in per_image])

    hit = lesion_scores > NEVER
    scores = np.unique(lesion_scores[hit])[::-1]

    def running(score_rows: np.ndarray, values: np.ndarray, side: str) -> np.ndarray:
        # Entry (p, j): how many values of patient p are >= scores[j] ("left") or > scores[j] ("right").
        table = np.zeros((len(patients), len(scores) + 1), np.float32)
        np.add.at(table, (score_rows, np.searchsorted(-scores, -values, side=side)), 1)  # type: ignore[call-overload]
        return np.cumsum(table[:, :-1], axis=1)

    def per_patient(of: np.ndarray) -> np.ndarray:
        return np.bincount(of, minlength=len(patients)).astype(np.float32)

    return Counts(
        scores=scores,
        found=running(lesion_rows[hit], lesion_scores[hit], "left"),
        above=running(wrong_rows, wrong_scores, "right"),
        at_least=running(wrong_rows, wrong_scores, "left"),
        false_positives=per_patient(wrong_rows),
        lesions=per_patient(lesion_rows),
        images=per_patient(rows),
    )


def curves(counts: Counts, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The corners of the curve for each weighting of the patients [R, P].

    Returns (false positives per image [R, 2J + 2], sensitivity [R, 2J + 2]), both rising. Between two scores
    at which lesions are found the curve is flat, so these corners are the whole curve over all thresholds.
    NaN where the weighted sample has no image, or no lesion.
    """
    weights = np.asarray(weights, np.float32)
    found = weights @ counts.found
    zero = np.zeros((len(weights), 1), np.float32)
    up_to_here = np.concatenate([zero, found], axis=1)  # [R, J + 1]
    before_after = np.stack([weights @ counts.above, weights @ counts.at_least], axis=-1)  # [R, J, 2]
    everything = (weights @ counts.false_positives)[:, None]
    x = np.concatenate([zero, before_after.reshape(len(weights), -1), everything], axis=1)
    y = np.repeat(up_to_here, 2, axis=1)  # a level starts at its `at_least`, ends at the next `above`
    return _ratio(x, (weights @ counts.images)[:, None]), _ratio(y, (weights @ counts.lesions)[:, None])


def sensitivity_at(x: np.ndarray, y: np.ndarray, rates: Sequence[float]) -> np.ndarray:
    """Read curves [R, corners] off at rates of false positives per image -> sensitivity [R, T]."""
    read = np.full((len(x), len(rates)), np.nan)
    for row, (xs, ys) in enumerate(zip(x, y, strict=True)):
        if _defined(xs, ys):
            read[row] = np.interp(rates, xs, ys)
    return read


def area_up_to(x: np.ndarray, y: np.ndarray, limits: Sequence[float]) -> np.ndarray:
    """AUFROC: area under curves [R, corners] up to each limit, divided by the limit -> [R, T] in [0, 1]."""
    areas = np.empty((len(x), len(limits)))
    for row, (xs, ys) in enumerate(zip(x, y, strict=True)):
        if not _defined(xs, ys):
            areas[row] = np.nan
            continue
        swept = np.concatenate([[0.0], np.cumsum(np.diff(xs) * (ys[1:] + ys[:-1]) / 2)])
        last = np.searchsorted(xs, limits, side="right") - 1  # the last corner at or before the limit
        rest = (np.asarray(limits) - xs[last]) * (ys[last] + np.interp(limits, xs, ys)) / 2
        areas[row] = (swept[last] + rest) / np.asarray(limits)
    return areas


def threshold_at(counts: Counts, rate: float) -> float | None:
    """The score threshold of an operating point: the lowest score that keeps false positives per image within
    `rate`.

    Only scores at which a lesion is found can be thresholds (between them nothing is gained); None where even
    the first of them brings more false positives than allowed, or where nothing is found.
    """
    images = counts.images.sum()
    if images == 0 or len(counts.scores) == 0:
        return None
    within = np.flatnonzero(counts.at_least.sum(axis=0) <= rate * images + 1e-6)
    return float(counts.scores[within[-1]]) if len(within) else None


def _defined(x: np.ndarray, y: np.ndarray) -> bool:
    return bool(np.isfinite(x[-1]) and np.isfinite(y[-1]))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator > 0, numerator / np.asarray(denominator, float), np.nan)
