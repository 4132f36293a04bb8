"""The ROC curve of a class and measures read from it: areas, average precision, sensitivity at a specificity.

Higher scores indicate the positive class; an image is called positive if its score is at least the threshold. Images of
equal score become positive together, which makes every metric independent of the order of images. The curve starts at
the threshold at which no image is called positive, and has a corner for every distinct score.

Shapes: N images, R weightings of the images, J distinct scores (descending).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from elk_jax.evaluation.froc import ratio

EXACT = 1e-9
"""Share of an image by which counts in resamples may deviate from whole numbers."""


@dataclass(frozen=True)
class Ranking:
    """Images sorted by score once, so that a weighting becomes a running sum. See `rank`."""

    order: np.ndarray  # [N] images by descending score
    last: np.ndarray  # [J] the last position, in that order, of each distinct score
    scores: np.ndarray  # [J] distinct scores, descending
    truth: np.ndarray  # [N] bool, of the images in their own order


@dataclass(frozen=True)
class Corners:
    """Weights of the images called positive at J + 1 thresholds: none, then each distinct score."""

    true: np.ndarray  # [R, J + 1] of the positive class
    false: np.ndarray  # [R, J + 1] of the other classes

    @property
    def positives(self) -> np.ndarray:
        return self.true[:, -1:]

    @property
    def negatives(self) -> np.ndarray:
        return self.false[:, -1:]

    @property
    def sensitivity(self) -> np.ndarray:
        """[R, J + 1] ascending; NaN if a weighting has no positive image."""
        return ratio(self.true, self.positives)

    @property
    def false_positive_rate(self) -> np.ndarray:
        """[R, J + 1] ascending, 1 - specificity; NaN if a weighting has no negative image."""
        return ratio(self.false, self.negatives)


def rank(scores: np.ndarray, truth: np.ndarray) -> Ranking:
    """Sort scores [N] of images; truth [N] bool marks those of the positive class."""
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    last = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)
    return Ranking(order, last, falling[last], np.asarray(truth, bool))


def corners(ranking: Ranking, weights: np.ndarray) -> Corners:
    """The corners of the curve for each weighting of the images [R, N]."""
    sorted_weights, truth = np.asarray(weights, float)[:, ranking.order], ranking.truth[ranking.order]

    def running(values: np.ndarray) -> np.ndarray:
        return np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1)[:, ranking.last]], axis=1)

    return Corners(running(sorted_weights * truth), running(sorted_weights * ~truth))


def area(found: Corners) -> np.ndarray:
    """AUROC [R]: the share of pairs of a positive and a negative image in which the positive one scores higher; equal
    scores count half. This is the Mann-Whitney statistic, and the area under straight lines between the corners."""
    heights = (found.true[:, 1:] + found.true[:, :-1]) / 2
    won = (np.diff(found.false, axis=1) * heights).sum(axis=1)
    return ratio(won, (found.positives * found.negatives)[:, 0])


def average_precision(found: Corners) -> np.ndarray:
    """Average precision [R] of the positive class: precision at each threshold, weighted by the rise of sensitivity.

    Step-wise, without interpolation, as in scikit-learn.
    """
    called = found.true + found.false
    precision = np.divide(found.true, called, out=np.zeros_like(called), where=called > 0)
    total = (np.diff(found.true, axis=1) * precision[:, 1:]).sum(axis=1)
    return ratio(total, found.positives[:, 0])


def reversed_corners(found: Corners) -> Corners:
    """The corners of the opposite orientation: all other classes count as positive, indicated by low scores."""
    return Corners(
        (found.false[:, -1:] - found.false)[:, ::-1],
        (found.true[:, -1:] - found.true)[:, ::-1],
    )


def sensitivity_at_specificity(found: Corners, specificity: float) -> np.ndarray:
    """[R] the largest sensitivity among the thresholds whose specificity is at least `specificity`."""
    allowed = found.false <= (1 - specificity) * found.negatives + EXACT
    best = np.where(allowed, found.true, 0).max(axis=1)
    return np.where(found.negatives[:, 0] > 0, ratio(best, found.positives[:, 0]), np.nan)


def specificity_at_sensitivity(found: Corners, sensitivity: float) -> np.ndarray:
    """[R] the largest specificity among the thresholds whose sensitivity is at least `sensitivity`."""
    allowed = found.true >= sensitivity * found.positives - EXACT
    least = np.where(allowed, found.false, np.inf).min(axis=1)
    rest = ratio(found.negatives[:, 0] - least, found.negatives[:, 0])
    return np.where(found.positives[:, 0] > 0, rest, np.nan)
