"""Non-maximum suppression: exactly the boxes that the greedy algorithm keeps, with static shapes.

Greedy: visit boxes by descending score; drop every later box whose IoU with a kept one is above the threshold. Here:
sort, then iterate keep[j] <- not any_i<j (overlap[i, j] and keep[i]) from "all kept" until nothing changes. The first j
positions are correct after at most j passes, so the fixed point IS the greedy result; in practice it takes 2-10 passes.

N boxes, K outputs; one image (map over the batch).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.detection import boxes as box_ops
from elk_jax.detection.boxes import as_boxes
from elk_jax.errors import UserError
from elk_jax.fields import SHARE
from elk_jax.precision import at_least_float32
from elk_jax.turns import expected_turns

DENSE_LIMIT = 2000
"""Number of boxes up to which a CPU builds one [N, N] table. Above it, and on accelerators, where the table would be
written to memory and read in every pass, tiles of TILE boxes are compared with all boxes, and only the tile's own table
is stored."""
TILE = 512
TYPICAL_PASSES = 4
"""Number of passes: until nothing changes."""


def nms(
    boxes: jax.Array,
    scores: jax.Array,
    iou_threshold: float,
    max_outputs: int,
    valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Indices[K] int32 of the boxes[N, 4] that survive, by descending scores[N], and valid[K]; K = `max_outputs`.

    A box is dropped if its IoU with a kept box of higher score is greater than `iou_threshold` (as in torchvision;
    equal is kept). Of equal scores, the lower index comes first. Boxes that are not valid[N], whose score is NaN or
    whose coordinates are not finite neither survive nor suppress. Slots without a box have index 0 and valid False; K
    may exceed N. Coordinates may be negative. No gradient flows through. Scores may be whole numbers, and are compared
    exactly, including NumPy's float64 and int64. The threshold is compared in float64, as in torchvision on a CPU; a
    traced threshold (an argument of a compiled function) in its own type.

    UserError for arrays of inconsistent shapes, and a threshold outside [0, 1].
    """
    return batched_nms(boxes, scores, None, iou_threshold, max_outputs, valid)


@jax.named_scope("nms")
def batched_nms(
    boxes: jax.Array,
    scores: jax.Array,
    groups: jax.Array | None,
    iou_threshold: float,
    max_outputs: int,
    valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`nms` in which a box suppresses only boxes of the same group: groups[N] int, for example classes or levels."""
    boxes = as_boxes(boxes, "boxes", 2)
    num = boxes.shape[0]
    scores = _one_each(_exact(scores), "scores", num)
    groups = jnp.zeros(num, jnp.int32) if groups is None else _one_each(groups, "groups", num)
    valid = jnp.ones(num, bool) if valid is None else _one_each(valid, "valid", num).astype(bool)
    threshold = _not_above(iou_threshold, boxes.dtype)
    if isinstance(max_outputs, bool) or not isinstance(max_outputs, int | np.integer) or max_outputs < 0:
        raise UserError(f"max_outputs is {max_outputs!r}", where="max_outputs", todo="give a whole number")
    boxes, scores = jax.lax.stop_gradient((boxes, scores))
    if num == 0:
        return jnp.zeros(max_outputs, jnp.int32), jnp.zeros(max_outputs, bool)
    usable = ~jnp.isnan(scores) & jnp.isfinite(boxes).all(-1) & valid
    if jnp.issubdtype(scores.dtype, jnp.integer):  # the complement reverses their order, and never overflows
        order = jnp.argsort(jnp.where(usable, ~scores, jnp.iinfo(scores.dtype).max), stable=True)
    else:
        order = jnp.argsort(jnp.where(usable, -scores, jnp.inf), stable=True)
    boxes, groups = jnp.where(usable[:, None], boxes, 0)[order], groups[order]
    tiled = partial(_tiled, max_outputs=max_outputs)
    on_cpu = _dense if num <= DENSE_LIMIT else tiled
    keep = jax.lax.platform_dependent(boxes, groups, usable[order], threshold, cpu=on_cpu, default=tiled)
    (kept,) = jnp.nonzero(keep, size=max_outputs, fill_value=num)
    filled = kept < num
    indices = jnp.where(filled, order.at[kept].get(mode="clip"), 0)
    return indices.astype(jnp.int32), filled


@jax.named_scope("nms")
def soft_nms(
    boxes: jax.Array,
    scores: jax.Array,
    groups: jax.Array,
    sigma: float,
    max_outputs: int,
    valid: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Indices[K] and scores[K] of boxes[N, 4]; scores[N] are lowered by the overlap with better boxes of their group.

    Repeatedly, the best box is taken and the score of every other box of its group is multiplied by exp(-IoU^2 / sigma)
    (Bodla et al. 2017). K = `max_outputs`; slots without a box have index 0 and score -inf. Boxes that are not valid[N]
    or not finite do not take part. No gradient flows through.
    """
    boxes, scores = jax.lax.stop_gradient((as_boxes(boxes, "boxes", 2), at_least_float32(scores)))
    usable = jnp.asarray(valid) & jnp.isfinite(scores) & jnp.isfinite(boxes).all(-1)
    boxes, groups = jnp.where(usable[:, None], boxes, 0), jnp.asarray(groups)

    def take(left: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        best = left.argmax()
        overlap = box_ops.iou(boxes[best][None], boxes)[0]
        decay = jnp.where(groups == groups[best], jnp.exp(-(overlap**2) / sigma), 1)
        return (left * decay).at[best].set(-jnp.inf), (best.astype(jnp.int32), left[best])

    # A factor cannot lower a score of 0 or less; probabilities are above 0.
    left = jnp.where(usable & (scores > 0), scores, -jnp.inf)
    _, (index, kept) = jax.lax.scan(take, left, None, length=max_outputs)
    return jnp.where(kept > -jnp.inf, index, 0), kept


def _one_each(values: jax.Array, name: str, count: int) -> jax.Array:
    array = jnp.asarray(values)
    if array.shape != (count,) or jnp.issubdtype(array.dtype, jnp.complexfloating):
        what = f"{name} is {array.dtype} of shape {array.shape} for {count} boxes"
        raise UserError(what, where=name, todo="give one number for each")
    return array


def _exact(scores: jax.Array) -> jax.Array:
    """The scores, or numbers in the same order if JAX would round or truncate 64-bit ones; bools as integers."""
    if isinstance(scores, jax.Array):
        return scores.astype(jnp.uint8) if scores.dtype == bool else scores
    array = np.asarray(scores)
    if array.dtype.kind not in "biufV":  # V: bfloat16
        raise UserError(f"scores is {array.dtype}, not numbers", where="scores", todo="give one number for each box")
    if array.dtype == bool:
        return jnp.asarray(array.astype(np.uint8))
    if array.dtype.kind not in "iuf" or array.dtype.itemsize < 8 or jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        return jnp.asarray(array)
    ranks = np.unique(array, return_inverse=True)[1].reshape(array.shape)
    return jnp.asarray(np.where(np.isnan(array), np.nan, ranks).astype(np.float32))


def _not_above(threshold: float | jax.Array, kind: np.dtype) -> jax.Array:
    """The largest number of a float type that is not above a threshold: numbers of the type exceed both or neither."""
    if isinstance(threshold, jax.Array):
        return threshold
    if not SHARE.takes(threshold):
        raise UserError(f"iou_threshold is {threshold!r}", where="iou_threshold", todo="give 0 to 1")
    nearest = np.asarray(threshold, kind)
    return jnp.asarray(nearest if float(nearest) <= threshold else np.nextafter(nearest, kind.type(-1)))


def _suppresses(
    boxes: jax.Array, groups: jax.Array, others: jax.Array, other_groups: jax.Array, threshold: jax.Array
) -> jax.Array:
    """[N, M] bool: whether boxes[N], if kept and of higher score, would suppress others[M]."""
    return (box_ops.iou(boxes, others) > threshold) & (groups[:, None] == other_groups[None, :])


def settle(suppresses: jax.Array, candidates: jax.Array) -> jax.Array:
    """Greedy survivors [T] bool among candidates[T], sorted by score, from suppresses[T, T]."""
    suppresses = jnp.triu(suppresses, k=1)

    def refine(state):
        keep, _ = state
        refined = candidates & ~(suppresses & keep[:, None]).any(0)
        return refined, (refined != keep).any()

    # Start from a value that shares the candidates' type in every respect (also under shard_map).
    with expected_turns(TYPICAL_PASSES):
        keep, _ = jax.lax.while_loop(lambda state: state[1], refine, refine((candidates, None)))
    return keep


def _dense(boxes: jax.Array, groups: jax.Array, candidates: jax.Array, threshold: jax.Array) -> jax.Array:
    """Greedy survivors [N] bool among candidates[N], sorted by score."""
    return settle(_suppresses(boxes, groups, boxes, groups, threshold), candidates)


def _tiled(
    boxes: jax.Array, groups: jax.Array, candidates: jax.Array, threshold: jax.Array, max_outputs: int
) -> jax.Array:
    """Like `_dense`, TILE boxes at a time, in O(N * TILE) memory; stops when `max_outputs` boxes are kept.

    Tiles are visited by descending score, so the boxes that a tile loses to earlier tiles are final before its own
    fixed point is computed, and boxes of unvisited tiles (all False) would not be among the first `max_outputs`.
    """
    num = boxes.shape[0]
    padding = -num % TILE
    tiles = (num + padding) // TILE
    boxes = jnp.pad(boxes, ((0, padding), (0, 0)))
    groups = jnp.pad(groups, (0, padding))
    candidates = jnp.pad(candidates, (0, padding))

    def take(array, tile):
        return jax.lax.dynamic_slice_in_dim(array, tile * TILE, TILE)

    def settle_tile(state):
        tile, keep = state
        tile_boxes, tile_groups = take(boxes, tile), take(groups, tile)
        # `keep` is still False from this tile on.
        lost = (_suppresses(boxes, groups, tile_boxes, tile_groups, threshold) & keep[:, None]).any(0)
        inside = _suppresses(tile_boxes, tile_groups, tile_boxes, tile_groups, threshold)
        settled = settle(inside, take(candidates, tile) & ~lost)
        return tile + 1, jax.lax.dynamic_update_slice_in_dim(keep, settled, tile * TILE, 0)

    def unfinished(state):
        tile, keep = state
        return (tile < tiles) & (keep.sum() < max_outputs)

    with expected_turns(tiles):
        _, keep = jax.lax.while_loop(unfinished, settle_tile, (0, candidates & False))
    return keep[:num]
