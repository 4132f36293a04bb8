"""Features of a trained detector in close-ups, for comparing sets of lesions."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.detection.detector import Detector, Params

BATCH = 16
COARSEST = 32
"""Pixels per cell of the coarsest level that is averaged: a coarser level would be padded."""


def closeup_features(detector: Detector, params: Params) -> Callable[[np.ndarray], np.ndarray]:
    """close-ups [N, S, S] in [0, 1] -> [N, D] float32: the concatenated means of the pyramid's levels up to COARSEST.

    S: a multiple of 64. Every process computes all close-ups.
    """
    count = sum(stride <= COARSEST for stride in detector.strides)

    @jax.jit
    def pooled(params: Params, images: jax.Array) -> jax.Array:
        size = jnp.tile(jnp.asarray(images.shape[1:3], jnp.float32), (len(images), 1))
        levels = detector.features(params, {"image": images, "image_size": size})
        return jnp.concatenate([level.mean((1, 2)) for level in levels[:count]], -1).astype(jnp.float32)

    def features(closeups: np.ndarray) -> np.ndarray:
        found = []
        for start in range(0, len(closeups), BATCH):
            part = closeups[start : start + BATCH]
            filled = np.concatenate([part, part[-1:].repeat(BATCH - len(part), 0)])  # a single compilation
            found.append(np.asarray(pooled(params, filled[..., None].astype(np.float32)))[: len(part)])
        return np.concatenate(found)

    return features
