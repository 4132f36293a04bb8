"""Detections in the slices of a volume -> findings of the volume, on the device, with static shapes.

S slices (padded), K detections per slice, N = S * K, D findings of the volume.

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
from elk_jax.fields import SHARE, AtLeast, check


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
    boxes, scores, labels, valid = boxes.reshape(-1, 4), scores.reshape(-1), labels.reshape(-1), valid.reshape(-1)
    if rule.name == "peaks":
        best = _highest(scores, valid, rule.most)
        first = last = at.at[best].get(mode="fill", fill_value=0)
    else:
        best, first, last = _groups(rule, boxes, scores, labels, valid, at, reach)
    take = lambda array: array.at[best].get(mode="fill", fill_value=0)
    return VolumeFindings(take(boxes), take(at), first, last, take(scores), take(labels), best < len(valid))


def _highest(scores: jax.Array, valid: jax.Array, most: int) -> jax.Array:
    """[D] positions of the valid scores [N], descending; N in empty slots."""
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)[:most]
    order = jnp.where(valid[order], order, len(valid))
    return jnp.pad(order, (0, most - len(order)), constant_values=len(valid))


def _groups(
    rule: VolumeRule,
    boxes: jax.Array,
    scores: jax.Array,
    labels: jax.Array,
    valid: jax.Array,
    at: jax.Array,
    reach: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """([D] position of the best detection of each finding, N in empty slots; [D] its first slice; its last).

    Findings are made one after another from all N detections: a dense volume has far more detections of one lesion than
    of all others, so a fixed number of the best ones would not hold every finding, nor all of its slices.
    """
    places, none = jnp.arange(len(valid)), len(valid)

    def next_finding(left: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
        best = jnp.argmax(jnp.where(left, scores, -jnp.inf))
        same = (jnp.abs(at - at[best]) <= reach) & (labels == labels[best])
        same &= box_ops.iou(boxes[best][None], boxes)[0] > rule.overlap
        own = left & (same | (places == best))
        spanned = own & (scores >= rule.span * scores[best])
        first, last = jnp.where(spanned, at, none).min(), jnp.where(spanned, at, -1).max()
        return left & ~own, (jnp.where(left[best], best, none), first, last)

    _, (best, first, last) = jax.lax.scan(next_finding, valid, length=rule.most)
    return best, jnp.where(best < none, first, 0), jnp.where(best < none, last, 0)


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
