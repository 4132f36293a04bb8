"""Mirrored images, since a breast may be seen from either side: at random in training, every view in detection."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np

from elk_jax.data.sources.source import ImageSource, Read, reread

Flip = Literal["horizontal", "vertical", "both"]


def random_flip(rng: np.random.Generator, horizontal: float, vertical: float) -> tuple[slice, slice]:
    """An index that mirrors an image [H, W, ...] with the given probabilities."""
    across, down = rng.random(2) < (horizontal, vertical)
    return slice(None, None, -1 if down else 1), slice(None, None, -1 if across else 1)


def flip_image(image: np.ndarray, flip: str) -> np.ndarray:
    """A mirrored view of an image [H, W, ...]."""
    return image[:: -1 if flip in ("vertical", "both") else 1, :: -1 if flip in ("horizontal", "both") else 1]


def flip_boxes(boxes: np.ndarray, width: float, height: float, flip: str) -> np.ndarray:
    """Boxes [N, 4] of an image of width x height px in its mirrored view. The same flip twice changes nothing."""
    x0, y0, x1, y1 = np.asarray(boxes).T
    if flip in ("horizontal", "both"):
        x0, x1 = width - x1, width - x0
    if flip in ("vertical", "both"):
        y0, y1 = height - y1, height - y0
    return np.stack([x0, y0, x1, y1], axis=1)


def flipped(source: ImageSource, flip: str) -> ImageSource:
    """The source with every image, and its boxes, mirrored."""
    boxes = (flip_boxes(info.boxes, info.width, info.height, flip) for info in source.infos)
    infos = tuple(replace(info, boxes=mirrored) for info, mirrored in zip(source.infos, boxes))
    return reread(source, lambda read: partial(_read_flipped, read, flip), infos)


def _read_flipped(read: Read, flip: str, position: int) -> np.ndarray:
    return flip_image(read(position), flip)
