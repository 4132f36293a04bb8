"""The second stage: sampling of proposals for training, the head that scores pooled regions, and the final detections.

Shape legend: B batch, h w C pooled features, M padded ground truth, P proposals, S sampled RoIs, K detections, Q
classes (background not counted; in labels background is Q). pred_* comes from the network, gt_* is the truth; *_logits
are before the softmax, *_deltas as in `boxes.encode`. Functions without B are for ONE image: map them over the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from elk_jax.backbones.conv import ConvNorm, matrix_product, xavier_uniform_fan_in
from elk_jax.backbones.norms import Norm, param_dtype
from elk_jax.detection import boxes as box_ops
from elk_jax.detection.losses import smooth_l1, softmax_cross_entropy
from elk_jax.detection.matching import match
from elk_jax.detection.nms import batched_nms
from elk_jax.detection.rpn import Proposals
from elk_jax.detection.sampling import sample
from elk_jax.detection.selection import top_k
from elk_jax.precision import at_least_float32


class BoxOutputs(NamedTuple):
    """Outputs of the head for regions [...]; background is the last class and has no box."""

    class_logits: jax.Array  # [..., Q + 1]
    box_deltas: jax.Array  # [..., Q, 4]
    embedding: jax.Array  # [..., F] features of the last hidden layer


class RoISamples(NamedTuple):
    """Regions for training, of one image (or, with a leading B, of a batch)."""

    boxes: jax.Array  # [S, 4]
    labels: jax.Array  # [S] int32 class, Q for background and empty slots
    gt_boxes: jax.Array  # [S, 4] lesion of a positive, otherwise the region itself
    is_positive: jax.Array  # [S] bool
    valid: jax.Array  # [S] bool


class BoxSums(NamedTuple):
    """Sums over the sampled regions: losses, and the counts by which they are divided."""

    classes: jax.Array
    box: jax.Array
    samples: jax.Array
    positives: jax.Array


class Detections(NamedTuple):
    """Detections of one image (or, with a leading B, of a batch), best first; empty slots are 0 and not valid."""

    boxes: jax.Array  # [K, 4]
    scores: jax.Array  # [K]
    labels: jax.Array  # [K] int32
    valid: jax.Array  # [K] bool


def canonical_outputs(
    logits: jax.Array, deltas: jax.Array, background: Literal["first", "last"]
) -> tuple[jax.Array, jax.Array]:
    """Class logits [..., Q + 1] with background last and box deltas [..., Q, 4], from raw outputs of either convention.

    'last' (detectron2): logits [..., Q + 1], deltas [..., 4 Q]. 'first' (torchvision): logits [..., 1 + Q], deltas
    [..., 4 + 4 Q]; those of the background are dropped.
    """
    deltas = deltas.reshape(*deltas.shape[:-1], -1, 4)
    if background == "first":
        return jnp.roll(logits, -1, axis=-1), deltas[..., 1:, :]
    return logits, deltas


class BoxHead(nn.Module):
    """Pooled features [B, S, h, w, C] -> BoxOutputs [B, S, ...].

    Parameters: conv1..conv{convs}, fc1..fc{fcs}, class_logits, box_deltas. The first dense layer reads the region in
    the order h, w, C. The last two layers compute in at least float32.
    """

    num_classes: int
    background: Literal["first", "last"] = "last"
    convs: int = 0
    conv_channels: int = 256
    norm: Norm | None = None
    fcs: int = 2
    fc_width: int = 1024
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pooled: jax.Array) -> BoxOutputs:
        x = pooled.reshape(-1, *pooled.shape[2:])
        for i in range(self.convs):
            conv = ConvNorm(self.conv_channels, norm=self.norm, dtype=self.dtype, name=f"conv{i + 1}")
            x = nn.relu(conv(x))
        x = x.reshape(*pooled.shape[:2], -1)
        kept = param_dtype(self.dtype)
        for i in range(self.fcs):
            x = nn.relu(self._dense(f"fc{i + 1}", self.fc_width, xavier_uniform_fan_in, self.dtype)(x))
        with_boxes = self.num_classes + (self.background == "first")
        wide = x.astype(kept)
        logits = self._dense("class_logits", self.num_classes + 1, nn.initializers.normal(0.01), kept)(wide)
        deltas = self._dense("box_deltas", 4 * with_boxes, nn.initializers.normal(0.001), kept)(wide)
        return BoxOutputs(*canonical_outputs(logits, deltas, self.background), embedding=x)

    def _dense(self, name: str, width: int, kernel_init: Any, dtype: Any) -> nn.Dense:
        kept = param_dtype(self.dtype)
        return nn.Dense(
            width, kernel_init=kernel_init, dtype=dtype, param_dtype=kept, dot_general=matrix_product, name=name
        )


def sample_rois(
    rng: jax.Array,
    proposals: Proposals,
    gt_boxes: jax.Array,
    gt_labels: jax.Array,
    gt_valid: jax.Array,
    gt_ignore: jax.Array,
    *,
    num_classes: int,
    iou: float,
    samples: int,
    positive_fraction: float,
    append_gt: bool,
) -> RoISamples:
    """Draw S = `samples` regions of one image for training, at most `positive_fraction` of them on lesions.

    Positive: best IoU with a lesion >= `iou`, else background. append_gt: the lesions themselves are also proposals, so
    that positives exist from the first step. gt_boxes [M, 4], gt_labels [M] int, gt_valid and gt_ignore [M] bool.
    """
    boxes, valid = proposals.boxes, proposals.valid
    if append_gt:
        boxes = jnp.concatenate([boxes, gt_boxes.astype(boxes.dtype)])
        valid = jnp.concatenate([valid, gt_valid & ~gt_ignore])
    matches = match(boxes, gt_boxes, gt_valid, gt_ignore, low=iou, high=iou, allow_low_quality=False)
    index, is_positive, drawn = sample(rng, matches.labels, samples, positive_fraction, valid)
    chosen = jnp.where(drawn[:, None], boxes[index], 0)
    lesion = matches.gt_index[index]
    return RoISamples(
        boxes=chosen,
        labels=jnp.where(is_positive, gt_labels[lesion], num_classes).astype(jnp.int32),
        gt_boxes=jnp.where(is_positive[:, None], gt_boxes[lesion], chosen),
        is_positive=is_positive,
        valid=drawn,
    )


@jax.named_scope("losses")
def box_loss_sums(outputs: BoxOutputs, samples: RoISamples, *, weights: Sequence[float], beta: float) -> BoxSums:
    """Losses summed over all regions [...]: softmax cross entropy, and for positives smooth L1 of the deltas of the
    true class.

    Both have to be divided by the number of samples, including background (Girshick 2015; detectron2, torchvision).
    """
    num_classes = outputs.box_deltas.shape[-2]
    classes = softmax_cross_entropy(outputs.class_logits, samples.labels)
    own_class = jnp.minimum(samples.labels, num_classes - 1)[..., None, None]
    deltas = jnp.take_along_axis(outputs.box_deltas, own_class, axis=-2)[..., 0, :]
    box = smooth_l1(deltas, box_ops.encode(samples.gt_boxes, samples.boxes, weights), beta).sum(-1)
    return BoxSums(
        classes=jnp.where(samples.valid, classes, 0).sum(),
        box=jnp.where(samples.is_positive, box, 0).sum(),
        samples=samples.valid.sum(),
        positives=samples.is_positive.sum(),
    )


@jax.named_scope("detections")
def select_detections(
    class_logits: jax.Array,
    box_deltas: jax.Array,
    proposals: Proposals,
    image_size: jax.Array,
    *,
    weights: Sequence[float],
    score_floor: float,
    nms_iou: float,
    detections: int,
    min_size: float,
    candidates: int,
) -> Detections:
    """The K = `detections` best detections of one image, after NMS within each class.

    class_logits [P, Q + 1], box_deltas [P, Q, 4], image_size [2] (height, width). The `candidates` best (proposal,
    class) pairs enter the NMS. Non-finite scores or boxes are dropped, as are boxes with a side <= min_size.
    """
    num_classes = box_deltas.shape[-2]
    scores = jax.nn.softmax(at_least_float32(class_logits), axis=-1)[:, :num_classes]
    # Comparisons with NaN are False, so broken rows are dropped here.
    scores = jnp.where(proposals.valid[:, None] & (scores > score_floor), scores, -jnp.inf).reshape(-1)
    top, pair = top_k(scores, min(candidates, scores.shape[0]))
    labels = (pair % num_classes).astype(jnp.int32)
    boxes = box_ops.decode(box_deltas.reshape(-1, 4)[pair], proposals.boxes[pair // num_classes], weights)
    usable = (top > -jnp.inf) & jnp.isfinite(boxes).all(-1)
    boxes = box_ops.clip(boxes, image_size[0], image_size[1])
    usable &= (boxes[:, 2:] - boxes[:, :2] > min_size).all(-1)
    index, valid = batched_nms(boxes, top, labels, nms_iou, detections, usable)
    return Detections(
        boxes=jnp.where(valid[:, None], boxes[index], 0),
        scores=jnp.where(valid, top[index], 0),
        labels=jnp.where(valid, labels[index], 0),
        valid=valid,
    )
