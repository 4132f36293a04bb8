"""Detections in the slices of a volume -> findings of the volume, on the device, with static shapes.

S slices (padded), K detections per slice, N = S * K, Q candidates, D findings of the volume.

A lesion is also visible in neighbouring slices, so detections at one place along z form one finding. Two rules:

`group`: boxes are visited by descending score; a kept box absorbs all boxes that overlap it in the plane within `reach`
    slices, and spans the slices of those that score at least `span` of its own score.
`peaks`: the rule of CoMoTo and of its predecessor (ICEBERG-VICOROB, DBT_phase2): a box in slice i is kept if no
    overlapping box in the slices [i - d, i + d) scores more. Ties keep both; a finding has one slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp

from elk_jax.detection import boxes as box_ops
from elk_jax.detection.nms import settle
from elk_jax.fields import SHARE, AtLeast, check

CANDIDATES = 1000
"""Number of best detections of a volume that are grouped: comparing more would not change the result."""


class VolumeFindings(NamedTuple):
    """Findings of a volume by descending score; slots that are not `valid` are empty."""

    boxes: jax.Array  # [D, 4] in the best slice
    best: jax.Array  # [D] int32 slice of the box
    first: jax.Array  # [D] int32
    last: jax.Array  # [D] int32
    scores: jax.Array  # [D]
    labels: jax.Array  # [D] int32
    valid: jax.Array  # [D] bool


@dataclass(frozen=True)
class VolumeRule:
    """How detections of slices become findings.

    overlap: IoU in the plane above which boxes are at one place. reach: distance in slices up to which they are, as a
    share of the slices examined. span: a finding covers the slices of detections that score at least this share of its
    score; only for `group`. most: most findings of a volume. margin: slices at either end that are not examined, since
    they show no tissue.
    """

    name: Literal["group", "peaks"] = "group"
    overlap: Annotated[float, SHARE] = 0.2
    reach: Annotated[float, SHARE] = 0.25
    span: Annotated[float, SHARE] = 0.5
    most: Annotated[int, AtLeast(1)] = 50
    margin: Annotated[int, AtLeast(0)] = 0

    def __post_init__(self) -> None:
        check(self)


COMOTO = VolumeRule("peaks", overlap=0.5, margin=4, most=300)
"""As published: slices 4 to N - 5, and d a quarter of them."""
Rule = Literal["group", "comoto"]
"""Setting: the rule that combines detections in slices into findings."""
RULES: dict[Rule, VolumeRule] = {"group": VolumeRule(), "comoto": COMOTO}


@jax.named_scope("volume_findings")
def find(
    rule: VolumeRule,
    boxes: jax.Array,
    scores: jax.Array,
    labels: jax.Array,
    valid: jax.Array,
    count: jax.Array,
) -> VolumeFindings:
    """Findings from boxes[S, K, 4], scores, labels and valid[S, K] of the first `count` slices that were examined.

    `count` is an array: volumes with any number of slices up to S share one compilation. Positions refer to the given
    slices, from 0. Boxes with different labels are different findings.
    """
    slices, per_slice = scores.shape
    valid = valid & (jnp.arange(slices) < count)[:, None] & ~jnp.isnan(scores) & jnp.isfinite(boxes).all(-1)
    boxes = jnp.where(valid[..., None], boxes, 0)
    reach = jnp.floor(count * rule.reach).astype(jnp.int32)
    at = jnp.repeat(jnp.arange(slices, dtype=jnp.int32), per_slice)
    if rule.name == "peaks":
        valid = _peaks(boxes, scores, labels, valid, reach, rule.overlap)
    flat = (boxes.reshape(-1, 4), scores.reshape(-1), labels.reshape(-1), valid.reshape(-1))
    most = rule.most if rule.name == "peaks" else max(rule.most, CANDIDATES)
    order = jnp.argsort(jnp.where(flat[3], -flat[1], jnp.inf), stable=True)[: min(most, slices * per_slice)]
    boxes, scores, labels, valid = (array[order] for array in flat)
    at = at[order]
    first = last = at
    if rule.name == "group":
        near = (jnp.abs(at[:, None] - at[None, :]) <= reach) & (labels[:, None] == labels[None, :])
        same = near & (box_ops.iou(boxes, boxes) > rule.overlap) & valid[:, None] & valid[None, :]
        keep = settle(same, valid)
        # A box that is not kept goes to the best kept one that absorbs it: the first, since all are sorted by score.
        taken_by = jnp.where(keep, jnp.arange(len(keep)), jnp.argmax(same & keep[:, None], axis=0))
        counts = valid & (scores >= rule.span * scores[taken_by])
        first = jnp.full_like(at, slices).at[taken_by].min(jnp.where(counts, at, slices))
        last = jnp.full_like(at, -1).at[taken_by].max(jnp.where(counts, at, -1))
        valid = keep
    (kept,) = jnp.nonzero(valid, size=rule.most, fill_value=len(valid))
    filled = kept < len(valid)
    take = lambda array: array.at[kept].get(mode="fill", fill_value=0)
    return VolumeFindings(take(boxes), take(at), take(first), take(last), take(scores), take(labels), filled)


def _peaks(
    boxes: jax.Array, scores: jax.Array, labels: jax.Array, valid: jax.Array, reach: jax.Array, overlap: float
) -> jax.Array:
    """[S, K] bool: valid boxes that are not outscored by an overlapping one in the slices [i - reach, i + reach)."""
    slices, per_slice = scores.shape
    position = jnp.repeat(jnp.arange(slices), per_slice)
    others = boxes.reshape(-1, 4), scores.reshape(-1), labels.reshape(-1), valid.reshape(-1)

    def of_slice(given):
        index, own_boxes, own_scores, own_labels, own_valid = given
        window = (position >= index - reach) & (position < index + reach) & others[3]
        beats = (others[1][None] > own_scores[:, None]) & (others[2][None] == own_labels[:, None]) & window[None]
        return own_valid & ~(beats & (box_ops.iou(own_boxes, others[0]) > overlap)).any(1)

    return jax.lax.map(of_slice, (jnp.arange(slices), boxes, scores, labels, valid))
