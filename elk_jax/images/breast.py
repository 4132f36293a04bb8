"""Location of the breast in an image.

Shapes: H, W image size in pixels. Images [H, W] or [H, W, 1], uint8, uint16 or float in [0, 1].
"""

from __future__ import annotations

import cv2
import numpy as np

from elk_jax.images.grey import AIR

CLOSING = 5


def breast_mask(image: np.ndarray) -> np.ndarray:
    """[H, W] bool: the largest bright component, closed with 5 x 5 pixels, with its holes filled. Empty if all is air.

    Bright: brighter than air after a 3 x 3 median. Holes are dark spots inside the breast in a subtracted image.
    Source: Montoya-del-Angel et al. 2024, except for the median and the holes.
    """
    bright = (cv2.medianBlur(_eight_bits(image), 3) > AIR * 255).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(bright, connectivity=4)
    if count < 2:
        return np.zeros(bright.shape, bool)
    largest = (labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))).astype(np.uint8)
    # With air on every side, the closing does not extend to the image's border, and one flood fill finds the outside.
    framed = cv2.copyMakeBorder(largest, CLOSING, CLOSING, CLOSING, CLOSING, cv2.BORDER_CONSTANT, value=0)
    closed = cv2.morphologyEx(framed, cv2.MORPH_CLOSE, np.ones((CLOSING, CLOSING), np.uint8))
    outside = closed.copy()
    cv2.floodFill(outside, None, (0, 0), 1)
    filled = (closed == 1) | (outside == 0)
    return filled[CLOSING:-CLOSING, CLOSING:-CLOSING]


def _eight_bits(image: np.ndarray) -> np.ndarray:
    """The same numbers for a stored and a decoded image, so that both give the same breast."""
    grey = image[..., 0] if image.ndim == 3 else image
    if grey.dtype == np.uint8:
        return np.ascontiguousarray(grey)
    if grey.dtype == np.uint16:
        return ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.round(np.clip(grey, 0, 1) * 255).astype(np.uint8)
