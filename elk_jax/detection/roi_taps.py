"""The taps of ROIAlign's bins along each axis, and ROIAlign pixel by pixel: the implementation for CPUs.

S boxes (RoIs), h w the output grid, T taps per bin and axis, R rows of the table; for one image (map over the batch).

The bilinear weight of a pixel is a product of a vertical and a horizontal part, so everything is computed per axis: a
bin of the grid reads T pixels ("taps") along each axis with T weights, and its value is the weighted sum over T x T
pixels. Here all levels are in one flat table [R, C] of pixels, R = sum of H_l W_l, and a RoI adds the first row of its
level. A pair of taps is one gather: pixels that are read again are in the cache of a CPU, and unused taps cost nothing.
On an accelerator each gather is a pass through memory (see `roi_tiles`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

UPDATES_PER_CHUNK = 512
"""Backward: RoIs of a chunk x taps of a bin. Small chunks stay in the cache and bound the memory."""

Levels = tuple[jax.Array, ...]
"""[H_l, W_l, C] of each level of a pyramid, fine to coarse."""


class Taps(NamedTuple):
    """Taps of every bin along an axis: pixel[S, bins, T] int32 in the RoI's level, weight[S, bins, T] (0: unused)."""

    pixel: jax.Array
    weight: jax.Array


def axis_taps(
    low: jax.Array,
    high: jax.Array,
    extent: jax.Array | int,
    bins: int,
    sampling_ratio: int,
    aligned: bool,
    cap: int,
) -> Taps:
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
    slot = jnp.where(used, slot, 0)  # the others read the same as the first one, with weight 0
    samples = jnp.maximum(samples, 1)
    in_bin = (slot + 0.5) * bin_length / samples
    bin_start = start[:, None] + jnp.arange(bins, dtype=start.dtype) * bin_length
    position = bin_start[:, :, None] + in_bin[:, None, :]  # [S, bins, slots]

    extent = jnp.broadcast_to(jnp.asarray(extent, jnp.int32), low.shape)[:, None, None]
    edge = extent.astype(start.dtype)
    counts = used[:, None, :] & (position >= -1) & (position <= edge)
    position = jnp.clip(position, 0, edge - 1)
    # A sample reads the pair of pixels around it; on the last pixel this is the last pair, with weights 0 and 1.
    first = jnp.clip(jnp.floor(jax.lax.stop_gradient(position)), 0, jnp.maximum(edge - 2, 0))
    fraction = position - first
    share = jnp.where(counts, 1 / samples[:, None, :], 0)
    pixel = first.astype(jnp.int32)
    return Taps(
        jnp.concatenate([pixel, jnp.minimum(pixel + 1, extent - 1)], axis=-1),
        jnp.concatenate([share * (1 - fraction), share * fraction], axis=-1),
    )


def pool(levels: Levels, level: jax.Array, y: Taps, x: Taps) -> jax.Array:
    """Weighted sums of the pixels (y.pixel, x.pixel) in the level[S] of each RoI: [S, h, w, C] in the features' type.

    One term per pair of taps: XLA fuses the gathers and the sum into one loop, and never stores [S, h, w, T, T, C]. The
    program, and therefore its compile time, grows with T x T: 16 terms for two samples per bin and axis, 64 for four.
    """
    table, y = _table(levels), _rows(levels, level, y)
    pooled = jnp.zeros((), jnp.promote_types(table.dtype, y.weight.dtype))
    for a in range(y.pixel.shape[-1]):
        for b in range(x.pixel.shape[-1]):
            rows = y.pixel[:, :, None, a] + x.pixel[:, None, :, b]
            weights = y.weight[:, :, None, a] * x.weight[:, None, :, b]
            read = jnp.take(table, rows, axis=0, mode="clip")
            pooled = pooled + weights[..., None] * read.astype(pooled.dtype)
    return pooled.astype(table.dtype)


def levels_gradient(levels: Levels, level: jax.Array, y: Taps, x: Taps, gradient: jax.Array) -> Levels:
    """Gradients of the levels from that of `pool`, gradient[S, h, w, C].

    This is a scatter-add of S h w T T rows. In chunks of RoIs it is several times faster on a CPU than in one piece,
    and its memory is bounded. Sums are at least float32, even for bfloat16 levels.
    """
    table, y = _table(levels), _rows(levels, level, y)
    compute = jnp.promote_types(table.dtype, y.weight.dtype)

    def add_to_table(total, chunk_of):
        y, x, grad = chunk_of
        weights = y.weight[:, :, None, :, None] * x.weight[:, None, :, None, :]
        updates = weights[..., None] * grad[:, :, :, None, None, :].astype(compute)
        return total.at[_pairs(y, x)].add(updates), None

    # "+ 0 * integer": under shard_map the zeros must vary over devices like the values added to them.
    zeros = jnp.zeros(table.shape, compute) + (0 * y.pixel.sum()).astype(compute)
    total, _ = jax.lax.scan(add_to_table, zeros, _in_chunks(y, x, gradient))
    total = total.astype(table.dtype)
    parts = jnp.split(total, _starts(levels)[1:])
    return tuple(part.reshape(of.shape) for part, of in zip(parts, levels, strict=True))


def weights_gradient(
    levels: Levels, level: jax.Array, y: Taps, x: Taps, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradients of y.weight and x.weight from that of `pool`, gradient[S, h, w, C]."""
    table, y = _table(levels), _rows(levels, level, y)
    compute = jnp.promote_types(table.dtype, y.weight.dtype)

    def of_chunk(chunk_of):
        y, x, grad = chunk_of
        read = jnp.take(table, _pairs(y, x), axis=0, mode="clip").astype(compute)
        product = jnp.einsum("shwyxc,shwc->shwyx", read, grad.astype(compute), precision="highest")
        y_grad = jnp.einsum("shwyx,swx->shy", product, x.weight, precision="highest")
        x_grad = jnp.einsum("shwyx,shy->swx", product, y.weight, precision="highest")
        return y_grad, x_grad

    parts = jax.lax.map(of_chunk, _in_chunks(y, x, gradient))
    y_grad, x_grad = jax.tree.map(lambda g: g.reshape(-1, *g.shape[2:])[: len(gradient)], parts)
    return y_grad, x_grad


def _table(levels: Levels) -> jax.Array:
    return jnp.concatenate([f.reshape(-1, f.shape[-1]) for f in levels])


def _starts(levels: Sequence[jax.Array]) -> np.ndarray:
    """The first row of each level in the table."""
    return np.cumsum([0, *(f.shape[0] * f.shape[1] for f in levels[:-1])]).astype(np.int32)


def _rows(levels: Levels, level: jax.Array, y: Taps) -> Taps:
    """y as rows of the table, to which the pixels of x are added."""
    width = jnp.array([f.shape[1] for f in levels], jnp.int32)[level]
    start = jnp.array(_starts(levels))[level]
    return y._replace(pixel=start[:, None, None] + y.pixel * width[:, None, None])


def _pairs(y: Taps, x: Taps) -> jax.Array:
    """Rows [chunk, h, w, T, T] of the table."""
    return y.pixel[:, :, None, :, None] + x.pixel[:, None, :, None, :]


def _in_chunks(y: Taps, x: Taps, gradient: jax.Array) -> tuple[Taps, Taps, jax.Array]:
    """[chunks, RoIs of a chunk, ...] each; the padding reads row 0 with weight 0."""
    chunk = max(1, UPDATES_PER_CHUNK // (y.pixel.shape[-1] * x.pixel.shape[-1]))

    def split(array: jax.Array) -> jax.Array:
        array = jnp.pad(array, ((0, -len(array) % chunk),) + ((0, 0),) * (array.ndim - 1))
        return array.reshape(-1, chunk, *array.shape[1:])

    return jax.tree.map(split, (y, x, gradient))
