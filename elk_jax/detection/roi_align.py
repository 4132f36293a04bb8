"""ROIAlign: bilinear pooling of the levels of a feature pyramid inside boxes (He et al. 2017, Lin et al. 2017).

S boxes (RoIs), h w the output grid, T taps per bin and axis; for one image (map over the batch).

The pixels and weights that every bin reads along each axis are computed here once, as taps. Two implementations of the
same sums use them: pixel by pixel on a CPU (`roi_taps`), tile by tile on accelerators (`roi_tiles`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.detection import boxes as box_ops
from elk_jax.detection import roi_taps, roi_tiles
from elk_jax.detection.boxes import as_boxes
from elk_jax.detection.roi_taps import Levels, Taps, axis_taps
from elk_jax.errors import UserError

LEVEL_EPSILON = 1e-6
"""Added before the floor in `assign_levels`, as torchvision does."""


def roi_align(
    features: jax.Array,
    boxes: jax.Array,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    max_adaptive_samples: int = 4,
) -> jax.Array:
    """Pool features[H, W, C] inside boxes[S, 4]: [S, h, w, C]. `multilevel_roi_align` with a single level.

    output_size: (h, w), or one number for both. spatial_scale: feature pixels per image pixel (1 / stride).
    """
    size = (output_size, output_size) if isinstance(output_size, int) else output_size
    if not 0 < spatial_scale < math.inf:
        what = f"spatial_scale is {spatial_scale!r}"
        raise UserError(what, where="spatial_scale", todo="give feature pixels per image pixel, such as 1 / 16")
    strides = (1 / spatial_scale,)
    return multilevel_roi_align(
        [features], boxes, size, strides, sampling_ratio, aligned, max_adaptive_samples=max_adaptive_samples
    )


@jax.named_scope("roi_align")
def multilevel_roi_align(
    features: Sequence[jax.Array],
    boxes: jax.Array,
    output_size: tuple[int, int],
    strides: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    canonical_size: float = 224,
    canonical_level: int = 4,
    valid: jax.Array | None = None,
    max_adaptive_samples: int = 4,
) -> jax.Array:
    """Pool each of boxes[S, 4] on its own level of features ([H_l, W_l, C], ...): [S, h, w, C] in the features' type.

    output_size: (h, w). strides: image pixels per feature pixel of each level, successive powers of two, fine to coarse
    (as the features). The level of a box: see `assign_levels`. sampling_ratio: samples per bin and axis. 0: the length
    of the bin in pixels, rounded up (adaptive, detectron2's default), but at most `max_adaptive_samples`, which in
    longer bins are evenly spread, more than a pixel apart; up to that limit identical to detectron2 and torchvision.
    aligned: True shifts by half a pixel, so that the corner of a box is the corner of a pixel (detectron2's
    ROIAlignV2); False is torchvision's default: no shift, and boxes are at least one feature pixel wide and high.

    Samples more than one pixel outside the map count as 0, others move to its edge. Boxes that are not valid[S], or not
    finite, give zeros and pass no gradient, whatever they contain. Interpolates and sums in at least float32, forwards
    and backwards. Differentiable once, in reverse mode, with respect to the features and the boxes (through the
    bilinear weights). A non-finite feature spoils the boxes that read it and, on accelerators, those around it.
    """
    boxes = as_boxes(boxes, "boxes", 2)
    features = [_as_floats(level) for level in features]
    _check(features, boxes, output_size, strides, sampling_ratio, valid, max_adaptive_samples)
    usable = jnp.isfinite(boxes).all(-1)
    if valid is not None:
        usable = usable & valid
    boxes = jnp.where(usable[:, None], boxes, 0)

    finest_level = round(float(np.log2(strides[0])))
    level = assign_levels(boxes, len(features), finest_level, canonical_size, canonical_level)
    height, width = (jnp.array([f.shape[axis] for f in features], jnp.int32)[level] for axis in (0, 1))
    scaled = boxes * jnp.array(1 / np.array(strides), boxes.dtype)[level][:, None]

    bins_y, bins_x = output_size
    if not len(boxes):
        return jnp.zeros((0, bins_y, bins_x, features[0].shape[-1]), features[0].dtype)
    y = axis_taps(scaled[:, 1], scaled[:, 3], height, bins_y, sampling_ratio, aligned, max_adaptive_samples)
    x = axis_taps(scaled[:, 0], scaled[:, 2], width, bins_x, sampling_ratio, aligned, max_adaptive_samples)
    y = y._replace(weight=jnp.where(usable[:, None, None], y.weight, 0))
    return _pool(tuple(features), level, y, x)


def _as_floats(level: jax.Array) -> jax.Array:
    """Floating-point features, so that means are not truncated to whole numbers."""
    level = jnp.asarray(level)
    return level if jnp.issubdtype(level.dtype, jnp.floating) else level.astype(jnp.float32)


def _check(
    features: Sequence[jax.Array],
    boxes: jax.Array,
    output_size: tuple[int, int],
    strides: Sequence[float],
    sampling_ratio: int,
    valid: jax.Array | None,
    cap: int,
) -> None:
    """UserError for inconsistent shapes and settings."""
    shapes = [level.shape for level in features]
    if not shapes or {len(shape) for shape in shapes} != {3} or len({shape[-1] for shape in shapes}) > 1:
        raise UserError(f"features have the shapes {shapes}", where="features", todo="give [H, W, C] of each level")
    if len(strides) != len(shapes) or any(high != 2 * low for low, high in pairwise(strides)):
        todo = "give one for each level, successive powers of two"
        raise UserError(f"strides {tuple(strides)} for {len(shapes)} levels", where="strides", todo=todo)
    if len(output_size) != 2 or min(output_size) < 1:
        raise UserError(f"output_size is {output_size!r}", where="output_size", todo="give (height, width)")
    for name, value, least in (("sampling_ratio", sampling_ratio, 0), ("max_adaptive_samples", cap, 1)):
        if value < least:
            raise UserError(f"{name} is {value!r}", where=name, todo=f"give {least} or more")
    if valid is not None and valid.shape != boxes.shape[:1]:
        raise UserError(
            f"valid has the shape {valid.shape} for {len(boxes)} boxes", where="valid", todo="give one each"
        )


def assign_levels(
    boxes: jax.Array,
    num_levels: int,
    finest_level: int,
    canonical_size: float = 224,
    canonical_level: int = 4,
) -> jax.Array:
    """FPN level [S] int32, 0 = finest, of boxes[S, 4]: floor(k0 + log2(sqrt(area) / 224)), clipped (Lin 2017).

    finest_level: log2 of the finest stride. 1e-6 is added before the floor, as in torchvision: a box of exactly 224
    pixels must not drop a level because the logarithm is rounded. detectron2 adds 1e-8 inside the logarithm, which
    float32 cannot represent; the two differ only for sizes within a millionth of a boundary. Boxes without area are on
    the finest level.
    """
    size = jnp.sqrt(box_ops.area(jax.lax.stop_gradient(boxes)))
    positive = size > 0
    level = canonical_level + jnp.log2(jnp.where(positive, size, 1) / canonical_size) + LEVEL_EPSILON
    level = jnp.where(positive, jnp.floor(level), finest_level)
    return jnp.clip(level - finest_level, 0, num_levels - 1).astype(jnp.int32)


@jax.custom_vjp
def _pool(levels: Levels, level: jax.Array, y: Taps, x: Taps) -> jax.Array:
    """[S, h, w, C] in the levels' type, by the implementation that suits the platform of the program."""
    return jax.lax.platform_dependent(levels, level, y, x, cpu=roi_taps.pool, default=roi_tiles.pool)


def _pool_forward(levels: Levels, level: jax.Array, y: Taps, x: Taps):
    return _pool(levels, level, y, x), (levels, level, y, x)


def _pool_backward(saved: tuple[Levels, jax.Array, Taps, Taps], gradient: jax.Array):
    """Gradients of the levels and of the weights; the latter cost nothing if they are not used."""
    of_levels = jax.lax.platform_dependent(
        *saved, gradient, cpu=roi_taps.levels_gradient, default=roi_tiles.levels_gradient
    )
    of_y, of_x = jax.lax.platform_dependent(
        *saved, gradient, cpu=roi_taps.weights_gradient, default=roi_tiles.weights_gradient
    )
    return of_levels, None, Taps(None, of_y), Taps(None, of_x)  # type: ignore[arg-type]


_pool.defvjp(_pool_forward, _pool_backward)
