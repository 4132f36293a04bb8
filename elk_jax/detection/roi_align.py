"""ROIAlign: bilinear pooling of a feature map inside boxes (He et al. 2017), one level or an FPN's levels.

S boxes (RoIs), h w the output grid, T taps per bin and axis, R rows of the table; one image (map over the
batch).

The bilinear weight of a pixel is a product of a vertical and a horizontal part, so everything is worked out
per axis: a bin of the grid reads T pixels ("taps") along each axis with T weights, and the bin's value is the
weighted sum over T x T pixels. All levels lie in one flat table [R, C] of pixels, R = sum of H_l W_l, and a
RoI only adds the first row of its level: no RoI is pooled from a level that it is not on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.detection import boxes as box_ops
from elk_jax.precision import at_least_float32

LEVEL_EPSILON = 1e-6


class _Taps(NamedTuple):
    """What one axis of every bin reads: pixel[S, bins, T] int32 and weight[S, bins, T], 0 for taps that do
    not count.
    """

    pixel: jax.Array
    weight: jax.Array


def _axis_taps(
    low: jax.Array,
    high: jax.Array,
    extent: jax.Array,
    bins: int,
    sampling_ratio: int,
    aligned: bool,
    cap: int,
) -> _Taps:
    """Taps of RoIs from `low`[S] to `high`[S] in pixels of a map that is `extent`[S] pixels long."""
    start = low - 0.5 if aligned else low
    length = high - low if aligned else jnp.maximum(high - low, 1)
    bin_length = (length / bins)[:, None]
    if sampling_ratio > 0:
        slots = sampling_ratio
        samples = jnp.full_like(bin_length, sampling_ratio)
    else:
        slots = cap
        samples = jnp.clip(jnp.ceil(jax.lax.stop_gradient(bin_length)), 0, cap)
    slot = jnp.arange(slots, dtype=start.dtype)
    used = slot < samples
    per_sample = jnp.maximum(samples, 1)
    inside_bin = (slot + 0.5) / per_sample * bin_length  # [S, slots]
    position = (start[:, None] + jnp.arange(bins, dtype=start.dtype) * bin_length)[:, :, None] + inside_bin[
        :, None
    ]

    limit = extent[:, None, None].astype(start.dtype)
    counts = used[:, None] & (position >= -1) & (position <= limit)
    position = jnp.clip(position, 0, limit - 1)
    # The last pixel has no right neighbour: there the pair is (last - 1, last) with all weight on the second.
    first = jnp.clip(jnp.floor(jax.lax.stop_gradient(position)), 0, jnp.maximum(limit - 2, 0))
    fraction = position - first
    share = jnp.where(counts, 1 / per_sample[:, None], 0)
    pixel = first.astype(jnp.int32)
    second = jnp.minimum(pixel + 1, extent[:, None, None] - 1)
    return _Taps(
        jnp.concatenate([pixel, second], axis=-1),
        jnp.concatenate([share * (1 - fraction), share * fraction], axis=-1),
    )


def assign_levels(
    boxes: jax.Array,
    num_levels: int,
    finest_level: int,
    canonical_size: float = 224,
    canonical_level: int = 4,
) -> jax.Array:
    """FPN level [S] int32, 0 = finest, of boxes[S, 4]: floor(k0 + log2(sqrt(area) / 224)), clipped (Lin 2017,
    eq. 1).

    finest_level: log2 of the finest stride. 1e-6 is added before the floor, as torchvision does: a box of
    exactly 224 pixels must not fall a level by the rounding of the logarithm. detectron2 adds 1e-8 inside the
    logarithm, which is lost in float32; the two differ only for sizes less than a millionth below a boundary.
    Boxes without area are on the finest level.
    """
    size = jnp.sqrt(box_ops.area(boxes))
    positive = size > 0
    level = canonical_level + jnp.log2(jnp.where(positive, size, 1) / canonical_size) + LEVEL_EPSILON
    level = jnp.where(positive, jnp.floor(level), finest_level)
    return jnp.clip(level - finest_level, 0, num_levels - 1).astype(jnp.int32)


def multilevel_roi_align(
    features: Sequence[jax.Array],
    boxes: jax.Array,
    output_size: int | tuple[int, int],
    strides: Sequence[int],
    sampling_ratio: int,
    aligned: bool,
    canonical_size: float = 224,
    canonical_level: int = 4,
    valid: jax.Array | None = None,
    max_adaptive_samples: int = 4,
) -> jax.Array:
    """`roi_align` of each of boxes[S, 4] (image pixels) on its own level of features ([H_l, W_l, C], ...):
    [S, h, w, C].

    strides: image pixels per feature pixel of each level, fine to coarse, powers of two. See `assign_levels`
    for the level. Boxes not in valid[S] give zeros, and pass no gradient, whatever they hold.
    """
    boxes = at_least_float32(boxes)
    if valid is not None:
        boxes = jnp.where(valid[:, None], boxes, 0)
    finest = int(np.log2(strides[0]))
    level = assign_levels(
        jax.lax.stop_gradient(boxes), len(features), finest, canonical_size, canonical_level
    )
    heights, widths = (np.array([f.shape[axis] for f in features], np.int32) for axis in (0, 1))
    first_rows = np.concatenate([[0], np.cumsum(heights * widths)[:-1]]).astype(np.int32)
    scaled = boxes / jnp.array(strides, boxes.dtype)[level][:, None]
    bins_y, bins_x = (output_size, output_size) if isinstance(output_size, int) else output_size
    width = jnp.array(widths)[level]
    y = _axis_taps(
        scaled[:, 1],
        scaled[:, 3],
        jnp.array(heights)[level],
        bins_y,
        sampling_ratio,
        aligned,
        max_adaptive_samples,
    )
    x = _axis_taps(scaled[:, 0], scaled[:, 2], width, bins_x, sampling_ratio, aligned, max_adaptive_samples)
    if valid is not None:
        y = y._replace(weight=jnp.where(valid[:, None, None], y.weight, 0))
    y = y._replace(pixel=jnp.array(first_rows)[level][:, None, None] + y.pixel * width[:, None, None])
    table = jnp.concatenate([f.reshape(-1, f.shape[-1]) for f in features])
    return _pool(table, y, x)


def roi_align(
    features: jax.Array,
    boxes: jax.Array,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    max_adaptive_samples: int = 4,
) -> jax.Array:
    """Pool features[H, W, C] inside boxes[S, 4]: [S, h, w, C] in the features' type.

    output_size: (h, w), or one number for both. spatial_scale: feature pixels per image pixel (1 / stride).
    sampling_ratio: samples per bin and axis; 0: as many as the bin is pixels long, rounded up (adaptive,
    detectron2's default), but `max_adaptive_samples` at most, which then lie further than a pixel apart.
    aligned: True shifts by half a pixel, so that a box's corner is a corner of pixels (detectron2's
    ROIAlignV2); False is torchvision's default: no shift, and boxes are one feature pixel wide and high at
    least. Samples further than one pixel outside the map count as 0, others are moved to its edge.
    Interpolates and sums in float32 at least. Differentiable in the features, and in the boxes (through the
    bilinear weights).
    """
    boxes = at_least_float32(boxes) * spatial_scale
    height, width, channels = features.shape
    bins_y, bins_x = (output_size, output_size) if isinstance(output_size, int) else output_size
    extent = jnp.full(boxes.shape[0], height, jnp.int32), jnp.full(boxes.shape[0], width, jnp.int32)
    y = _axis_taps(boxes[:, 1], boxes[:, 3], extent[0], bins_y, sampling_ratio, aligned, max_adaptive_samples)
    x = _axis_taps(boxes[:, 0], boxes[:, 2], extent[1], bins_x, sampling_ratio, aligned, max_adaptive_samples)
    return _pool(features.reshape(-1, channels), y._replace(pixel=y.pixel * width), x)


def _pool(table: jax.Array, y: _Taps, x: _Taps) -> jax.Array:
    """Weighted sums of the rows y.pixel + x.pixel of table[R, C]: [S, h, w, C] in the table's type."""
    rows = y.pixel[:, :, None, :, None] + x.pixel[:, None, :, None, :]  # [S, h, w, T, T]
    weights = y.weight[:, :, None, :, None] * x.weight[:, None, :, None, :]
    compute = jnp.promote_types(table.dtype, weights.dtype)
    pooled = jnp.einsum("shwyx,shwyxc->shwc", weights.astype(compute), table.astype(compute)[rows])
    return pooled.astype(table.dtype)
