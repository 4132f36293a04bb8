"""What private images say of public ones, released once: mean features by class, or votes for the most alike.

Shapes: N private images, U units of privacy (images, or patients with all their images), Q classes, D features, M
public images, K neighbours.

Every unit contributes one vector, whose norm is clipped to 1; all of them are added up, and noise is added once. Two
data sets are adjacent if the contribution of one unit is zeroed out, so that the sum moves by at most 1 in the L2 norm,
and one release with the noise multiplier s is a full batch: `accounting.gaussian_epsilon(s, delta)`, exactly.
Whatever is made of the released sums costs nothing more.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

BOUND = 1.0
"""The largest norm of what a unit contributes."""


def class_features(
    features: np.ndarray, labels: np.ndarray, units: np.ndarray, *, classes: int, num_units: int, count_scale: float
) -> np.ndarray:
    """Every unit's features by class, and how much of it is of each class: [U, Q, D + 1].

    features: [N, D] of norm 1 at most. labels: [N] in 0..Q-1. units: [N] in 0..U-1. A unit's images have equal shares,
    so that its vector has the norm 1 at most. count_scale: of the last column, whose sum over units is the weight of a
    class, beside the features: both are scaled by 1 / sqrt(1 + count_scale^2).
    """
    shares = 1 / np.bincount(units, minlength=num_units)[units]
    rows = np.concatenate([features, np.full((len(features), 1), count_scale)], axis=1)
    found = np.zeros((num_units, classes, rows.shape[1]))
    np.add.at(found, (units, labels), shares[:, None] * rows / np.sqrt(1 + count_scale**2))
    return found


def class_means(total: np.ndarray, count_scale: float) -> np.ndarray:
    """Mean features of every class [Q, D], of norm 1 at most, from a released sum [Q, D + 1] of `class_features`.

    A class with less than the weight of one unit, as noise may make it, counts as one.
    """
    weight = np.maximum(total[:, -1] / count_scale, 1 / np.sqrt(1 + count_scale**2))
    means = total[:, :-1] / weight[:, None]
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1.0)


def nearest(features: np.ndarray, pool: np.ndarray, neighbours: int) -> np.ndarray:
    """The K public images [N, K] whose features [M, D] are nearest to those of every private one [N, D], by number.

    Of equally near ones the first come first.
    """
    squares = (pool**2).sum(1) - 2 * features @ pool.T
    return np.argsort(squares, axis=1, kind="stable")[:, :neighbours]


def votes(
    chosen: np.ndarray, labels: np.ndarray, units: np.ndarray, *, classes: int, pool: int, num_units: int
) -> np.ndarray:
    """Every unit's votes for public images by class [U, Q, M], of norm 1, or 0 for a unit without images.

    chosen: [N, K], for which public images a private one votes. A unit's votes are divided by the norm of all of them.
    """
    found = np.zeros((num_units, classes, pool))
    np.add.at(found, (units[:, None], labels[:, None], chosen), 1.0)
    norms = np.sqrt((found**2).sum((1, 2), keepdims=True))
    return found / np.where(norms > 0, norms, 1.0)


def released(contributions: np.ndarray, noise_multiplier: float, key: jax.Array) -> np.ndarray:
    """Sum [...] of the contributions [U, ...] of all units, each clipped to the norm 1, with noise of a SECRET `key`.

    Whoever knows it can subtract the noise: take `noise_key` of `secret.fresh`. It draws one release: a second one with
    the same key has the same noise. A unit whose contribution is not finite adds nothing. noise_multiplier: deviation
    of the noise; 0 is not private.
    """
    flat = contributions.reshape(len(contributions), -1)
    flat = flat[np.isfinite(flat).all(1)]
    norms = np.sqrt((flat**2).sum(1, keepdims=True))
    total = (flat / np.maximum(norms / BOUND, 1.0)).sum(0)
    noise = noise_multiplier * BOUND * np.asarray(jax.random.normal(key, total.shape, jnp.float32), np.float64)
    return np.asarray((total + noise).reshape(contributions.shape[1:]))
