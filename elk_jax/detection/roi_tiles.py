"""ROIAlign tile by tile: the form for accelerators.

B images, S RoIs of an image, h w the output grid, T taps per bin and axis, N tiles of an image, K = TILE x TILE cells
of a tile, C channels.

Every level is cut into aligned tiles of TILE x TILE cells. A RoI touches a rectangle of tiles of its level, and what it
takes from a tile is a matrix product: weights [h w, K] times the tile [K, C]. So ROIAlign is the product of a matrix of
blocks, most of them zero, with the tiles; its gradient is the product with the transposed matrix. Only blocks that are
not zero are ever made: a turn of a loop takes a few RoIs with some of the tiles that they touch (for the gradient, a
few tiles with some of the RoIs that touch them), until none is left. It is exact for every box; memory is read in whole
tiles, and nothing is scattered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from elk_jax.detection.roi_taps import Levels, Taps
from elk_jax.turns import expected_turns

TILE = 16
"""Cells along a side of a tile."""
ROIS, TILES_OF_ROI = 64, 2
"""RoIs of a turn, and tiles of each of them: what is read (17 MB of 256 bfloat16 channels) stays in fast memory."""
TILES, ROIS_OF_TILE = 32, 8
"""Gradient: tiles of a turn, and RoIs of each of them."""
TYPICAL = 6
"""Tiles that a RoI touches, and RoIs that touch a tile: most RoIs have sides of 14 to 28 cells of their level."""


IN_TILE = np.stack(np.divmod(np.arange(TILE * TILE, dtype=np.int32), TILE))
"""Row and column [2, K] of each cell in its tile."""


class _Blocks(NamedTuple):
    """Tiles and RoIs of B images, and which of them meet. touched: by each RoI; none where it reads nothing."""

    y: Taps  # [B S, ...]
    x: Taps
    of_rows: jax.Array  # [B S tile rows, h TILE] weights of the cells of every row of tiles, and
    of_columns: jax.Array  # [B S tile columns, w TILE] of every column
    tile: np.ndarray  # [N, 3] level, row and column (in tiles) of each
    images: int
    first: jax.Array  # [B S, 2] row and column of the first touched tile
    shape: jax.Array  # [B S, 2] rows and columns of touched tiles
    corner: jax.Array  # [B S] number of the first touched tile among the B N tiles
    across: jax.Array  # [B S] tiles in a row of the level


def pool(levels: Levels, level: jax.Array, y: Taps, x: Taps) -> jax.Array:
    """As `roi_taps.pool`."""
    sizes = _sizes(levels)

    def of_images(tiles: jax.Array, level: jax.Array, y: Taps, x: Taps) -> jax.Array:
        blocks = _blocks(sizes, level, y, x)
        flat = tiles.reshape(-1, *tiles.shape[2:])

        def turn(rois: jax.Array, start: jax.Array) -> jax.Array:
            found, place, there = _tiles_of(blocks, rois, start)
            weights = _outer(*_weights(blocks, rois[:, None], place, there))
            return _weighted("rgmk,rgkc->rmc", weights, flat[found])

        sums, place = _in_turns(blocks.shape.prod(-1), ROIS, TILES_OF_ROI, tiles.dtype, turn)
        return sums[place].reshape(*level.shape, y.weight.shape[2], x.weight.shape[2], -1)

    return _over_images(of_images)(_cut(levels), level, y, x)


def levels_gradient(levels: Levels, level: jax.Array, y: Taps, x: Taps, gradient: jax.Array) -> Levels:
    """As `roi_taps.levels_gradient`."""
    sizes = _sizes(levels)
    kind, channels = levels[0].dtype, levels[0].shape[-1]

    def of_images(level: jax.Array, y: Taps, x: Taps, gradient: jax.Array) -> tuple[jax.Array, ...]:
        blocks = _blocks(sizes, level, y, x)
        images, rois = level.shape
        flat = gradient.reshape(images * rois, -1, channels)
        so_far = jnp.cumsum(_meet(blocks, level), axis=-1, dtype=jnp.int32).reshape(-1, rois)  # [B N, S]
        count = len(blocks.tile)
        places = jnp.asarray(np.tile(blocks.tile[:, 1:], (images, 1)))

        def turn(tiles: jax.Array, start: jax.Array) -> jax.Array:
            """[tiles of a turn, K, C]. The RoI number n of a tile is after all those with at most n before them."""
            numbers = start + jnp.arange(ROIS_OF_TILE, dtype=jnp.int32)
            of_image = (so_far[tiles][:, None, :] <= numbers[:, None]).sum(-1, dtype=jnp.int32)
            there = of_image < rois
            found = jnp.minimum(of_image, rois - 1) + (tiles // count * rois)[:, None]
            weights = _outer(*_weights(blocks, found, places[tiles][:, None], there))
            return _weighted("tgmk,tgmc->tkc", weights, flat[found])

        sums, place = _in_turns(so_far[:, -1], TILES, ROIS_OF_TILE, kind, turn)
        of_levels = np.cumsum([rows * columns for rows, columns in sizes])[:-1]
        return tuple(sums[of_level] for of_level in jnp.split(place.reshape(images, count), of_levels, axis=1))

    parts = _over_images(of_images)(level, y, x, gradient)
    return tuple(_joined(part, f.shape) for part, f in zip(parts, levels, strict=True))


def weights_gradient(
    levels: Levels, level: jax.Array, y: Taps, x: Taps, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """As `roi_taps.weights_gradient`."""
    sizes = _sizes(levels)

    def of_images(tiles: jax.Array, level: jax.Array, y: Taps, x: Taps, gradient: jax.Array):
        blocks = _blocks(sizes, level, y, x)
        flat = tiles.reshape(-1, *tiles.shape[2:])
        of_roi = gradient.reshape(-1, *gradient.shape[2:])

        def turn(rois: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
            found, place, there = _tiles_of(blocks, rois, start)
            of_y, of_x = _weights(blocks, rois[:, None], place, there)
            product = jnp.einsum(
                "rhwc,rgkc->rghwk", of_roi[rois], flat[found], precision="highest", preferred_element_type=of_y.dtype
            )
            return (
                _of_taps(blocks.y.pixel[rois], place[..., 0], IN_TILE[0], (product * of_x[:, :, None]).sum(3)),
                _of_taps(blocks.x.pixel[rois], place[..., 1], IN_TILE[1], (product * of_y[:, :, :, None]).sum(2)),
            )

        sums, order = _in_turns(blocks.shape.prod(-1), ROIS, TILES_OF_ROI, y.weight.dtype, turn)
        return jax.tree.map(lambda sum: sum[order].reshape(*level.shape, *sum.shape[1:]), sums)

    return _over_images(of_images)(_cut(levels), level, y, x, gradient)


# Tiles.


def _sizes(levels: Levels) -> tuple[tuple[int, int], ...]:
    """Rows and columns of tiles of each level."""
    return tuple((-(-f.shape[0] // TILE), -(-f.shape[1] // TILE)) for f in levels)


def _cut(levels: Levels) -> jax.Array:
    """[N, K, C] of one image, level by level, row by row; 0 beyond the edges."""
    tiles = []
    for f, (rows, columns) in zip(levels, _sizes(levels), strict=True):
        f = jnp.pad(f, ((0, rows * TILE - f.shape[0]), (0, columns * TILE - f.shape[1]), (0, 0)))
        f = f.reshape(rows, TILE, columns, TILE, -1).swapaxes(1, 2)
        tiles.append(f.reshape(rows * columns, TILE * TILE, -1))
    return jnp.concatenate(tiles)


def _joined(tiles: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The level of a shape [H, W, C] from its tiles."""
    rows, columns = (-(-size // TILE) for size in shape[:2])
    cells = tiles.reshape(rows, columns, TILE, TILE, -1).swapaxes(1, 2)
    return cells.reshape(rows * TILE, columns * TILE, -1)[: shape[0], : shape[1]]


# Blocks.


def _blocks(sizes: tuple[tuple[int, int], ...], level: jax.Array, y: Taps, x: Taps) -> _Blocks:
    """Of level[B, S] and taps[B, S, ...]."""
    images = len(level)
    tile = np.concatenate(
        [[(number, *place) for place in np.ndindex(*size)] for number, size in enumerate(sizes)]
    ).astype(np.int32)
    starts = np.cumsum([0, *(rows * columns for rows, columns in sizes[:-1])]).astype(np.int32)
    y, x = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), (y, x))
    lowest = jnp.stack([axis.pixel.min((1, 2)) for axis in (y, x)], axis=-1) // TILE
    highest = jnp.stack([axis.pixel.max((1, 2)) for axis in (y, x)], axis=-1) // TILE
    reads = (y.weight != 0).any((1, 2)) & (x.weight != 0).any((1, 2))
    of_image = jnp.arange(images, dtype=jnp.int32)[:, None] * len(tile)
    across = jnp.array([columns for _, columns in sizes], jnp.int32)[level].reshape(-1)
    start = (of_image + jnp.array(starts)[level]).reshape(-1)
    return _Blocks(
        y=y,
        x=x,
        of_rows=_of_cells(y, max(rows for rows, _ in sizes)),
        of_columns=_of_cells(x, max(columns for _, columns in sizes)),
        tile=tile,
        images=images,
        first=lowest,
        shape=jnp.where(reads[:, None], highest - lowest + 1, 0),
        corner=start + lowest[:, 0] * across + lowest[:, 1],
        across=across,
    )


def _meet(blocks: _Blocks, level: jax.Array) -> jax.Array:
    """[B, N, S] bool: whether a RoI touches a tile."""
    of_level, *places = (column[:, None] for column in blocks.tile.T)
    meet = of_level == level[:, None, :]
    for axis, place in enumerate(places):
        first, count = (a[:, axis].reshape(blocks.images, 1, -1) for a in (blocks.first, blocks.shape))
        meet &= (place >= first) & (place < first + count)
    return meet


def _tiles_of(blocks: _Blocks, rois: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of rois[R] the TILES_OF_ROI = G tiles from number `start` on: [R, G] their numbers among all, [R, G, 2] row and
    column, [R, G] whether the RoI has so many."""
    rows, columns = blocks.shape[rois].T[:, :, None]
    number = start + jnp.arange(TILES_OF_ROI, dtype=jnp.int32)
    there = number < rows * columns
    place = jnp.stack(jnp.divmod(jnp.where(there, number, 0), jnp.maximum(columns, 1)), axis=-1)
    found = blocks.corner[rois, None] + place[..., 0] * blocks.across[rois, None] + place[..., 1]
    return found, blocks.first[rois][:, None, :] + place, there


# Products.


def _of_cells(taps: Taps, tiles: int) -> jax.Array:
    """[R tiles, bins TILE]: the weights of every bin of taps[R, bins, T] for the cells of an axis of so many tiles."""
    cells = jnp.arange(tiles * TILE, dtype=jnp.int32)
    weights = jnp.where(taps.pixel[..., None] == cells, taps.weight[..., None], 0).sum(2)
    return weights.reshape(*weights.shape[:2], tiles, TILE).swapaxes(1, 2).reshape(len(weights) * tiles, -1)


def _weights(blocks: _Blocks, rois: jax.Array, place: jax.Array, there: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[..., h, K] and [..., w, K]: weights along each axis that rois[...] have for the tiles at place[..., 2]; 0 where
    there[...] is False."""

    def of_axis(axis: int, of_tiles: jax.Array) -> jax.Array:
        count = len(of_tiles) // len(blocks.corner)
        narrow = jnp.where(there[..., None], of_tiles[rois * count + place[..., axis]], 0)
        bins = narrow.shape[-1] // TILE
        # To all cells of a tile, by the matrix unit: a product with ones and zeros is exact.
        spread = np.kron(np.eye(bins), np.arange(TILE)[:, None] == IN_TILE[axis]).astype(narrow.dtype)
        wide = jnp.einsum("...n,nk->...k", narrow, spread, precision="highest")
        return wide.reshape(*wide.shape[:-1], bins, -1)

    return of_axis(0, blocks.of_rows), of_axis(1, blocks.of_columns)


def _outer(y: jax.Array, x: jax.Array) -> jax.Array:
    """[..., h w, K]."""
    both = y[..., :, None, :] * x[..., None, :, :]
    return both.reshape(*y.shape[:-2], -1, y.shape[-1])


def _of_taps(pixel: jax.Array, place: jax.Array, in_tile: np.ndarray, of_cells: jax.Array) -> jax.Array:
    """[R, bins, T]: what of_cells[R, G, bins, K] hold for the pixel[R, bins, T] of an axis that each tap reads."""
    cells = place[..., None] * TILE + in_tile  # [R, G, K]
    same = pixel[:, None, :, :, None] == cells[:, :, None, None, :]
    return jnp.where(same, of_cells[:, :, :, None, :], 0).sum((1, -1))


def _weighted(product: str, weights: jax.Array, read: jax.Array) -> jax.Array:
    """A product of float32 weights with what is read from memory, summed in float32 (or float64).

    A narrow format is not made float32 first: the weights are split into two numbers of that format, which keeps 16
    bits of them, and the matrix unit sums both products in float32.
    """
    compute = jnp.promote_types(weights.dtype, read.dtype)
    if jnp.finfo(read.dtype).bits >= jnp.finfo(compute).bits:
        return jnp.einsum(product, weights.astype(compute), read, precision="highest", preferred_element_type=compute)
    kind = jnp.finfo(read.dtype)
    # Not a cast there and back, which a compiler may leave out.
    high = jax.lax.reduce_precision(weights, kind.nexp, kind.nmant)
    halves = (half.astype(read.dtype) for half in (high, weights - high))
    above, below = (jnp.einsum(product, half, read, preferred_element_type=compute) for half in halves)
    return above + below


# Loops.


def _in_turns(counts: jax.Array, at_once: int, group: int, kind: Any, turn: Callable[..., Any]) -> Any:
    """For each owner n the sum of turn(owners, start) over start = 0, group, ... below counts[n], in type `kind`.

    `turn` takes `at_once` owners and gives arrays with one row for each, 0 beyond an owner's count. Owners of similar
    counts come together: returned are the sums, and place[n], the row of owner n in them.
    """
    order = jnp.argsort(-counts)
    padded = jnp.pad(order, (0, -len(order) % at_once), mode="edge").reshape(-1, at_once)

    def of_owners(owners: jax.Array) -> Any:
        most = counts[owners].max()
        # "+ 0 * integer": under shard_map the zeros must vary over the devices as what is added to them does.
        zeros = jax.tree.map(
            lambda sum: jnp.zeros(sum.shape, sum.dtype) + (0 * most).astype(sum.dtype),
            jax.eval_shape(turn, owners, most),
        )

        def add(state):
            start, sums = state
            return start + group, jax.tree.map(jnp.add, sums, turn(owners, start))

        with expected_turns(-(-TYPICAL // group)):
            _, sums = jax.lax.while_loop(lambda state: state[0] < most, add, (0 * most, zeros))
        return jax.tree.map(lambda sum: sum.astype(kind), sums)

    parts = jax.lax.map(of_owners, padded)
    return jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:]), parts), jnp.argsort(order)


def _over_images(of_images: Callable[..., Any]) -> Callable[..., Any]:
    """A function of one image from one of B: under `vmap` images are joined, since a `while_loop` would copy all that
    it carries in every turn."""

    @custom_vmap
    def joined(*arrays):
        return of_images(*arrays)

    @joined.def_vmap
    def _(size, is_batched, *arrays):
        def merge(array, batched):
            array = array if batched else jnp.broadcast_to(array, (size, *array.shape))
            return array.reshape(-1, *array.shape[2:])

        of_all = joined(*jax.tree.map(merge, arrays, tuple(is_batched)))
        apart = jax.tree.map(lambda array: array.reshape(size, -1, *array.shape[1:]), of_all)
        return apart, jax.tree.map(lambda _: True, apart)

    def of_image(*arrays):
        return jax.tree.map(lambda array: array[0], joined(*jax.tree.map(lambda array: array[None], arrays)))

    return of_image
