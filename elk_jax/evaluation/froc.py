"""Free-response ROC (FROC): lesion sensitivity against false positives per image.

The rule is ELK's (Montoya-del-Angel et al., Deep-Breath 2024, and the repository Likalto4/CEM-Detect):

- each lesion is matched separately: it is found at the score of the best-scoring prediction that hits it (IoU >= 0.3);
- a prediction that hits any lesion is never a false positive, even if a better prediction hits the same lesion;
- so ONE prediction that hits TWO lesions finds both, each at its score, unless a better prediction hits them;
- a prediction that hits no lesion is a false positive, unless it is on an ignore box (it meets the criterion there, or
  its centre is inside).

With a criterion for regions (`hits.regions`), regions take the place of lesions, and a prediction on a region that is
found is not a false positive either.

Only predictions and lesions of the same class are matched. The curve has a point for every distinct score. Predictions
of equal score enter together, which makes the curve independent of the order of images. It starts at (0, 0), is read
by linear interpolation (at a vertical step: the upper end), and is flat after its last point.

Shapes: P patients, R weightings of the patients, J distinct scores at which lesions are found, T rates at which the
curve is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from elk_jax.errors import UserError
from elk_jax.evaluation.detections import ImageResult
from elk_jax.evaluation.hits import Criterion, centre_in_box, lies_on, regions_of
from elk_jax.evaluation.running import Running, running
from elk_jax.fields import ABOVE_ZERO, AtLeast, Range

NEVER = -np.inf  # the score of a lesion that no prediction hits


@dataclass(frozen=True)
class ImageScores:
    """The scores of one image that determine the curve."""

    lesions: np.ndarray  # [lesions to find] score at which each is found, NEVER if no prediction hits it
    false_positives: np.ndarray  # [false positives] their scores


@dataclass(frozen=True)
class Matches:
    """The predictions and the lesions or regions of one class in an image."""

    truth: np.ndarray  # [N, 4] boxes of the lesions to find, or around the regions
    boxes: np.ndarray  # [K, 4]
    scores: np.ndarray  # [K]
    hits: np.ndarray  # [K, N] bool
    on: np.ndarray  # [K, N] bool: lies on it, whether or not it is a hit
    false: np.ndarray  # [K] bool: a false positive

    @property
    def found(self) -> np.ndarray:
        """The score [N] at which each is found, NEVER if no prediction hits it."""
        return np.where(self.hits, self.scores[:, None], NEVER).max(axis=0, initial=NEVER)


def match(result: ImageResult, criterion: Criterion) -> list[Matches]:
    """Apply the rules above to one image: an entry for each class that is annotated or predicted."""
    return [_match(result, label, criterion) for label in np.union1d(result.gt_labels, result.labels)]


def _match(result: ImageResult, label: int, criterion: Criterion) -> Matches:
    truth = result.gt_labels == label
    lesions, ignored = result.gt_boxes[truth & ~result.gt_ignore], result.gt_boxes[truth & result.gt_ignore]
    boxes, scores = result.boxes[result.labels == label], result.scores[result.labels == label]
    hits, on = criterion(boxes, lesions), lies_on(boxes, lesions)
    if criterion.by_region:
        numbers = regions_of(lesions)
        groups = [numbers == number for number in range(numbers.max(initial=-1) + 1)]
        around = [np.concatenate([lesions[g, :2].min(axis=0), lesions[g, 2:].max(axis=0)]) for g in groups]
        lesions = np.array(around).reshape(-1, 4)
        of_groups = lambda table: np.stack([table[:, g].any(axis=1) for g in groups], 1) if groups else table
        hits, on = of_groups(hits) | criterion(boxes, lesions), of_groups(on) | lies_on(boxes, lesions)
    forgiven = criterion(boxes, ignored) | centre_in_box()(boxes, ignored)
    found = Matches(lesions, boxes, scores, hits, on, ~hits.any(axis=1) & ~forgiven.any(axis=1))
    if criterion.by_region:
        late = (on & (scores[:, None] <= found.found[None])).any(axis=1)
        return replace(found, false=found.false & ~late)
    return found


def image_scores(result: ImageResult, criterion: Criterion) -> ImageScores:
    """The scores of one image over all classes."""
    classes, none = match(result, criterion), np.zeros(0)
    return ImageScores(
        np.concatenate([none, *(one.found for one in classes)]),
        np.concatenate([none, *(one.scores[one.false] for one in classes)]),
    )


@dataclass(frozen=True)
class Counts:
    """Sufficient statistics of the curve: the contribution of each patient at each score. See `count`."""

    scores: np.ndarray  # [J] distinct scores at which a lesion is found, descending
    found: Running  # [P, J] lesions found at this score or a higher one
    above: Running  # [P, J] false positives with a higher score
    at_least: Running  # [P, J] false positives with this score or a higher one
    false_positives: np.ndarray  # [P] all false positives
    lesions: np.ndarray  # [P]
    images: np.ndarray  # [P]

    @property
    def total_lesions(self) -> int:
        return int(self.lesions.sum())


def count(results: Sequence[ImageResult], criterion: Criterion, patients: Sequence[str] | None = None) -> Counts:
    """Sort the predictions of all images once; each image counts once in the denominator of "per image".

    patients: their order along the first axis; may include patients without images. Default: order of appearance.
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

    def count_at(score_rows: np.ndarray, values: np.ndarray, side: Literal["left", "right"]) -> Running:
        # Entry (p, j): number of values of patient p that are >= scores[j] ("left") or > scores[j] ("right").
        return running(score_rows, np.searchsorted(-scores, -values, side=side), (len(patients), len(scores)))

    def per_patient(of: np.ndarray) -> np.ndarray:
        return np.bincount(of, minlength=len(patients)).astype(np.float32)

    return Counts(
        scores=scores,
        found=count_at(lesion_rows[hit], lesion_scores[hit], "left"),
        above=count_at(wrong_rows, wrong_scores, "right"),
        at_least=count_at(wrong_rows, wrong_scores, "left"),
        false_positives=per_patient(wrong_rows),
        lesions=per_patient(lesion_rows),
        images=per_patient(rows),
    )


def curves(counts: Counts, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The corners of the curve for each weighting of the patients [R, P].

    Returns (false positives per image [R, 2J + 2], sensitivity [R, 2J + 2]), both ascending. The curve is flat between
    two scores at which lesions are found, so these corners describe it for all thresholds. NaN if the weighted sample
    has no image or no lesion.
    """
    weights = np.asarray(weights, np.float32)
    zero = np.zeros((len(weights), 1))
    up_to_here = np.concatenate([zero, counts.found.weighted(weights)], axis=1)  # [R, J + 1]
    before_after = np.stack([counts.above.weighted(weights), counts.at_least.weighted(weights)], axis=-1)  # [R, J, 2]
    everything = (weights @ counts.false_positives)[:, None]
    x = np.concatenate([zero, before_after.reshape(len(weights), -1), everything], axis=1)
    y = np.repeat(up_to_here, 2, axis=1)  # a level starts at its `at_least`, ends at the next `above`
    return ratio(x, (weights @ counts.images)[:, None]), ratio(y, (weights @ counts.lesions)[:, None])


def sensitivity_at(x: np.ndarray, y: np.ndarray, rates: Sequence[float]) -> np.ndarray:
    """Read curves [R, corners] at rates of false positives per image -> sensitivity [R, T]."""
    _check_rates(rates, "rates", AtLeast(0))
    read = np.full((len(x), len(rates)), np.nan)
    for row, (xs, ys) in enumerate(zip(x, y, strict=True)):
        if _defined(xs, ys):
            read[row] = np.interp(rates, xs, ys)
    return read


def area_up_to(x: np.ndarray, y: np.ndarray, limits: Sequence[float]) -> np.ndarray:
    """AUFROC: area under curves [R, corners] up to each limit, divided by the limit -> [R, T] in [0, 1]."""
    _check_rates(limits, "limits", ABOVE_ZERO)
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
    """The score threshold of an operating point: the lowest score with at most `rate` false positives per image.

    Only scores at which a lesion is found are candidates, since scores between them find no more lesions. None if no
    lesion is found, or if even the highest candidate exceeds `rate`.
    """
    images = counts.images.sum()
    if images == 0 or len(counts.scores) == 0:
        return None
    everyone = np.ones((1, len(counts.images)))
    within = np.flatnonzero(counts.at_least.weighted(everyone)[0] <= rate * images + 1e-6)
    return float(counts.scores[within[-1]]) if len(within) else None


def _check_rates(rates: Sequence[float], name: str, limits: Range) -> None:
    for rate in rates:
        if not limits.takes(rate):
            raise UserError(f"one of the {name} is {rate!r}", where=name, todo=f"give numbers {limits}")


def _defined(x: np.ndarray, y: np.ndarray) -> bool:
    return bool(np.isfinite(x[-1]) and np.isfinite(y[-1]))


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """NaN where the denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator > 0, numerator / np.asarray(denominator, float), np.nan)
