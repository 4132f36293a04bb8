"""Matching of anchors or proposals to lesions.

N boxes (anchors or proposals), M padded ground truth; for one image (map over the batch).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from elk_jax.detection import boxes as box_ops

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1
IGNORE_OVERLAP = 0.5
"""Share of a box that must lie inside an ignored region for the box not to count as background."""


class Matches(NamedTuple):
    """labels: 1 positive, 0 negative, -1 neither. gt_index: best usable lesion, 0 if none. iou: with that lesion."""

    labels: jax.Array  # [N] int32
    gt_index: jax.Array  # [N] int32
    iou: jax.Array  # [N]


@jax.named_scope("matching")
def match(
    boxes: jax.Array,
    gt_boxes: jax.Array,
    gt_valid: jax.Array,
    gt_ignore: jax.Array,
    *,
    low: float,
    high: float,
    allow_low_quality: bool,
) -> Matches:
    """Assign each of boxes[N, 4] to one of gt_boxes[M, 4] by its best IoU (Ren 2015; as in detectron2's Matcher).

    best IoU < low: negative; low <= best < high: ignored; high <= best: positive. With `allow_low_quality`, the boxes
    that share the highest IoU (> 0) of a lesion are also positive, however low it is; gt_index remains their own best.
    gt_valid[M]: rows that are not padding; padding never matches, whatever it contains. gt_ignore[M]: lesions that are
    neither targets nor background: they match nothing, and negatives with at least half of their area inside one become
    ignored; positives stay positive. No gradient flows through.
    """
    boxes, gt_boxes = jax.lax.stop_gradient((boxes, gt_boxes))
    num = boxes.shape[0]
    if gt_boxes.shape[0] == 0:
        dtype = jnp.promote_types(boxes.dtype, jnp.float32)
        return Matches(jnp.zeros(num, jnp.int32), jnp.zeros(num, jnp.int32), jnp.zeros(num, dtype))
    wanted = gt_valid & ~gt_ignore
    # [M, N], lesions first: the long axis is contiguous. Rows of padding are below every real overlap.
    overlap = jnp.where(wanted[:, None], box_ops.iou(gt_boxes, boxes), -1)
    best = overlap.max(0)
    labels = jnp.where(best >= high, POSITIVE, jnp.where(best < low, NEGATIVE, IGNORED))
    if allow_low_quality:
        best_of_gt = overlap.max(1, keepdims=True)
        labels = jnp.where(((overlap == best_of_gt) & (best_of_gt > 0)).any(0), POSITIVE, labels)
    inside = box_ops.intersection_over_area(boxes, gt_boxes) >= IGNORE_OVERLAP
    in_ignored = (inside & (gt_valid & gt_ignore)[None, :]).any(1)
    labels = jnp.where(in_ignored & (labels == NEGATIVE), IGNORED, labels)
    return Matches(labels.astype(jnp.int32), overlap.argmax(0).astype(jnp.int32), jnp.maximum(best, 0))
