"""Similarity of the maps of two networks over a whole data set: sums over batches, and statistics from them.

Shape legend: B images, h w cells, C channels of each network. Maps [B, h, w, C]; weights [B, h, w] >= 0 of the cells.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.distillation.maps import TINY
from elk_jax.precision import at_least_float32


class Moments(NamedTuple):
    """Weighted sums over cells, for teacher and student concatenated; they are added over batches."""

    weight: jax.Array  # []
    total: jax.Array  # [2C]
    products: jax.Array  # [2C, 2C]
    cosine: jax.Array  # [], of the channels of each cell


def moments(teacher: jax.Array, student: jax.Array, weights: jax.Array) -> Moments:
    """The sums of one batch."""
    teacher, student = at_least_float32(teacher), at_least_float32(student)
    both = jnp.concatenate([teacher, student], -1)
    lengths = jnp.sqrt((teacher**2).sum(-1) * (student**2).sum(-1))
    cosine = jnp.where(lengths > 0, (teacher * student).sum(-1) / jnp.where(lengths > 0, lengths, 1), 0)
    return Moments(
        weight=weights.sum(),
        total=jnp.einsum("bhw,bhwc->c", weights, both),
        products=jnp.einsum("bhw,bhwc,bhwd->cd", weights, both, both),
        cosine=(weights * cosine).sum(),
    )


def shuffled(teacher: jax.Array, student: jax.Array, weights: jax.Array, patients: jax.Array) -> Moments:
    """The sums for mismatched pairs: each student's map with the teacher's map of the previous image in the batch.

    Cells count if both images have a weight there; pairs of images of one patient do not count. patients: [B] int.
    """
    other = patients != jnp.roll(patients, 1)
    both = weights * jnp.roll(weights, 1, axis=0) * other[:, None, None]
    return moments(jnp.roll(teacher, 1, axis=0), student, both)


def correlation(found: Moments) -> float:
    """Pearson's r between the two networks, averaged over channels; a constant channel counts as 0. NaN without
    cells."""
    covariance = _covariance(found)
    if covariance is None:
        return float("nan")
    channels = len(covariance) // 2
    spreads, joint = np.diagonal(covariance), np.diagonal(covariance, channels)
    square = spreads[:channels] * spreads[channels:]
    varies = (spreads[:channels] > TINY) & (spreads[channels:] > TINY)
    return float(np.where(varies, joint / np.sqrt(np.where(varies, square, 1)), 0).mean())


def mean_cosine(found: Moments) -> float:
    """The mean over cells of the cosine between the channels of the two; NaN without cells."""
    return float(found.cosine / found.weight) if found.weight > 0 else float("nan")


def spread(found: Moments) -> float:
    """Ratio of the standard deviations over cells, student over teacher, each averaged over channels; below 0.1 the
    student has collapsed. NaN without cells."""
    covariance = _covariance(found)
    if covariance is None:
        return float("nan")
    deviations = np.sqrt(np.clip(np.diagonal(covariance), 0, None))
    teacher, student = np.split(deviations, 2)
    return float(student.mean() / max(teacher.mean(), TINY))


def effective_rank(found: Moments) -> tuple[float, float]:
    """(of the teacher, of the student): the exponential of the entropy of the eigenvalues of the channels' covariance
    (Roy and Vetterli 2007), from 1 to C; NaN without cells."""
    covariance = _covariance(found)
    if covariance is None:
        return float("nan"), float("nan")
    half = len(covariance) // 2
    return _rank(covariance[:half, :half]), _rank(covariance[half:, half:])


def _rank(covariance: np.ndarray) -> float:
    values = np.clip(np.linalg.eigvalsh(covariance), 0, None)
    shares = values[values > 0] / max(values.sum(), TINY)
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _covariance(found: Moments) -> np.ndarray | None:
    weight = float(found.weight)
    if weight <= 0:
        return None
    mean = np.asarray(found.total, np.float64) / weight
    covariance: np.ndarray = np.asarray(found.products, np.float64) / weight - np.outer(mean, mean)
    return covariance
