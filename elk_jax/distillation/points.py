"""Points of lesions in a feature map, and the cells beside lesions (Alberb et al. 2024, CoMoTo).

Shape legend: B images, M padded boxes, N points of a box, h w cells of the map, C channels.

A point is a weighting of the cells, [h, w], that sums to 1, so that one product with the map reads all points of all
images: nothing is gathered, and a batch may be split over several devices.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.precision import at_least_float32

Sampling = Literal["bilinear", "cell"]
"""bilinear: at the exact place, between cells. cell: as published, in truncated cells (`published_cells`)."""
Count = Literal[1, 4, 5, 9]
"""Number of points per box."""

_CORNERS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))
_CROSS = ((0.5, 0.5), (0.0, 0.5), (1.0, 0.5), (0.5, 0.0), (0.5, 1.0))
LAYOUTS: dict[int, np.ndarray] = {
    1: np.array(_CROSS[:1]),
    4: np.array(_CORNERS),
    5: np.array(_CROSS),
    9: np.array(_CORNERS + _CROSS),
}
"""Number of points -> their places (x, y) in a box, 0 to 1: corners from the top left, centre, left, right, top,
bottom."""


class Points(NamedTuple):
    """Features at the points of lesions, averaged over the lesions of an image; zeros for an image without lesions."""

    values: jax.Array  # [B, N, C]
    present: jax.Array  # [B] bool: the image has a lesion


class Grid(NamedTuple):
    """A feature map over a canvas: cells (h, w) over pixels (H, W)."""

    cells: tuple[int, int]
    canvas: tuple[int, int]


def read(features: jax.Array, boxes: jax.Array, valid: jax.Array, canvas: tuple[int, int], count: Count,
         sampling: Sampling = "bilinear") -> Points:  # fmt: skip
    """The points of lesions in features [B, h, w, C]. boxes [B, M, 4] in pixels of the canvas (H, W), valid [B, M]."""
    grid = Grid((features.shape[1], features.shape[2]), canvas)
    weights = (cell_weights if sampling == "cell" else bilinear_weights)(boxes, grid, count)
    counts = valid.sum(1)
    mean = jnp.where(valid[:, :, None, None, None], weights, 0).sum(1) / jnp.maximum(counts, 1)[:, None, None, None]
    values = jnp.einsum("bnhw,bhwc->bnc", mean, at_least_float32(features))
    return Points(values, counts > 0)


def bilinear_weights(boxes: jax.Array, grid: Grid, count: Count) -> jax.Array:
    """Weights [B, M, N, h, w] of points between the centres of cells; beyond them, of the nearest cell."""
    places = point_places(boxes, count)

    def of_axis(axis: int, cells: int, pixels: int) -> jax.Array:
        at = jnp.clip(places[..., axis] * (cells / pixels) - 0.5, 0, cells - 1)
        return jnp.maximum(1 - jnp.abs(at[..., None] - jnp.arange(cells)), 0)

    (h, w), (height, width) = grid
    return of_axis(1, h, height)[..., :, None] * of_axis(0, w, width)[..., None, :]


def cell_weights(boxes: jax.Array, grid: Grid, count: Count) -> jax.Array:
    """Weights [B, M, N, h, w] of the published points: 1 in a cell, 0 elsewhere."""
    x, y = jnp.moveaxis(published_cells(boxes, grid, count), -1, 0)
    (h, w), _ = grid
    return jax.nn.one_hot(y, h)[..., :, None] * jax.nn.one_hot(x, w)[..., None, :]


def point_places(boxes: jax.Array, count: Count) -> jax.Array:
    """Places [..., N, 2] (x, y) in pixels of boxes [..., 4]."""
    boxes, layout = at_least_float32(boxes)[..., None, :], LAYOUTS[count]
    return boxes[..., :2] + layout * (boxes[..., 2:] - boxes[..., :2])


def published_cells(boxes: jax.Array, grid: Grid, count: Count) -> jax.Array:
    """Cells [..., N, 2] (x, y) int32 for boxes [..., 4], computed as in the published code.

    Corners are scaled by the ratio of the widths on both axes, truncated, and clipped to the map; a middle is the sum
    of two corners divided by two, rounded down.
    """
    (h, w), _ = grid
    last = jnp.array([w - 1, h - 1, w - 1, h - 1])
    corners = jnp.clip(_truncated(boxes, grid), 0, last)
    low, high = corners[..., None, :2], corners[..., None, 2:]
    layout = LAYOUTS[count]
    return jnp.where(layout == 0.0, low, jnp.where(layout == 1.0, high, (low + high) // 2))


def _truncated(boxes: jax.Array, grid: Grid) -> jax.Array:
    """Corners [..., 4] int32 of boxes [..., 4] in cells, as published: a side at the end of the map lies beyond it."""
    (_, w), (_, width) = grid
    return jnp.trunc(at_least_float32(boxes) * (w / width)).astype(jnp.int32)


def distinct_share(boxes: jax.Array, valid: jax.Array, grid: Grid, count: Count) -> jax.Array:
    """Mean over the valid boxes of (distinct cells among the N points) / N; 1 if there is no box.

    A lesion smaller than a cell has all its points in one cell, so there is nothing to align between them.
    """
    (h, w), (height, width) = grid
    ratio, last = jnp.array([w / width, h / height]), jnp.array([w - 1, h - 1])
    cells = jnp.clip(jnp.floor(point_places(boxes, count) * ratio), 0, last)
    same = (cells[..., :, None, :] == cells[..., None, :, :]).all(-1)  # [B, M, N, N]
    first = ~(same & jnp.tri(count, k=-1, dtype=bool)).any(-1)
    share, boxes_seen = first.mean(-1), valid.sum()
    return jnp.where(boxes_seen > 0, jnp.where(valid, share, 0).sum() / jnp.maximum(boxes_seen, 1), 1.0)


# ---- Beside the lesions ----------------------------------------------------------------------------------------------


def cells_outside(boxes: jax.Array, valid: jax.Array, grid: Grid) -> jax.Array:
    """[B, h, w] bool: cells that no valid box touches, however thin it is."""
    low, high = _cell_edges(grid)
    x = (boxes[..., None, 0] < high[1]) & (boxes[..., None, 2] > low[1])  # [B, M, w]
    y = (boxes[..., None, 1] < high[0]) & (boxes[..., None, 3] > low[0])  # [B, M, h]
    return ~(y[..., :, None] & x[..., None, :] & valid[..., None, None]).any(1)


def published_outside(boxes: jax.Array, valid: jax.Array, grid: Grid) -> jax.Array:
    """[B, h, w] bool: cells not excluded by the published code, which excludes from a box's first cell to before its
    last.

    A box that starts and ends in the same row or column of cells excludes none; one that reaches the end of the map
    also excludes the cells there.
    """
    corners, ((h, w), _) = _truncated(boxes, grid), grid
    low, high = corners[..., :2], corners[..., 2:]
    y = (jnp.arange(h) >= low[..., 1:]) & (jnp.arange(h) < high[..., 1:])
    x = (jnp.arange(w) >= low[..., :1]) & (jnp.arange(w) < high[..., :1])
    return ~(y[..., :, None] & x[..., None, :] & valid[..., None, None]).any(1)


def cells_of_breast(image: jax.Array, grid: Grid, air: float) -> jax.Array:
    """[B, h, w] bool: cells with a pixel of image [B, H, W, 1] brighter than air; padding is 0 and counts as air."""
    (h, w), (height, width) = grid
    rows, columns = -(-height // h), -(-width // w)
    padded = jnp.pad(image[..., 0], ((0, 0), (0, h * rows - height), (0, w * columns - width)))
    of_rows = padded.reshape(-1, h, rows, w * columns).max(2)  # first, as the columns of a cell are padded on a TPU
    return of_rows.reshape(-1, h, w, columns).max(3) > air


def draw_cells(features: jax.Array, allowed: jax.Array, count: Count, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(features [N, C] of N different cells of one image, drawn from the allowed ones; whether there are enough).

    features [h, w, C], allowed [h, w] bool. For one image: map over the batch, each with its own key.
    """
    order = jnp.where(allowed.reshape(-1), jax.random.uniform(rng, (allowed.size,)), -1.0)
    found, index = jax.lax.top_k(order, count)
    chosen = at_least_float32(features).reshape(allowed.size, -1)[index]
    return chosen, (found >= 0).all()


def _cell_edges(grid: Grid) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """((y of the first pixel of every row, x of every column), (the same of the ends)), in pixels."""
    edges = [np.arange(cells + 1) * (pixels / cells) for cells, pixels in zip(grid.cells, grid.canvas)]
    return (edges[0][:-1], edges[1][:-1]), (edges[0][1:], edges[1][1:])
