"""Focal and global distillation (Yang et al. 2022): what the teacher attends to, inside lesions and outside.

Shape legend: B images, M padded boxes, h w cells of one level, C channels.

The published sums over cells grow with the image; `of_level` scales them to the canvas of the published training, so
that the published weights fit images of any size.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from elk_jax.distillation.points import Grid
from elk_jax.precision import at_least_float32

PUBLISHED_CANVAS = 800 * 1344
"""Pixels of an image in the published training."""

Relation = dict[str, jax.Array]
"""Parameters for one network: pool [C], squeeze [C, C/2], squeeze_bias, scale, shift [C/2], expand [C/2, C],
expand_bias [C]."""


@dataclass(frozen=True)
class Weights:
    """The published constants for one-stage detectors. alpha: inside boxes; beta: outside; gamma: attentions; relation:
    global part."""

    temperature: float = 0.5
    alpha: float = 1e-3
    beta: float = 5e-4
    gamma: float = 5e-4
    relation: float = 5e-6


TWO_STAGES = Weights(alpha=5e-5, beta=2.5e-5, gamma=5e-5, relation=5e-7)
"""The published constants for two-stage detectors."""


def of_level(
    teacher: jax.Array, student: jax.Array, boxes: jax.Array, valid: jax.Array, counts: jax.Array,
    relations: dict[str, Relation], canvas: tuple[int, int], weights: Weights = Weights(),
    cells: jax.Array | None = None,
) -> dict[str, jax.Array]:  # fmt: skip
    """The weighted terms of maps [B, h, w, C]: {inside, outside, attention, relation}, sums over cells, means over the
    images that counts [B].

    boxes [B, M, 4] in pixels of the canvas (H, W), valid [B, M]. relations: {teacher, student}, both trained. No
    gradient flows into the teacher's map. cells [B, h, w]: above 0 where there is something to learn, such as in the
    breast; None: everywhere, as published.
    """
    teacher, student = jax.lax.stop_gradient(at_least_float32(teacher)), at_least_float32(student)
    h, w, _ = teacher.shape[1:]
    there = jnp.ones(teacher.shape[:3], bool) if cells is None else cells > 0
    inside, outside = masks(boxes, valid, Grid((h, w), canvas), there)
    spatial, of_channels = attention(teacher, weights.temperature, there)
    own_spatial, own_channels = attention(student, weights.temperature, there)
    square = (spatial[..., None] * of_channels[:, None, None] * (teacher - student) ** 2).sum(-1)
    scale = PUBLISHED_CANVAS / (canvas[0] * canvas[1])
    of_cells = scale * jnp.abs(spatial - own_spatial).sum((1, 2))
    attentions = of_cells + jnp.abs(of_channels - own_channels).sum(-1)
    related = relation(relations["teacher"], teacher, there) - relation(relations["student"], student, there)
    related = jnp.where(there[..., None], related, 0)
    terms = {
        "inside": weights.alpha * (square * inside).sum((1, 2)),  # the masks are shares of 1 already
        "outside": weights.beta * (square * outside).sum((1, 2)),
        "attention": weights.gamma * attentions,
        "relation": weights.relation * scale * (related**2).sum((1, 2, 3)),
    }
    images = jnp.maximum(counts.sum(), 1)
    return {name: jnp.where(counts, term, 0).sum() / images for name, term in terms.items()}


def attention(features: jax.Array, temperature: float, there: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(attention of cells [B, h, w], with mean 1; of channels [B, C], with mean 1), from absolute values of the cells
    in there [B, h, w] bool; 0 in all others."""
    size, count = jnp.abs(features), there.sum((1, 2))
    heights = jnp.where(there, size.mean(-1) / temperature, -jnp.inf)
    heights = jnp.where((count > 0)[:, None, None], heights, 0)
    cells = jnp.where(there, jax.nn.softmax(heights, axis=(1, 2)), 0)
    of_channels = jnp.where(there[..., None], size, 0).sum((1, 2)) / jnp.maximum(count, 1)[:, None]
    channels = features.shape[-1] * jax.nn.softmax(of_channels / temperature)
    return count[:, None, None] * cells, channels


def masks(boxes: jax.Array, valid: jax.Array, grid: Grid, there: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(inside [B, h, w]: 1 / cells of the smallest box at the cell, else 0; outside: 1 / number of cells without box).

    there [B, h, w] bool: cells that count; both are 0 in others. A box has the cells that it touches; in the published
    code it has one more row and column.
    """
    (h, w), (height, width) = grid
    x0, y0, x1, y1 = jnp.moveaxis(at_least_float32(boxes) * jnp.array([w / width, h / height] * 2), -1, 0)
    first = [jnp.floor(x0), jnp.floor(y0)]
    last = [jnp.clip(jnp.ceil(x1) - 1, first[0]), jnp.clip(jnp.ceil(y1) - 1, first[1])]
    columns, rows = jnp.arange(w), jnp.arange(h)
    on_x = (columns >= first[0][..., None]) & (columns <= last[0][..., None])
    on_y = (rows >= first[1][..., None]) & (rows <= last[1][..., None])
    on = on_y[..., :, None] & on_x[..., None, :] & valid[..., None, None]  # [B, M, h, w]
    cells = (last[0] - first[0] + 1) * (last[1] - first[1] + 1)
    inside = jnp.where(there, jnp.where(on, 1 / jnp.maximum(cells, 1)[..., None, None], 0).max(1), 0)
    free = ~on.any(1) & there
    outside = free / jnp.maximum(free.sum((1, 2), keepdims=True), 1)
    return inside, outside


def init_relation(rng: jax.Array, channels: int) -> Relation:
    """Fresh parameters; the last layer is 0, so that a relation starts as the identity."""
    half, (pool, squeeze) = max(channels // 2, 1), jax.random.split(rng)
    normal = lambda key, shape: jax.random.normal(key, shape) * (2 / channels) ** 0.5
    zeros = jnp.zeros
    return {
        "pool": normal(pool, (channels,)), "squeeze": normal(squeeze, (channels, half)), "squeeze_bias": zeros(half),
        "scale": jnp.ones(half), "shift": zeros(half),
        "expand": zeros((half, channels)), "expand_bias": zeros(channels),
    }  # fmt: skip


def relation(params: Relation, features: jax.Array, there: jax.Array) -> jax.Array:
    """features + the global context of each image (GcBlock, Cao et al. 2019), over cells in there [B, h, w] bool."""
    count, h, w, channels = features.shape
    flat = features.reshape(count, h * w, channels)
    inside = there.reshape(count, h * w)
    heights = jnp.where(inside, flat @ params["pool"], -jnp.inf)
    heights = jnp.where(inside.any(1, keepdims=True), heights, 0)
    context = jnp.einsum("bpc,bp->bc", flat, jnp.where(inside, jax.nn.softmax(heights), 0))
    x = context @ params["squeeze"] + params["squeeze_bias"]
    spread = jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = jax.nn.relu((x - x.mean(-1, keepdims=True)) / spread * params["scale"] + params["shift"])
    return features + (x @ params["expand"] + params["expand_bias"])[:, None, None]
