"""One-time releases about private images: mean features by class, or votes for the most similar public images.

Shapes: N private images, U units of privacy (images, or patients with all their images), Q classes, D features, M
public images, K neighbours.

Every unit contributes one vector, whose norm is clipped to 1; the vectors are summed, and noise is added once. Two data
sets are adjacent if the contribution of one unit is zeroed out, so the sum changes by at most 1 in the L2 norm, and one
release with noise multiplier s is a full batch: exactly `accounting.gaussian_epsilon(s, delta)`. Anything computed from
the released sums costs nothing more.
"""

from __future__ import annotations

import jax
import numpy as np

from elk_jax.privacy.noise import noisy

BOUND = 1.0
"""The largest norm of a unit's contribution."""


def class_features(
    features: np.ndarray, labels: np.ndarray, units: np.ndarray, *, classes: int, num_units: int, count_scale: float
) -> np.ndarray:
    """Every unit's features by class, and its share of each class: [U, Q, D + 1].

    features: [N, D] with norm at most 1. labels: [N] in 0..Q-1. units: [N] in 0..U-1. A unit's images have equal
    shares, so its vector has norm at most 1. count_scale: of the last column, whose sum over units is the weight of a
    class, relative to the features: both are scaled by 1 / sqrt(1 + count_scale^2).
    """
    shares = 1 / np.bincount(units, minlength=num_units)[units]
    rows = np.concatenate([features, np.full((len(features), 1), count_scale)], axis=1)
    found = np.zeros((num_units, classes, rows.shape[1]))
    np.add.at(found, (units, labels), shares[:, None] * rows / np.sqrt(1 + count_scale**2))
    return found


def class_means(total: np.ndarray, count_scale: float) -> np.ndarray:
    """Mean features of every class [Q, D], with norm at most 1, from a released sum [Q, D + 1] of `class_features`.

    A class with less than the weight of one unit, which noise may cause, counts as one unit.
    """
    weight = np.maximum(total[:, -1] / count_scale, 1 / np.sqrt(1 + count_scale**2))
    means = total[:, :-1] / weight[:, None]
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1.0)


def nearest(features: np.ndarray, pool: np.ndarray, neighbours: int) -> np.ndarray:
    """Numbers [N, K] of the K public images whose features [M, D] are nearest to those of every private one [N, D].

    Equally near images are in ascending order.
    """
    squares = (pool**2).sum(1) - 2 * features @ pool.T
    return np.argsort(squares, axis=1, kind="stable")[:, :neighbours]


def votes(
    chosen: np.ndarray, labels: np.ndarray, units: np.ndarray, *, classes: int, pool: int, num_units: int
) -> np.ndarray:
    """Every unit's votes for public images by class [U, Q, M], with norm 1, or 0 for a unit without images.

    chosen: [N, K], the public images for which a private one votes. A unit's votes are divided by their norm.
    """
    found = np.zeros((num_units, classes, pool))
    np.add.at(found, (units[:, None], labels[:, None], chosen), 1.0)
    norms = np.sqrt((found**2).sum((1, 2), keepdims=True))
    return found / np.where(norms > 0, norms, 1.0)


def released(contributions: np.ndarray, noise_multiplier: float, key: jax.Array) -> np.ndarray:
    """Sum [...] of the contributions [U, ...] of all units, each clipped to norm 1, with noise of a SECRET `key`.

    Anyone who knows the key can subtract the noise: use `noise_key` of `secret.fresh`. A key is for one release: a
    second one would have the same noise. A unit whose contribution is not finite adds nothing. noise_multiplier:
    deviation of the noise; 0 is not private.
    """
    flat = contributions.reshape(len(contributions), -1)
    flat = flat[np.isfinite(flat).all(1)]
    norms = np.sqrt((flat**2).sum(1, keepdims=True))
    total = (flat / np.maximum(norms / BOUND, 1.0)).sum(0)
    if noise_multiplier:
        total = np.asarray(noisy(total, noise_multiplier * BOUND, key), np.float64)
    return total.reshape(contributions.shape[1:])
