"""Close-ups for training an inpainter: lesions at native resolution, and healthy tissue with lesion-like masks.

Shapes: H, W image size in pixels; S side of the square close-up; N boxes of the image, K of the close-up; xyxy, px.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo
from elk_jax.images.windows import Window, box_mask, boxes_in, covered, cut, widened
from elk_jax.synthesis.canvases import healthy_window
from elk_jax.synthesis.placement import AreaRule, find_box


@dataclass(frozen=True)
class Closeup:
    """A square piece of an image with the region to paint."""

    image: np.ndarray  # [S, S] in the image's own dtype, 0 beyond the image
    mask: np.ndarray  # [S, S] bool, the filled box of the lesion and its margin
    boxes: np.ndarray  # [K, 4] float32, all annotated boxes visible in the window, clipped to it
    lesions: np.ndarray  # [K] which boxes of the image they are
    window: Window  # in the pixels of the image


def fitting_lesions(infos: Sequence[ImageInfo], size: int) -> list[tuple[int, int]]:
    """(image, lesion) of every lesion, except ignored ones, whose box is below `size` px on both sides.

    UserError if there is none.
    """
    found = [
        (position, int(lesion))
        for position, info in enumerate(infos)
        for lesion in np.flatnonzero(~info.ignore)
        if _fits(info.boxes[lesion], info.width, info.height, size)
    ]
    if not found:
        count = sum(int((~info.ignore).sum()) for info in infos)
        raise UserError(
            f"none of the {count} lesions has sides below {size} px, which a close-up and its margin need",
            where=f"{len(infos)} images",
            todo="use a larger close-up, or less margin" if count else "use a split with lesions",
        )
    return found


def window_around(box: np.ndarray, height: int, width: int, size: int, rng: np.random.Generator) -> Window:
    """A random window of `size` px that contains all of `box` [4] and, if possible, no pixel beyond the image.

    If the image is smaller than the window, the window contains the whole image. UserError if the box is too large.
    """
    if not _fits(box, width, height, size):
        sides = " x ".join(f"{float(side):g}" for side in np.asarray(box)[2:] - np.asarray(box)[:2])
        raise UserError(f"a lesion of {sides} px does not fit into a close-up of {size} px", where="box")
    x0, y0, x1, y1 = _clipped(box, width, height)
    left, top = _start(x0, x1, width, size, rng), _start(y0, y1, height, size, rng)
    return left, top, left + size, top + size


def lesion_closeup(
    pixels: np.ndarray, boxes: np.ndarray, lesion: int, size: int, rng: np.random.Generator, margin: float = 0.0
) -> Closeup:
    """A close-up of box `lesion` of an image [H, W], with the lesion at a random place in it.

    boxes: [N, 4], all of the image. margin: share of the box's sides by which the mask is `widened`.
    Source: Montoya-del-Angel et al. 2024.
    """
    height, width = pixels.shape[:2]
    window = window_around(boxes[lesion], height, width, size, rng)
    return _closeup(pixels, boxes, window, np.asarray(boxes[lesion], np.float64), margin)


def tissue_closeup(
    pixels: np.ndarray,
    breast: np.ndarray,
    boxes: np.ndarray,
    size: int,
    rule: AreaRule,
    rng: np.random.Generator,
    margin: float = 0.0,
) -> Closeup | None:
    """A close-up of healthy tissue with the mask of an imaginary lesion; None if the image has no room.

    breast: [H, W] bool. boxes: [N, 4], all of the image; none is in the window. margin: see `lesion_closeup`.
    UserError if the image is smaller than the window.
    """
    window = healthy_window(breast, boxes, size, rng)
    box = None if window is None else find_box(cut(breast, window), np.zeros((0, 4)), rule, rng)
    if window is None or box is None:
        return None
    x, y = window[:2]
    return _closeup(pixels, boxes, window, np.array(box, np.float64) + [x, y, x, y], margin)


def box_patch(pixels: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    """The content of a box [4] in an image [H, W], as float32 [size, size] in the image's grey values.

    For comparing lesions of different sizes with each other.
    """
    window = _clipped(box, pixels.shape[1], pixels.shape[0])
    if window[2] <= window[0] or window[3] <= window[1]:
        raise UserError("the box lies outside the image", where="box")
    part = cut(pixels, window).astype(np.float32)
    shrinks = min(part.shape) > size
    return cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _closeup(pixels: np.ndarray, boxes: np.ndarray, window: Window, box: np.ndarray, margin: float) -> Closeup:
    x, y = window[:2]
    size = window[2] - x
    inside = cut(np.ones(pixels.shape[:2], bool), window)
    mask = box_mask(np.array(widened(box - [x, y, x, y], margin, size)), size, size) & inside
    visible, lesions = boxes_in(boxes, window)
    return Closeup(cut(pixels, window), mask, visible, lesions, window)


def _clipped(box: np.ndarray, width: int, height: int) -> Window:
    """The pixels of the image that a box covers."""
    x0, y0, x1, y1 = covered(np.asarray(box, np.float64))
    return max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)


def _fits(box: np.ndarray, width: int, height: int, size: int) -> bool:
    x0, y0, x1, y1 = _clipped(box, width, height)
    sides = np.asarray(box, np.float64)[2:] - np.asarray(box, np.float64)[:2]
    return 0 < x1 - x0 <= size and 0 < y1 - y0 <= size and bool((sides < size).all())


def _start(low: int, high: int, length: int, size: int, rng: np.random.Generator) -> int:
    """Random start of a window of `size` that contains [low, high) and stays in [0, length), or contains all of it."""
    bounds = sorted((0, length - size))
    return int(rng.integers(max(high - size, bounds[0]), min(low, bounds[1]) + 1))
