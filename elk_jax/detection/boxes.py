"""Boxes: areas, overlaps and the box coder.

Boxes are xyxy in absolute pixels, the origin is the corner of the first pixel, sides are x2 - x1 (no "+ 1"). Everything
here promotes to at least float32, keeps float64, and never divides by zero: the overlap of two empty boxes is 0, and so
is the code of a box without area. Inverted boxes (x2 < x1) count as empty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from elk_jax.errors import UserError
from elk_jax.precision import at_least_float32

LARGEST_LOG_SCALE = math.log(1000.0 / 16)
"""Decoded sides are at most 62.5 times the anchor's: a huge delta must not overflow exp (detectron2, torchvision)."""


def as_boxes(boxes: jax.Array, name: str = "boxes", dimensions: int | None = None) -> jax.Array:
    """An array of boxes in at least float32; UserError for a shape other than [..., 4], or a wrong number of
    dimensions."""
    array = boxes if hasattr(boxes, "astype") else jnp.asarray(boxes)
    if array.shape[-1:] != (4,) or dimensions not in (None, array.ndim):
        wanted = "[..., 4]" if dimensions is None else f"[{'N, ' * (dimensions - 1)}4]"
        raise UserError(f"{name} has the shape {array.shape}", where=name, todo=f"give {wanted}, xyxy")
    return at_least_float32(array)


def area(boxes: jax.Array) -> jax.Array:
    """Area [...] of boxes[..., 4]; 0 for inverted boxes."""
    boxes = as_boxes(boxes)
    width = jnp.maximum(boxes[..., 2] - boxes[..., 0], 0)
    height = jnp.maximum(boxes[..., 3] - boxes[..., 1], 0)
    return width * height


def _intersection(a: jax.Array, b: jax.Array) -> jax.Array:
    """Area of the intersection of a[..., 4] and b[..., 4], broadcast against each other."""
    width = jnp.minimum(a[..., 2], b[..., 2]) - jnp.maximum(a[..., 0], b[..., 0])
    height = jnp.minimum(a[..., 3], b[..., 3]) - jnp.maximum(a[..., 1], b[..., 1])
    return jnp.maximum(width, 0) * jnp.maximum(height, 0)


def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    """part / whole, and 0 with zero gradient where `whole` is not positive (or NaN)."""
    positive = whole > 0
    return jnp.where(positive, part / jnp.where(positive, whole, 1), 0)


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union of every box of a[N, 4] with every box of b[M, 4]: [N, M] in [0, 1]."""
    a, b = as_boxes(a, "a", 2), as_boxes(b, "b", 2)
    common = _intersection(a[:, None], b[None, :])
    return _ratio(common, area(a)[:, None] + area(b)[None, :] - common)


def intersection_over_area(a: jax.Array, b: jax.Array) -> jax.Array:
    """Share of every box of a[N, 4] that lies inside every box of b[M, 4]: [N, M] in [0, 1]."""
    a, b = as_boxes(a, "a", 2), as_boxes(b, "b", 2)
    return _ratio(_intersection(a[:, None], b[None, :]), jnp.broadcast_to(area(a)[:, None], (a.shape[0], b.shape[0])))


def generalized_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Generalized IoU of a[..., 4] with b[..., 4], row by row: [...] in [-1, 1] (Rezatofighi et al. 2019).

    IoU minus the share of the smallest enclosing box that neither covers. Two empty boxes at the same place give 0.
    """
    a, b = as_boxes(a, "a"), as_boxes(b, "b")
    common = _intersection(a, b)
    union = area(a) + area(b) - common
    width = jnp.maximum(a[..., 2], b[..., 2]) - jnp.minimum(a[..., 0], b[..., 0])
    height = jnp.maximum(a[..., 3], b[..., 3]) - jnp.minimum(a[..., 1], b[..., 1])
    hull = jnp.maximum(width, 0) * jnp.maximum(height, 0)
    return _ratio(common, union) - _ratio(hull - union, hull)


def _center_size(boxes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Centre x, centre y, width, height, each [...], of boxes[..., 4]."""
    width = boxes[..., 2] - boxes[..., 0]
    height = boxes[..., 3] - boxes[..., 1]
    return boxes[..., 0] + 0.5 * width, boxes[..., 1] + 0.5 * height, width, height


def encode(boxes: jax.Array, anchors: jax.Array, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> jax.Array:
    """Deltas (dx, dy, dw, dh)[..., 4] that move `anchors`[..., 4] onto `boxes`[..., 4] (Girshick 2014; R-CNN).

    dx = wx (cx - cx_a) / w_a,  dw = ww log(w / w_a), `weights` = (wx, wy, ww, wh). If box or anchor has no area or
    is not finite (padding), the deltas and their gradients are 0; the caller has to mask such rows.
    """
    boxes, anchors = as_boxes(boxes), as_boxes(anchors, "anchors")
    boxes, anchors = jnp.broadcast_arrays(boxes, anchors)
    usable = _has_area(boxes) & _has_area(anchors)
    # Both branches of a `where` are differentiated: unusable rows are replaced before the log, not only after it.
    unit = jnp.array([0, 0, 1, 1], boxes.dtype)
    x, y, width, height = _center_size(jnp.where(usable, boxes, unit))
    anchor_x, anchor_y, anchor_width, anchor_height = _center_size(
        jnp.where(usable, anchors, unit.astype(anchors.dtype))
    )
    wx, wy, ww, wh = weights
    deltas = jnp.stack(
        [
            wx * (x - anchor_x) / anchor_width,
            wy * (y - anchor_y) / anchor_height,
            ww * jnp.log(width / anchor_width),
            wh * jnp.log(height / anchor_height),
        ],
        axis=-1,
    )
    return jnp.where(usable, deltas, 0)


def _has_area(boxes: jax.Array) -> jax.Array:
    """Finite boxes with positive sides: [..., 1] bool (False for NaN)."""
    finite = jnp.isfinite(boxes).all(-1, keepdims=True)
    return finite & (boxes[..., 2:3] > boxes[..., 0:1]) & (boxes[..., 3:4] > boxes[..., 1:2])


def decode(deltas: jax.Array, anchors: jax.Array, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> jax.Array:
    """`deltas`[..., 4] applied to `anchors`[..., 4]: boxes[..., 4], the inverse of `encode`.

    dw and dh are at most LARGEST_LOG_SCALE. The result is not clipped to the image (see `clip`).
    """
    deltas, anchors = as_boxes(deltas, "deltas"), as_boxes(anchors, "anchors")
    anchor_x, anchor_y, anchor_width, anchor_height = _center_size(anchors)
    wx, wy, ww, wh = weights
    x = deltas[..., 0] / wx * anchor_width + anchor_x
    y = deltas[..., 1] / wy * anchor_height + anchor_y
    half_width = 0.5 * anchor_width * jnp.exp(jnp.minimum(deltas[..., 2] / ww, LARGEST_LOG_SCALE))
    half_height = 0.5 * anchor_height * jnp.exp(jnp.minimum(deltas[..., 3] / wh, LARGEST_LOG_SCALE))
    return jnp.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=-1)


def clip(boxes: jax.Array, height: jax.Array | float, width: jax.Array | float) -> jax.Array:
    """Clip boxes[..., 4] to an image of `height` x `width` pixels (numbers, or arrays that broadcast against [...])."""
    boxes = as_boxes(boxes)
    height, width = jnp.asarray(height, boxes.dtype), jnp.asarray(width, boxes.dtype)
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    cut = [jnp.clip(x1, 0, width), jnp.clip(y1, 0, height), jnp.clip(x2, 0, width), jnp.clip(y2, 0, height)]
    return jnp.stack(cut, axis=-1)
