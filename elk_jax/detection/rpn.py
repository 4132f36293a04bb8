"""Region proposal network (Ren et al. 2015) on a feature pyramid.

Shape legend: B batch, L levels, H_l W_l C feature maps, A_l anchors of a level and A of all levels, M padded ground
truth, P proposals, S sampled anchors. pred_* comes from the network, gt_* is the truth; *_logits are before the
sigmoid, *_deltas as in `boxes.encode`. Functions without B are for ONE image: map them over the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.backbones.conv import ConvNorm
from elk_jax.detection import boxes as box_ops
from elk_jax.detection import lanes
from elk_jax.detection.losses import sigmoid_cross_entropy, smooth_l1
from elk_jax.detection.matching import match
from elk_jax.detection.nms import nms
from elk_jax.detection.sampling import sample
from elk_jax.detection.selection import choose, top_k
from elk_jax.precision import at_least_float32


class RPNOutputs(NamedTuple):
    """Outputs per level; the anchors of a level are ordered row by row, column by column, then by cell anchor."""

    objectness_logits: tuple[jax.Array, ...]  # [B, A_l]
    deltas: tuple[jax.Array, ...]  # [B, A_l, 4]


class Proposals(NamedTuple):
    """Proposals of one image (or, with a leading B, of a batch), best first; empty slots are not valid."""

    boxes: jax.Array  # [P, 4], clipped to the image; 0 where not valid
    logits: jax.Array  # [P]
    valid: jax.Array  # [P] bool


class RPNSums(NamedTuple):
    """Sums over the sampled anchors of an image: losses, and the counts by which they are divided."""

    objectness: jax.Array
    box: jax.Array
    samples: jax.Array
    positives: jax.Array


class RPNHead(nn.Module):
    """Features [B, H_l, W_l, C] per level -> RPNOutputs; all levels share one head.

    Parameters: conv1..conv{conv_depth}, objectness, deltas.
    """

    cell_anchors: int
    conv_depth: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Sequence[jax.Array]) -> RPNOutputs:
        small = nn.initializers.normal(0.01)

        def conv(name: str, width: int, kernel_size: int) -> ConvNorm:
            return ConvNorm(width, kernel_size, kernel_init=small, dtype=self.dtype, name=name)

        channels = features[0].shape[-1]
        trunk = [conv(f"conv{i + 1}", channels, 3) for i in range(self.conv_depth)]
        objectness = conv("objectness", self.cell_anchors, 1)
        deltas = conv("deltas", 4 * self.cell_anchors, 1)
        logits_of_level, deltas_of_level = [], []
        for x in features:
            for layer in trunk:
                x = nn.relu(layer(x))
            logits_of_level.append(at_least_float32(objectness(x)).reshape(x.shape[0], -1))
            deltas_of_level.append(at_least_float32(deltas(x)).reshape(x.shape[0], -1, 4))
        return RPNOutputs(tuple(logits_of_level), tuple(deltas_of_level))


@jax.named_scope("proposals")
def select_proposals(
    logits: Sequence[jax.Array],
    deltas: Sequence[jax.Array],
    anchors: Sequence[jax.Array | np.ndarray],
    image_size: jax.Array,
    *,
    pre_nms: int,
    post_nms: int,
    nms_iou: float,
    min_size: float,
) -> Proposals:
    """The `post_nms` best proposals of one image; P = post_nms, or the number of anchors if that is less.

    logits: per level [A_l]. deltas, anchors: per level [A_l, 4]. image_size: [2] (height, width).
    The `pre_nms` best anchors of every level are decoded, clipped, filtered (finite, both sides > min_size) and reduced
    by NMS; then the best of all levels are taken (Lin et al. 2017, section 5). No gradient flows through.
    """
    logits, deltas = jax.lax.stop_gradient((tuple(logits), tuple(deltas)))
    most = min(pre_nms, max(level.shape[0] for level in logits))

    def best_of_level(
        level_logits: jax.Array, level_deltas: jax.Array, level_anchors: jax.Array | np.ndarray
    ) -> tuple[jax.Array, jax.Array]:
        # Before decoding, so that thousands of boxes are decoded rather than hundreds of thousands; NaN would sort
        # first.
        finite = jnp.where(jnp.isfinite(level_logits), level_logits, -jnp.inf)
        index = choose(finite, min(most, finite.shape[0]))
        best = finite[index]
        boxes = box_ops.decode(lanes.take(level_deltas, index), lanes.take(jnp.asarray(level_anchors), index))
        missing = most - best.shape[0]
        return (
            jnp.pad(best, (0, missing), constant_values=-jnp.inf),
            jnp.pad(boxes, ((0, missing), (0, 0))),
        )

    def thin(level_scores: jax.Array, level_boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
        usable = jnp.isfinite(level_scores) & jnp.isfinite(level_boxes).all(-1)
        level_boxes = box_ops.clip(level_boxes, image_size[0], image_size[1])
        sides = level_boxes[:, 2:] - level_boxes[:, :2]
        usable &= (sides > min_size).all(-1)
        index, kept = nms(level_boxes, level_scores, nms_iou, min(most, post_nms), usable)
        return jnp.where(kept, level_scores[index], -jnp.inf), level_boxes[index]

    best = [best_of_level(*level) for level in zip(logits, deltas, anchors)]
    scores, boxes = jax.vmap(thin)(jnp.stack([s for s, _ in best]), jnp.stack([b for _, b in best]))
    flat_scores, flat_boxes = scores.reshape(-1), boxes.reshape(-1, 4)
    top, index = top_k(flat_scores, min(post_nms, flat_scores.shape[0]))
    valid = top > -jnp.inf
    return Proposals(jnp.where(valid[:, None], flat_boxes[index], 0), jnp.where(valid, top, 0), valid)


@jax.named_scope("losses")
def rpn_loss_sums(
    rng: jax.Array,
    logits: jax.Array,
    deltas: jax.Array,
    anchors: jax.Array | np.ndarray,
    gt_boxes: jax.Array,
    gt_valid: jax.Array,
    gt_ignore: jax.Array,
    *,
    low: float,
    high: float,
    samples: int,
    positive_fraction: float,
    beta: float,
) -> RPNSums:
    """Losses of one image, summed over its sampled anchors: cross entropy of objectness, smooth L1 of the deltas.

    logits [A], deltas [A, 4], anchors [A, 4] of all levels; gt_boxes [M, 4], gt_valid and gt_ignore [M] bool. `samples`
    anchors are drawn, at most `positive_fraction` of them positive. The box loss is over positives only.
    """
    anchors = jnp.asarray(anchors)
    matches = match(anchors, gt_boxes, gt_valid, gt_ignore, low=low, high=high, allow_low_quality=True)
    index, is_positive, valid = sample(rng, matches.labels, samples, positive_fraction)
    chosen = lanes.take(anchors, index)
    # Without a lesion the anchor itself is the target: finite deltas, weight 0.
    target = jnp.where(is_positive[:, None], gt_boxes[matches.gt_index[index]], chosen)
    objectness = sigmoid_cross_entropy(logits[index], is_positive)
    box = smooth_l1(lanes.take(deltas, index), box_ops.encode(target, chosen), beta).sum(-1)
    return RPNSums(
        objectness=jnp.where(valid, objectness, 0).sum(),
        box=jnp.where(is_positive, box, 0).sum(),
        samples=valid.sum(),
        positives=is_positive.sum(),
    )
