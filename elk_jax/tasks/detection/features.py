"""What a trained detector sees in close-ups: features to compare sets of lesions by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.data.batches.shuffle import filled_rows
from elk_jax.detection import faster_rcnn
from elk_jax.detection.faster_rcnn import FasterRCNN
from elk_jax.tasks.detection import model as detection_model

BATCH = 16
POOLED = 4
"""Levels of the pyramid whose means are taken: P2 to P5, from which regions are pooled."""


def closeup_features(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """close-ups [N, S, S] in [0, 1] -> [N, D] float32: the means of the pyramid's levels P2 to P5, one after the other.

    folder: of a trained detector. S: a multiple of 64, so that no level is padded. Every process computes all of them.
    """
    config, params, _ = detection_model.load(folder)
    model = FasterRCNN(config)

    @jax.jit
    def pooled(params, images: jax.Array) -> jax.Array:
        size = jnp.tile(jnp.asarray(images.shape[1:3], jnp.float32), (len(images), 1))
        levels = faster_rcnn.features(model, params, {"image": images, "image_size": size})
        return jnp.concatenate([level.mean((1, 2)) for level in levels[:POOLED]], -1).astype(jnp.float32)

    def features(closeups: np.ndarray) -> np.ndarray:
        found = []
        for start in range(0, len(closeups), BATCH):
            part = closeups[start : start + BATCH]
            filled = part[filled_rows(len(part), BATCH)]  # one compilation
            found.append(np.asarray(pooled(params, filled[..., None].astype(np.float32)))[: len(part)])
        return np.concatenate(found)

    return features
