"""The fine texture of tissue, for painted regions that lack it: small models learn shapes before they learn grain.

Shapes: S side of the square window; arrays are [S, S] unless stated otherwise; H, W the visible surroundings.
"""

from __future__ import annotations

import cv2
import numpy as np

from elk_jax.images.windows import count_covered, draw_corner

FINE = 1.0
"""Standard deviation, px, of the blur that separates grain from shape."""
BORDER = 3
"""Pixels between donor tissue and the mask or the skin, where fine structure is an edge, not grain."""
SIDES = (48, 32, 24, 16, 8)


def fine_part(image: np.ndarray) -> np.ndarray:
    """The part removed by a slight blur, float32."""
    image = image.astype(np.float32)
    return image - cv2.GaussianBlur(image, (0, 0), FINE)


def match_grain(
    picture: np.ndarray, mask: np.ndarray, tissue: np.ndarray, visible: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """`picture` with as much grain under the mask as in the visible tissue; unchanged if it has enough.

    picture, mask: the painted window, and where it was painted (bool). tissue [H, W]: the surrounding canvas, visible
    [H, W] bool: its breast pixels that were not painted. The grain is Gaussian, with the correlations of a random
    square of the visible tissue (Galerne et al. 2011: white noise convolved with it) and the missing strength. Also
    unchanged if no square of tissue is visible, or if the mask is too narrow to distinguish grain from its border.
    """
    reach = np.ones((2 * BORDER + 1, 2 * BORDER + 1), np.uint8)
    near = cv2.dilate((~visible).astype(np.uint8), reach) > 0
    inner = cv2.erode(mask.astype(np.uint8), reach) > 0
    corner, side = _donor(near, rng)
    if corner is None or not inner.any():
        return picture
    x, y = corner
    grain = fine_part(tissue)[y : y + side, x : x + side]
    wanted, there = float(grain.std()), float(fine_part(picture)[inner].std())
    if there >= wanted:
        return picture
    noise = rng.standard_normal(picture.shape)
    spread = np.fft.irfft2(np.fft.rfft2(noise) * np.fft.rfft2(grain - grain.mean(), picture.shape), picture.shape)
    spread *= np.sqrt(wanted**2 - there**2) / max(float(fine_part(spread)[inner].std()), 1e-12)  # as it is measured
    return np.where(mask, picture + spread, picture).astype(np.float32)


def _donor(blocked: np.ndarray, rng: np.random.Generator) -> tuple[tuple[int, int] | None, int]:
    """Corner and side of a random square without blocked pixels, of the largest possible size."""
    for side in SIDES:
        corner = draw_corner(count_covered(blocked, side, side) == 0, rng)
        if corner is not None:
            return corner, side
    return None, 0
