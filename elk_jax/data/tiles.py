"""Square tiles of images: their positions, and which of them show enough breast.

Shapes: H, W image size in pixels; S side of a tile.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from elk_jax.errors import UserError
from elk_jax.images.grey import AIR
from elk_jax.images.schema import ImageInfo
from elk_jax.images.windows import Window, boxes_in

MAX_BLACK = 0.7
"""Share of a tile that may be black (published: tiles of more than 70 % black are dropped)."""


MIN_VISIBLE = 1
"""Pixels of a lesion, in each direction, that a tile must show: fewer would be lost to rounding in a file."""


def check_stride(stride: int, size: int) -> None:
    """Raise UserError for a stride that leaves gaps between tiles of `size` px. 0: side by side."""
    if not 0 <= stride <= size:
        raise UserError(f"stride is {stride}", where="stride", todo=f"give 0 to {size}, the size of a tile")


def tile_windows(height: int, width: int, size: int, stride: int = 0, where: object = "") -> list[Window]:
    """Windows of S x S pixels that cover an image, row by row, `stride` apart (0: side by side).

    The last of a row or column ends with the image, so it may overlap the one before. UserError for a tile larger than
    the image, and for a stride that leaves gaps. where: the name of the image in errors.
    """
    check_stride(stride, size)
    if not 1 <= size <= min(height, width):
        todo = f"use tiles of at least 1 and at most {min(height, width)} px"
        raise UserError(f"tiles of {size} px in an image of {width} x {height} px", where=where, todo=todo)
    starts = [[*range(0, side - size, stride or size), side - size] for side in (height, width)]
    return [(x, y, x + size, y + size) for y in starts[0] for x in starts[1]]


def black_share(tile: np.ndarray) -> float:
    """Share of the pixels [S, S, ...] in [0, 1] that are black (air)."""
    return float((tile <= AIR).mean())


def tile_info(info: ImageInfo, window: Window) -> ImageInfo:
    """The record of a tile of an image. Lesions with fewer than MIN_VISIBLE pixels in the tile are left out."""
    boxes, lesions = boxes_in(info.boxes, window)
    visible = (boxes[:, 2:] - boxes[:, :2] >= MIN_VISIBLE).all(axis=1)
    boxes, lesions = boxes[visible], lesions[visible]
    width, height = window[2] - window[0], window[3] - window[1]
    labels, ignore = info.labels[lesions], info.ignore[lesions]
    return replace(info, width=width, height=height, boxes=boxes, labels=labels, ignore=ignore)
