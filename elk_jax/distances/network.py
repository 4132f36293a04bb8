"""Features of whole images from a network, for the Frechet inception distance and the kernel distance.

Shapes: N images, B batch size, S side of the network's input, C channels of its last map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np

from elk_jax.backbones.networks import NETWORKS
from elk_jax.errors import UserError
from elk_jax.threads import ProgressBar, in_parts, no_bar
from elk_jax.weights import classifiers, model_folder

BATCH = 16


class Pooled(NamedTuple):
    """A network as a function: images [H, W] in [0, 1] of any sizes -> [N, C]. name: its kind and folder."""

    name: str
    features: Callable[..., np.ndarray]


def load_all(folders: Sequence[Path]) -> list[Pooled]:
    """The networks of model folders, with distinct names: RUN/STAGE/model becomes STAGE, or the full path if that is
    not unique.

    UserError for a folder without such a network, and for one given twice.
    """
    places = [folder.absolute() for folder in folders]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise UserError("the network is given twice", where=folders[number], todo="give each once")
    names = [place.parent.name if place.name == "model" else place.name for place in places]
    return [load(folder, name if names.count(name) == 1 else str(folder)) for folder, name in zip(folders, names)]


def load(folder: Path, name: str) -> Pooled:
    """The network in a model folder, imported (`launch/import_weights.py`) or trained here as a classifier.

    name: of the folder, for tables. UserError for a folder without such a network.
    """
    params, content = model_folder.load_params(folder)
    config = classifiers.network_of(content)
    if config is None:
        what = f"the weights are those of '{content.architecture}', not of a classifier"
        raise UserError(
            what, where=folder, todo="name a folder written by launch/import_weights.py, or of a trained classifier"
        )
    network = NETWORKS[config.name]

    last_map = lambda params, batch: network.features(config, params, batch)[-1]
    return pooled(f"{config.name} of {name}", last_map, params, config.image_size)


def pooled(name: str, last_map: Callable[[Any, jax.Array], jax.Array], params: Any, side: int) -> Pooled:
    """A function (params, batch [B, S, S, 1]) -> its last map [B, h, w, C], as features of any images: its means."""
    compiled = jax.jit(lambda params, batch: last_map(params, batch).mean((1, 2)))

    def features(images: Sequence[np.ndarray], progress: ProgressBar = no_bar) -> np.ndarray:
        starts = range(0, len(images), BATCH)
        bar = in_parts(progress, [min(BATCH, len(images) - start) for start in starts])

        def of_start(start: int) -> np.ndarray:
            part = [_resized(image, side) for image in images[start : start + BATCH]]
            padded = np.zeros((BATCH, side, side, 1), np.float32)
            padded[: len(part), ..., 0] = part
            return np.asarray(compiled(params, padded))[: len(part)]

        return np.concatenate(list(bar((of_start(start) for start in starts), len(starts))))

    return Pooled(name, features)


def _resized(image: np.ndarray, side: int) -> np.ndarray:
    """An image [H, W] resized to [S, S], whatever its shape."""
    shrinks = min(image.shape) > side
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
