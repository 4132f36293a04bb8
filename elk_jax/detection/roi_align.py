"""ROIAlign: bilinear pooling of the levels of a feature pyramid inside boxes (He et al. 2017, Lin et al. 2017).

S boxes (RoIs), h w the output grid, T taps per bin and axis, R rows of the table; one image (map over the batch).

The bilinear weight of a pixel is a product of a vertical and a horizontal part, so everything is worked out per axis: a
bin of the grid reads T pixels ("taps") along each axis with T weights, and its value is the weighted sum over T x T
pixels. All levels lie in one flat table [R, C] of pixels, R = sum of H_l W_l; a RoI adds the first row of its own
level, and so is pooled from that level alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.detection import boxes as box_ops
from elk_jax.detection.boxes import as_boxes
from elk_jax.errors import UserError

LEVEL_EPSILON = 1e-6
"""Added before the floor in `assign_levels`, as torchvision does."""
UPDATES_PER_CHUNK = 512
"""Backward: RoIs of a chunk x taps of a bin. Small chunks stay in the cache, and bound the memory."""


class _Taps(NamedTuple):
    """What an axis of every bin reads: pixel[S, bins, T] int32, weight[S, bins, T] (0: does not count)."""

    pixel: jax.Array
    weight: jax.Array


def roi_align(
    features: jax.Array,
    boxes: jax.Array,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    max_adaptive_samples: int = 4,
) -> jax.Array:
    """Pool features[H, W, C] inside boxes[S, 4]: [S, h, w, C]. `multilevel_roi_align` of a single level.

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
    (as the features). The level of a box: see `assign_levels`. sampling_ratio: samples per bin and axis. 0: as many as
    the bin is pixels long, rounded up (adaptive, detectron2's default), but `max_adaptive_samples` at most, which in
    longer bins are evenly spread, more than a pixel apart; exactly detectron2's and torchvision's up to there. aligned:
    True shifts by half a pixel, so that the corner of a box is the corner of a pixel (detectron2's ROIAlignV2); False
    is torchvision's default: no shift, and boxes are one feature pixel wide and high at least.

    Samples further than one pixel outside the map count as 0, others move to its edge. Boxes that are not in valid[S],
    or not finite, give zeros and pass no gradient, whatever they hold. Interpolates and sums in float32 at least,
    forwards and backwards. Differentiable in reverse mode in the features, and in the boxes (through the bilinear
    weights).
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
    heights = np.array([f.shape[0] for f in features], np.int32)
    widths = np.array([f.shape[1] for f in features], np.int32)
    starts = np.concatenate([[0], np.cumsum(heights * widths)[:-1]]).astype(np.int32)
    height, width, start = (jnp.array(of_level)[level] for of_level in (heights, widths, starts))
    scaled = boxes * jnp.array(1 / np.array(strides), boxes.dtype)[level][:, None]

    bins_y, bins_x = output_size
    y = _axis_taps(scaled[:, 1], scaled[:, 3], height, bins_y, sampling_ratio, aligned, max_adaptive_samples)
    x = _axis_taps(scaled[:, 0], scaled[:, 2], width, bins_x, sampling_ratio, aligned, max_adaptive_samples)
    first_row = start[:, None, None] + y.pixel * width[:, None, None]
    y = _Taps(first_row, jnp.where(usable[:, None, None], y.weight, 0))
    table = jnp.concatenate([f.reshape(-1, f.shape[-1]) for f in features])
    return _pool(table, y, x)


def _as_floats(level: jax.Array) -> jax.Array:
    """Features whose means are not cut to whole numbers."""
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
    """UserError for shapes and settings that do not fit each other."""
    shapes = [level.shape for level in features]
    if not shapes or {len(shape) for shape in shapes} != {3} or len({shape[-1] for shape in shapes}) > 1:
        raise UserError(f"features have the shapes {shapes}", where="features", todo="give [H, W, C] of each level")
    if len(strides) != len(shapes) or any(high != 2 * low for low, high in pairwise(strides)):
        todo = "give one for each level, successive powers of two"
        raise UserError(f"strides {tuple(strides)} of {len(shapes)} levels", where="strides", todo=todo)
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

    finest_level: log2 of the finest stride. 1e-6 is added before the floor, as torchvision does: a box of exactly 224
    pixels must not fall a level by the rounding of the logarithm. detectron2 adds 1e-8 inside the logarithm, which
    float32 does not keep; the two differ only for sizes within a millionth of a boundary. Boxes without area are on the
    finest level.
    """
    size = jnp.sqrt(box_ops.area(jax.lax.stop_gradient(boxes)))
    positive = size > 0
    level = canonical_level + jnp.log2(jnp.where(positive, size, 1) / canonical_size) + LEVEL_EPSILON
    level = jnp.where(positive, jnp.floor(level), finest_level)
    return jnp.clip(level - finest_level, 0, num_levels - 1).astype(jnp.int32)


def _axis_taps(
    low: jax.Array,
    high: jax.Array,
    extent: jax.Array | int,
    bins: int,
    sampling_ratio: int,
    aligned: bool,
    cap: int,
) -> _Taps:
    """Taps along one axis of RoIs from low[S] to high[S], in pixels of a map of `extent` pixels (or [S])."""
    shift = 0.5 if aligned else 0.0
    start, length = low - shift, (high - shift) - (low - shift)
    if not aligned:
        length = jnp.maximum(length, 1)
    bin_length = (length / bins)[:, None]
    if sampling_ratio > 0:
        slots, samples = sampling_ratio, jnp.full_like(bin_length, sampling_ratio)
    else:
        slots, samples = cap, jnp.clip(jnp.ceil(jax.lax.stop_gradient(bin_length)), 0, cap)
    slot = jnp.arange(slots, dtype=start.dtype)
    used = slot < samples  # [S, slots]
    samples = jnp.maximum(samples, 1)
    in_bin = (slot + 0.5) * bin_length / samples
    bin_start = start[:, None] + jnp.arange(bins, dtype=start.dtype) * bin_length
    position = bin_start[:, :, None] + in_bin[:, None, :]  # [S, bins, slots]

    extent = jnp.broadcast_to(jnp.asarray(extent, jnp.int32), low.shape)[:, None, None]
    edge = extent.astype(start.dtype)
    counts = used[:, None, :] & (position >= -1) & (position <= edge)
    position = jnp.clip(position, 0, edge - 1)
    # A sample reads the pair of pixels around it; on the last pixel that is the last pair, with weights 0 and 1.
    first = jnp.clip(jnp.floor(jax.lax.stop_gradient(position)), 0, jnp.maximum(edge - 2, 0))
    fraction = position - first
    share = jnp.where(counts, 1 / samples[:, None, :], 0)
    pixel = first.astype(jnp.int32)
    return _Taps(
        jnp.concatenate([pixel, jnp.minimum(pixel + 1, extent - 1)], axis=-1),
        jnp.concatenate([share * (1 - fraction), share * fraction], axis=-1),
    )


@jax.custom_vjp
def _pool(table: jax.Array, y: _Taps, x: _Taps) -> jax.Array:
    """Weighted sums of the rows y.pixel + x.pixel of table[R, C]: [S, h, w, C] in the table's type.

    One term per pair of taps: XLA fuses the gathers and the sum into one loop, and no [S, h, w, T, T, C] is ever
    stored. (The program, and so its compile time, grows with T x T: 16 terms for two samples per bin and axis, 64 for
    four.)
    """
    pooled = jnp.zeros((), jnp.promote_types(table.dtype, y.weight.dtype))
    for a in range(y.pixel.shape[-1]):
        for b in range(x.pixel.shape[-1]):
            rows = y.pixel[:, :, None, a] + x.pixel[:, None, :, b]
            weights = y.weight[:, :, None, a] * x.weight[:, None, :, b]
            read = jnp.take(table, rows, axis=0, mode="clip")
            pooled = pooled + weights[..., None] * read.astype(pooled.dtype)
    return pooled.astype(table.dtype)


def _pool_forward(table: jax.Array, y: _Taps, x: _Taps) -> tuple[jax.Array, tuple[jax.Array, _Taps, _Taps]]:
    return _pool(table, y, x), (table, y, x)


def _pool_backward(saved: tuple[jax.Array, _Taps, _Taps], grad: jax.Array) -> tuple[jax.Array, _Taps, _Taps]:
    """Gradients of the table and, free of cost where nobody asks for them, of the weights.

    The table's gradient is a scatter-add of S h w T T rows. In chunks of RoIs it is several times as fast on a CPU as
    in one piece, and its memory is bounded. Sums are float32 at least also for a bfloat16 table.
    """
    table, y, x = saved
    compute = jnp.promote_types(table.dtype, y.weight.dtype)
    num = grad.shape[0]
    chunk = max(1, UPDATES_PER_CHUNK // (y.pixel.shape[-1] * x.pixel.shape[-1]))

    def in_chunks(array: jax.Array) -> jax.Array:  # padding: row 0 with weight 0
        array = jnp.pad(array, ((0, -num % chunk),) + ((0, 0),) * (array.ndim - 1))
        return array.reshape(-1, chunk, *array.shape[1:])

    def rows_of(y: _Taps, x: _Taps) -> jax.Array:
        return y.pixel[:, :, None, :, None] + x.pixel[:, None, :, None, :]  # [chunk, h, w, T, T]

    def add_to_table(total, chunk_of):
        y, x, grad = chunk_of
        weights = y.weight[:, :, None, :, None] * x.weight[:, None, :, None, :]
        updates = weights[..., None] * grad[:, :, :, None, None, :].astype(compute)
        return total.at[rows_of(y, x)].add(updates), None

    def weight_grads(chunk_of):
        y, x, grad = chunk_of
        read = jnp.take(table, rows_of(y, x), axis=0, mode="clip").astype(compute)
        product = jnp.einsum("shwyxc,shwc->shwyx", read, grad.astype(compute), precision="highest")
        y_grad = jnp.einsum("shwyx,swx->shy", product, x.weight, precision="highest")
        x_grad = jnp.einsum("shwyx,shy->swx", product, y.weight, precision="highest")
        return y_grad, x_grad

    chunks = jax.tree.map(in_chunks, (y, x, grad))
    # "+ 0 * integer": under shard_map the zeros must vary over the devices as what is added to them does.
    zeros = jnp.zeros(table.shape, compute) + (0 * y.pixel.sum()).astype(compute)
    total, _ = jax.lax.scan(add_to_table, zeros, chunks)
    y_grad, x_grad = jax.tree.map(lambda g: g.reshape(-1, *g.shape[2:])[:num], jax.lax.map(weight_grads, chunks))
    return total.astype(table.dtype), _Taps(None, y_grad), _Taps(None, x_grad)  # type: ignore[arg-type]


_pool.defvjp(_pool_forward, _pool_backward)
