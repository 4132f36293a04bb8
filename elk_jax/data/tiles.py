"""Square tiles of images: where they lie, and which show enough breast.

Shapes: H, W image size in pixels; S side of a tile.
"""

from __future__ import annotations

import numpy as np

from elk_jax.errors import UserError
from elk_jax.images.grey import AIR
from elk_jax.images.windows import Window

MAX_BLACK = 0.7
"""Share of a tile that may be black (published: tiles of more than 70 % black are dropped)."""


def tile_windows(height: int, width: int, size: int, stride: int = 0, where: object = "") -> list[Window]:
    """Windows of S x S pixels that cover an image, row by row, `stride` apart (0: side by side).

    The last of a row or column ends with the image, and so overlaps the one before. UserError for a tile larger than
    the image, and for a stride that leaves gaps. where: what the image is called in an error.
    """
    if size < 1 or not 0 <= stride <= size:
        todo = "give a size of 1 or more, and a stride that is not larger"
        raise UserError(f"tiles of {size} px, {stride} px apart", todo=todo)
    if size > min(height, width):
        todo = f"use tiles of at most {min(height, width)} px"
        raise UserError(f"tiles of {size} px in an image of {width} x {height} px", where=where, todo=todo)
    starts = [[*range(0, side - size, stride or size), side - size] for side in (height, width)]
    return [(x, y, x + size, y + size) for y in starts[0] for x in starts[1]]


def black_share(tile: np.ndarray) -> float:
    """Share of the pixels of [S, S, ...] in [0, 1] that are black (air)."""
    return float((tile <= AIR).mean())
