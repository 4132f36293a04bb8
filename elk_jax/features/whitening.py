"""Whitening: few, uncorrelated features with equal variance, from the statistics of PUBLIC images.

Shapes: M public images, N images, F features, D components.

A private head adds the same noise to every component, so components with equal variance lose least. Mean and components
are part of the published model: they must never be fitted on a private training set.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from elk_jax.errors import UserError

SMALLEST = 1e-6
"""Components whose deviation is below this share of the largest are rounding, not content."""


class Whitening(NamedTuple):
    """mean [F]; components [F, D], each divided by its deviation. float32."""

    mean: np.ndarray
    components: np.ndarray


def fit(public: np.ndarray, components: int, where: str = "") -> Whitening:
    """The whitening to `components` principal components of features [M, F] of public images.

    UserError unless the features are finite and have the requested number of components: at most M - 1, and F.
    """
    features = np.asarray(public, np.float64)
    if not np.isfinite(features).all():
        raise UserError("features of public images contain NaN or infinity", where=where, todo="omit those images")
    mean = features.mean(0)
    deviations, directions = _components((features - mean) / np.sqrt(max(len(features) - 1, 1)))
    present = int((deviations > SMALLEST * deviations[:1]).sum())
    if not 1 <= components <= present:
        raise UserError(
            f"{components} components requested, but {len(features)} public images give {present}",
            where=where,
            todo="use fewer components, or give more public images",
        )
    scaled = directions[:components].T / deviations[:components]
    return Whitening(mean.astype(np.float32), scaled.astype(np.float32))


def _components(centred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Deviations [K], the largest first, and principal directions [K, F] of centred features [M, F]; K is min(M, F).

    If there are more features than images, inner products are used, which takes a fraction of the time; the loss is
    below `SMALLEST`.
    """
    if centred.shape[0] >= centred.shape[1]:
        _, deviations, directions = np.linalg.svd(centred, full_matrices=False)
        return deviations, directions
    variances, vectors = np.linalg.eigh(centred @ centred.T)
    deviations = np.sqrt(np.maximum(variances[::-1], 0))
    safe = np.where(deviations > SMALLEST * deviations[:1], deviations, np.inf)
    return deviations, (vectors[:, ::-1].T @ centred) / safe[:, None]


def whiten(features: np.ndarray, whitening: Whitening) -> np.ndarray:
    """Features [N, F] -> [N, D], float32; with mean 0 and covariance 1 for the public images."""
    return (np.asarray(features, np.float32) - whitening.mean) @ whitening.components


def unit_norm(features: np.ndarray) -> np.ndarray:
    """Features [N, D] divided by their norm [N], so that gradients of a head are at most 1. Zero stays zero."""
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.where(norms > 0, norms, 1.0)
