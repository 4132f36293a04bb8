"""ROIAlign tile by tile: the implementation for accelerators.

S RoIs, h w the output grid, T taps per bin and axis, N tiles, K = TILE x TILE cells of a tile, C channels; one image.

Every level is divided into aligned tiles of TILE x TILE cells. A RoI touches a rectangle of tiles of its level, and a
tile contributes to it by a matrix product: weights [h w, K] times the tile [K, C]. So ROIAlign is the product of a
block matrix, most of whose blocks are zero, with the tiles; its gradient is the product with the transposed matrix.
Only nonzero blocks are ever computed: a turn of a loop takes a few RoIs with some of the tiles that they touch (for the
gradient, a few tiles with some of the RoIs that touch them), until none are left. The result is exact for every box;
memory is read in whole tiles, and nothing is scattered.

Images are processed one after another even under `vmap`: the tiles of one image fit in the fast memory of a TPU, and a
loop over several at once would copy everything that it carries in every turn.
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
"""Cells per side of a tile."""
ROIS, TILES_OF_ROI = 64, 2
"""RoIs per turn, and tiles of each: the data read (17 MB with 256 bfloat16 channels) stays in fast memory."""
TILES, ROIS_OF_TILE = 32, 8
"""Gradient: tiles per turn, and RoIs of each."""
TYPICAL = 6
"""Tiles touched by a RoI, and RoIs that touch a tile: most RoIs have sides of 14 to 28 cells of their level."""
IN_TILE = np.stack(np.divmod(np.arange(TILE * TILE, dtype=np.int32), TILE))
"""Row and column [2, K] of each cell within its tile."""


class _Blocks(NamedTuple):
    """The tiles that the RoIs touch, and the weights."""

    tile: np.ndarray  # [N, 3] level, row and column (in tiles) of each tile
    level: jax.Array  # [S]
    first: jax.Array  # [S, 2] row and column of the first tile that a RoI touches
    shape: jax.Array  # [S, 2] rows and columns of touched tiles; 0 if a RoI reads nothing
    corner: jax.Array  # [S] number of the first touched tile
    across: jax.Array  # [S] tiles in a row of the level
    of_rows: jax.Array  # [S rows, h TILE] weights for the cells of each row of tiles
    of_columns: jax.Array  # [S columns, w TILE] of each column of tiles


def pool(levels: Levels, level: jax.Array, y: Taps, x: Taps) -> jax.Array:
    """Like `roi_taps.pool`."""

    def of_image(levels: Levels, level: jax.Array, y: Taps, x: Taps) -> jax.Array:
        tiles, blocks = _cut(levels), _blocks(_sizes(levels), level, y, x)

        def turn(rois: jax.Array, start: jax.Array) -> jax.Array:
            found, place, there = _tiles_of(blocks, rois, start)
            weights = _outer(*_weights(blocks, rois[:, None], place, there))
            return _weighted("rgmk,rgkc->rmc", weights, tiles[found])

        sums, place = _in_turns(blocks.shape.prod(-1), ROIS, TILES_OF_ROI, tiles.dtype, turn)
        return sums[place].reshape(len(level), y.weight.shape[1], x.weight.shape[1], -1)

    return _image_by_image(of_image)(levels, level, y, x)


def levels_gradient(levels: Levels, level: jax.Array, y: Taps, x: Taps, gradient: jax.Array) -> Levels:
    """Like `roi_taps.levels_gradient`."""
    sizes, shapes, kind = _sizes(levels), [f.shape for f in levels], levels[0].dtype

    def of_image(level: jax.Array, y: Taps, x: Taps, gradient: jax.Array) -> Levels:
        blocks = _blocks(sizes, level, y, x)
        of_roi = gradient.reshape(len(level), -1, gradient.shape[-1])
        so_far = jnp.cumsum(_meet(blocks), axis=1, dtype=jnp.int32)  # [N, S]
        places = jnp.asarray(blocks.tile[:, 1:])

        def turn(tiles: jax.Array, start: jax.Array) -> jax.Array:
            """[tiles of a turn, K, C]. RoI number n of a tile follows all RoIs whose cumulative count is at most n."""
            numbers = start + jnp.arange(ROIS_OF_TILE, dtype=jnp.int32)
            found = (so_far[tiles][:, None, :] <= numbers[:, None]).sum(-1, dtype=jnp.int32)
            there, found = found < len(level), jnp.minimum(found, len(level) - 1)
            weights = _outer(*_weights(blocks, found, places[tiles][:, None], there))
            return _weighted("tgmk,tgmc->tkc", weights, of_roi[found])

        sums, place = _in_turns(so_far[:, -1], TILES, ROIS_OF_TILE, kind, turn)
        of_levels = jnp.split(place, np.cumsum([rows * columns for rows, columns in sizes])[:-1])
        return tuple(_joined(sums[of_level], shape) for of_level, shape in zip(of_levels, shapes, strict=True))

    return _image_by_image(of_image)(level, y, x, gradient)


def weights_gradient(
    levels: Levels, level: jax.Array, y: Taps, x: Taps, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Like `roi_taps.weights_gradient`."""

    def of_image(levels: Levels, level: jax.Array, y: Taps, x: Taps, gradient: jax.Array) -> Any:
        tiles, blocks = _cut(levels), _blocks(_sizes(levels), level, y, x)

        def turn(rois: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
            found, place, there = _tiles_of(blocks, rois, start)
            of_y, of_x = _weights(blocks, rois[:, None], place, there)
            product = jnp.einsum(
                "rhwc,rgkc->rghwk",
                gradient[rois],
                tiles[found],
                precision="highest",
                preferred_element_type=of_y.dtype,
            )
            return (
                _of_taps(y.pixel[rois], place[..., 0], IN_TILE[0], (product * of_x[:, :, None]).sum(3)),
                _of_taps(x.pixel[rois], place[..., 1], IN_TILE[1], (product * of_y[:, :, :, None]).sum(2)),
            )

        sums, order = _in_turns(blocks.shape.prod(-1), ROIS, TILES_OF_ROI, y.weight.dtype, turn)
        return jax.tree.map(lambda sum: sum[order], sums)

    return _image_by_image(of_image)(levels, level, y, x, gradient)


# Tiles.


def _sizes(levels: Levels) -> tuple[tuple[int, int], ...]:
    """Rows and columns of tiles of each level."""
    return tuple((-(-f.shape[0] // TILE), -(-f.shape[1] // TILE)) for f in levels)


def _cut(levels: Levels) -> jax.Array:
    """[N, K, C], level by level, row by row; 0 beyond the edges."""
    tiles = []
    for f, (rows, columns) in zip(levels, _sizes(levels), strict=True):
        f = jnp.pad(f, ((0, rows * TILE - f.shape[0]), (0, columns * TILE - f.shape[1]), (0, 0)))
        f = f.reshape(rows, TILE, columns, TILE, -1).swapaxes(1, 2)
        tiles.append(f.reshape(rows * columns, TILE * TILE, -1))
    return jnp.concatenate(tiles)


def _joined(tiles: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The level of shape [H, W, C] from its tiles."""
    rows, columns = (-(-size // TILE) for size in shape[:2])
    cells = tiles.reshape(rows, columns, TILE, TILE, -1).swapaxes(1, 2)
    return cells.reshape(rows * TILE, columns * TILE, -1)[: shape[0], : shape[1]]


# Blocks.


def _blocks(sizes: tuple[tuple[int, int], ...], level: jax.Array, y: Taps, x: Taps) -> _Blocks:
    tile = [(number, *place) for number, size in enumerate(sizes) for place in np.ndindex(*size)]
    starts = np.cumsum([0, *(rows * columns for rows, columns in sizes[:-1])])
    lowest, highest = (
        jnp.stack([end(axis.pixel, (1, 2)) // TILE for axis in (y, x)], axis=-1) for end in (jnp.min, jnp.max)
    )
    reads = (y.weight != 0).any((1, 2)) & (x.weight != 0).any((1, 2))
    across = jnp.array([columns for _, columns in sizes], jnp.int32)[level]
    return _Blocks(
        tile=np.array(tile, np.int32),
        level=level,
        first=lowest,
        shape=jnp.where(reads[:, None], highest - lowest + 1, 0),
        corner=jnp.array(starts, jnp.int32)[level] + lowest[:, 0] * across + lowest[:, 1],
        across=across,
        of_rows=_of_cells(y, max(rows for rows, _ in sizes)),
        of_columns=_of_cells(x, max(columns for _, columns in sizes)),
    )


def _meet(blocks: _Blocks) -> jax.Array:
    """[N, S] bool: whether a RoI touches a tile."""
    level, place = blocks.tile[:, :1], blocks.tile[:, None, 1:]
    inside = (place >= blocks.first) & (place < blocks.first + blocks.shape)
    return (level == blocks.level) & inside.all(-1)


def _tiles_of(blocks: _Blocks, rois: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """TILES_OF_ROI = G tiles of each of rois[R], from number `start` on: [R, G] their numbers among all tiles,
    [R, G, 2] row and column, [R, G] whether the RoI has that many."""
    rows, columns = blocks.shape[rois].T[:, :, None]
    number = start + jnp.arange(TILES_OF_ROI, dtype=jnp.int32)
    there = number < rows * columns
    place = jnp.stack(jnp.divmod(jnp.where(there, number, 0), jnp.maximum(columns, 1)), axis=-1)
    found = blocks.corner[rois, None] + place[..., 0] * blocks.across[rois, None] + place[..., 1]
    return found, blocks.first[rois][:, None, :] + place, there


# Products.


def _of_cells(taps: Taps, tiles: int) -> jax.Array:
    """[R tiles, bins TILE]: the weights of every bin of taps[R, bins, T] for the cells along `tiles` tiles."""
    cells = jnp.arange(tiles * TILE, dtype=jnp.int32)
    weights = jnp.where(taps.pixel[..., None] == cells, taps.weight[..., None], 0).sum(2)
    return weights.reshape(*weights.shape[:2], tiles, TILE).swapaxes(1, 2).reshape(len(weights) * tiles, -1)


def _weights(blocks: _Blocks, rois: jax.Array, place: jax.Array, there: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[..., h, K] and [..., w, K]: weights of rois[...] along each axis for the tiles at place[..., 2]; 0 where
    there[...] is False."""

    def of_axis(axis: int, of_tiles: jax.Array) -> jax.Array:
        count = len(of_tiles) // len(blocks.corner)
        narrow = jnp.where(there[..., None], of_tiles[rois * count + place[..., axis]], 0)
        bins = narrow.shape[-1] // TILE
        # Spread to all cells of a tile by the matrix unit: a product with ones and zeros is exact.
        spread = np.kron(np.eye(bins), np.arange(TILE)[:, None] == IN_TILE[axis]).astype(narrow.dtype)
        wide = jnp.einsum("...n,nk->...k", narrow, spread, precision="highest")
        return wide.reshape(*wide.shape[:-1], bins, -1)

    return of_axis(0, blocks.of_rows), of_axis(1, blocks.of_columns)


def _outer(y: jax.Array, x: jax.Array) -> jax.Array:
    """[..., h w, K]."""
    both = y[..., :, None, :] * x[..., None, :, :]
    return both.reshape(*y.shape[:-2], -1, y.shape[-1])


def _of_taps(pixel: jax.Array, place: jax.Array, in_tile: np.ndarray, of_cells: jax.Array) -> jax.Array:
    """[R, bins, T]: the entries of of_cells[R, G, bins, K] for the pixel[R, bins, T] of an axis that each tap reads."""
    cells = place[..., None] * TILE + in_tile  # [R, G, K]
    same = pixel[:, None, :, :, None] == cells[:, :, None, None, :]
    return jnp.where(same, of_cells[:, :, :, None, :], 0).sum((1, -1))


def _weighted(product: str, weights: jax.Array, read: jax.Array) -> jax.Array:
    """A product of float32 weights with values read from memory, summed in float32 (or float64).

    Values in a narrow format are not converted to float32 first: the weights are split into two numbers of that format,
    which keeps 16 bits of them, and the matrix unit sums both products in float32.
    """
    compute = jnp.promote_types(weights.dtype, read.dtype)
    if jnp.finfo(read.dtype).bits >= jnp.finfo(compute).bits:
        return jnp.einsum(product, weights.astype(compute), read, precision="highest", preferred_element_type=compute)
    kind = jnp.finfo(read.dtype)
    # Not a cast there and back, which a compiler may remove.
    high = jax.lax.reduce_precision(weights, kind.nexp, kind.nmant)
    halves = (half.astype(read.dtype) for half in (high, weights - high))
    above, below = (jnp.einsum(product, half, read, preferred_element_type=compute) for half in halves)
    return above + below


# Loops.


def _in_turns(counts: jax.Array, at_once: int, group: int, kind: Any, turn: Callable[..., Any]) -> Any:
    """For each owner n the sum of turn(owners, start) over start = 0, group, ... below counts[n], in type `kind`.

    `turn` takes `at_once` owners and returns arrays with one row for each, 0 beyond an owner's count. Owners with
    similar counts are processed together. Returns the sums, and place[n], the row of owner n in them.
    """
    order = jnp.argsort(-counts)
    padded = jnp.pad(order, (0, -len(order) % at_once), mode="edge").reshape(-1, at_once)

    def of_owners(owners: jax.Array) -> Any:
        most = counts[owners].max()
        # "+ 0 * integer": under shard_map the zeros must vary over devices like the values added to them.
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


def _image_by_image(of_image: Callable[..., Any]) -> Callable[..., Any]:
    """The function, turned into a loop by `vmap`."""
    of_image = custom_vmap(of_image)

    @of_image.def_vmap
    def _(size, is_batched, *arrays):
        arrays = jax.tree.map(
            lambda array, batched: array if batched else jnp.broadcast_to(array, (size, *array.shape)),
            arrays,
            tuple(is_batched),
        )
        of_images = jax.lax.map(lambda arrays: of_image(*arrays), arrays)
        return of_images, jax.tree.map(lambda _: True, of_images)

    return of_image
