"""Calibration: whether probabilities of a class match the shares in which it occurs.

Shapes: N images, R weightings of the images, B bins of probability.
"""

from __future__ import annotations

import numpy as np

from elk_jax.evaluation.froc import ratio

BINS = 10
SMALLEST = float(np.finfo(np.float64).eps)
"""Probabilities closer to 0 or 1 are clipped to this distance before a logarithm is taken."""
STEPS = 50
STEEPEST = 1e3
"""Slope beyond which a fit counts as undefined."""


def logits(probabilities: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)), finite also for 0 and 1."""
    p = np.clip(probabilities, SMALLEST, 1 - SMALLEST)
    return np.log(p) - np.log1p(-p)


def bin_of(probabilities: np.ndarray) -> np.ndarray:
    """The bin [N] of each probability: B = BINS of equal width, [0, 0.1), [0.1, 0.2), ... [0.9, 1]."""
    edges = np.arange(1, BINS) / BINS
    return np.searchsorted(edges, probabilities, side="right")


def bins(probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """For each weighting [R, N] and bin: `weight`, mean `probability`, `share` of the class, [R, B]; NaN if empty."""
    of = np.eye(BINS)[bin_of(probabilities)]
    weight = weights @ of
    return {
        "weight": weight,
        "probability": ratio(weights @ (of * probabilities[:, None]), weight),
        "share": ratio(weights @ (of * truth[:, None]), weight),
    }


def expected_error(probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error [R]: |mean probability - share of the class| of each bin, weighted by its images.

    Uses the probability of the class in bins of equal width, not the confidence in the predicted class.
    Source: Naeini et al., AAAI 2015.
    """
    gap = weights @ (np.eye(BINS)[bin_of(probabilities)] * (probabilities - truth)[:, None])
    return ratio(np.abs(gap).sum(axis=1), weights.sum(axis=1))


def brier(probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Brier score [R]: mean of (probability - truth)^2, from 0 to 1. Brier's own sum over two classes is twice this."""
    return ratio(weights @ (probabilities - truth) ** 2, weights.sum(axis=1))


def cross_entropy(probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean negative log likelihood [R] of membership in the class, in nats."""
    p = np.clip(probabilities, SMALLEST, 1 - SMALLEST)
    return ratio(weights @ -np.where(truth, np.log(p), np.log1p(-p)), weights.sum(axis=1))


def slope(probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Calibration slope [R]: b of the logistic regression logit P(class) = a + b logit(probability).

    1 is perfect, less is over-confident. NaN if no finite b is optimal: the scores separate the classes, or are equal.

    Source: Cox, Biometrika 1958.
    """
    x = logits(probabilities)
    spread = x.std()
    if not spread > 0:
        return np.full(len(weights), np.nan)
    z = (x - x.mean()) / spread  # so that Newton's steps are well scaled
    found = _logistic(np.stack([np.ones_like(z), z], 1), truth, weights, np.zeros_like(z))
    found[_separated(z, truth, weights)] = np.nan
    steep = found[:, 1] / spread
    return np.where(np.abs(steep) < STEEPEST, steep, np.nan)


def intercept(probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Calibration in the large [R]: a of logit P(class) = a + logit(probability); 0 is perfect, below 0 the
    probabilities are too large overall. NaN without images of both kinds.

    Source: Van Calster et al., BMC Medicine 2019.
    """
    found = _logistic(np.ones((len(truth), 1)), truth, weights, logits(probabilities))[:, 0]
    both = ((weights @ truth) > 0) & ((weights @ ~truth) > 0)
    return np.where(both, found, np.nan)


def _logistic(design: np.ndarray, truth: np.ndarray, weights: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Coefficients [R, D] of maximum likelihood for design [N, D], by damped Newton steps; NaN if not converged."""
    found = np.zeros((len(weights), design.shape[1]))
    pairs = (design[:, :, None] * design[:, None]).reshape(len(design), -1)
    size = design.shape[1]
    change = np.full(len(weights), np.inf)
    for _ in range(STEPS):
        p = 0.5 * (1 + np.tanh(0.5 * (found @ design.T + offset)))
        gradient = (weights * (truth - p)) @ design
        curvature = ((weights * p * (1 - p)) @ pairs).reshape(-1, size, size) + 1e-12 * np.eye(size)
        step = np.clip(np.linalg.solve(curvature, gradient[..., None])[..., 0], -2, 2)
        found, change = found + step, np.abs(step).max(axis=1)
        if change.max(initial=0) < 1e-9:
            break
    return np.where((change < 1e-6)[:, None], found, np.nan)


def _separated(x: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Whether a threshold on x separates the classes of each weighting [R], or one of them is missing."""
    drawn = weights > 0

    def ends(of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mine = drawn & of
        return np.where(mine, x, np.inf).min(axis=1), np.where(mine, x, -np.inf).max(axis=1)

    (low, high), (other_low, other_high) = ends(truth), ends(~truth)
    return (low >= other_high) | (other_low >= high)
