"""Rectangles of whole pixels, and boxes seen through them.

Shapes: H, W image size in pixels; N boxes, xyxy, px, origin = corner of the first pixel.
"""

from __future__ import annotations

import numpy as np

from elk_jax.errors import UserError
from elk_jax.images.boxes import area

Window = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels, x1 and y1 exclusive. It may extend beyond the image if padding is intended."""

RIM = 4
"""Pixels at a window's border that stay visible around the painted area, if the lesion's box allows it."""


def cut(pixels: np.ndarray, window: Window) -> np.ndarray:
    """The part of pixels [H, W, ...] under `window` as a copy, 0 where the window extends beyond the image."""
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = window
    part = np.zeros((y1 - y0, x1 - x0, *pixels.shape[2:]), pixels.dtype)
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if left < right and top < bottom:
        part[top - y0 : bottom - y0, left - x0 : right - x0] = pixels[top:bottom, left:right]
    return part


def shifted(window: Window, x: int, y: int) -> Window:
    """The window moved by x and y pixels."""
    return window[0] + x, window[1] + y, window[2] + x, window[3] + y


def covered(box: np.ndarray) -> Window:
    """The pixels that a box [4] covers, completely or partly."""
    x0, y0 = np.floor(box[:2])
    x1, y1 = np.ceil(box[2:])
    return int(x0), int(y0), int(x1), int(y1)


def widened(box: np.ndarray, margin: float, size: int, allowed: np.ndarray | None = None) -> Window:
    """The painted area: the pixels that a box [4] covers, plus `margin` of its width or height on each side.

    A lesion fades out beyond its box; painted only within the box, it would end at straight lines. Each side stays at
    least RIM px from the border of the window of `size` px, unless the box does not. A side is not moved if that would
    cover pixels outside allowed [size, size] bool (the breast, for example).
    """
    x0, y0, x1, y1 = covered(np.asarray(box, np.float64))
    across, down = round(margin * (x1 - x0)), round(margin * (y1 - y0))
    left, right = min(x0, max(x0 - across, RIM)), max(x1, min(x1 + across, size - RIM))
    top, bottom = min(y0, max(y0 - down, RIM)), max(y1, min(y1 + down, size - RIM))
    if allowed is not None:
        left = left if allowed[y0:y1, left:x0].all() else x0
        right = right if allowed[y0:y1, x1:right].all() else x1
        top = top if allowed[top:y0, left:right].all() else y0
        bottom = bottom if allowed[y1:bottom, left:right].all() else y1
    return left, top, right, bottom


def box_mask(box: np.ndarray, height: int, width: int) -> np.ndarray:
    """[height, width] bool: the pixels that a box [4] covers, completely or partly. UserError if it covers none."""
    mask = blocked_by(box, height, width)
    if not mask.any():
        place = ", ".join(f"{float(value):g}" for value in box)
        what = f"a mask without pixels: the box ({place}) covers nothing of {width} x {height} px"
        raise UserError(what, where="box")
    return mask


def boxes_in(boxes: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [N, 4] of an image as the window shows them: clipped boxes [K, 4] in its pixels, and their numbers [K]."""
    x0, y0, x1, y1 = window
    moved = np.asarray(boxes, np.float32).reshape(-1, 4) - np.array([x0, y0, x0, y0], np.float32)
    limit = np.array([x1 - x0, y1 - y0] * 2, np.float32)
    clipped = np.clip(moved, 0, limit)
    visible = np.flatnonzero(area(clipped) > 0)
    return clipped[visible], visible


def count_covered(blocked: np.ndarray, height: int, width: int) -> np.ndarray:
    """How many blocked pixels (of [H, W] bool) a rectangle of height x width covers, by its top left corner.

    Returns [H - height + 1, W - width + 1] int32, without an entry where the rectangle is larger than the image.
    """
    rows, columns = blocked.shape
    if height > rows or width > columns:
        return np.zeros((max(rows - height + 1, 0), max(columns - width + 1, 0)), np.int32)
    total = np.zeros((rows + 1, columns + 1), np.int32)
    np.cumsum(np.cumsum(blocked, axis=0, dtype=np.int32), axis=1, out=total[1:, 1:])
    return total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]


def draw_corner(allowed: np.ndarray, rng: np.random.Generator) -> tuple[int, int] | None:
    """(x, y) of a random True entry of allowed [h, w], all equally likely; None where there is none."""
    places = np.flatnonzero(allowed)
    if not len(places):
        return None
    y, x = divmod(int(places[rng.integers(len(places))]), allowed.shape[1])
    return x, y


def blocked_by(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """[height, width] bool: pixels that any of the boxes [N, 4] touches."""
    blocked = np.zeros((height, width), bool)
    for box in np.asarray(boxes, np.float64).reshape(-1, 4):
        x0, y0, x1, y1 = covered(box)
        blocked[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    return blocked
