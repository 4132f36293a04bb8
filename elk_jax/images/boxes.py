"""Overlaps of boxes on the host, in NumPy. On the device: `detection/boxes.py`.

Shapes: N and M boxes, xyxy, px.
"""

from __future__ import annotations

import numpy as np


def area(boxes: np.ndarray) -> np.ndarray:
    """Areas [N] of boxes [N, 4]; 0 for inverted boxes."""
    return np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0.0, None), axis=-1)


def relative_side(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Sizes [N] of boxes [N, 4]: the root of the area, as a share of the image's longer side."""
    return np.sqrt(area(boxes)) / max(width, height)


def clipped(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """The parts of boxes [N, 4] inside an image; boxes outside have no area."""
    return np.clip(boxes, 0, np.array([width, height, width, height], boxes.dtype))


def within_a_pixel(boxes: np.ndarray) -> np.ndarray:
    """[N] bool: boxes [N, 4] that start in the first pixel and are no larger, so probably in shares of the image."""
    return (boxes[:, :2] <= 1).all(axis=1) & (boxes[:, 2:] - boxes[:, :2] <= 1).all(axis=1)


def intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Areas of intersection [N, M] of boxes a [N, 4] and b [M, 4]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.prod(np.clip(high - low, 0.0, None), axis=-1)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union [N, M] of boxes a [N, 4] and b [M, 4]; 0 if both are empty."""
    shared = intersection(a, b)
    union = area(a)[:, None] + area(b)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
