"""Steps of one-stage detectors, which have an output for every anchor of a pyramid; each step is usable on its own.

    features -> outputs -> losses, or detections

Shape legend: B batch, A_l anchors of a level and A of all levels, M padded ground truth, K detections, Q classes, Q'
class outputs: Q, or Q + 1 with a background.

A model is a Flax module of the parts after the backbone, with a `config` and the methods `levels` (maps of the backbone
-> pyramid) and `outputs` (pyramid -> Outputs). Per-image steps are written for one image and mapped by `map_images`.
Batches and `map_images`: see `detector.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.backbones.ambient import with_one_gradient
from elk_jax.detection import backbone, lanes
from elk_jax.detection import boxes as box_ops
from elk_jax.detection.anchors import pyramid_anchors
from elk_jax.detection.dense_config import DenseConfig
from elk_jax.detection.detector import Anchored, Batch, Detector, Loss, MapImages, Params, Pyramid, Tap
from elk_jax.detection.losses import focal_sum, giou_loss, smooth_l1
from elk_jax.detection.matching import POSITIVE, match
from elk_jax.detection.nms import batched_nms, soft_nms
from elk_jax.detection.selection import top_k
from elk_jax.precision import at_least_float32


class Outputs(NamedTuple):
    """Outputs per level; the anchors of a level are ordered row by row, column by column, then by cell anchor."""

    logits: tuple[jax.Array, ...]  # [B, A_l, Q']
    deltas: tuple[jax.Array, ...]  # [B, A_l, 4]


class ImageLosses(NamedTuple):
    """Losses of an image, summed over its anchors, and its number of positive anchors."""

    classes: jax.Array
    box: jax.Array
    positives: jax.Array


HEADS = ("class_head", "box_head")
"""Top-level names of the parameters that all levels share."""


def detector(
    model: Any,
    loss: Callable[..., Loss],
    class_layers: str,
    conventions: Mapping[str, str],
    frozen: tuple[str, ...],
) -> Detector:
    """A model as a `Detector`. loss: (config, outputs, batch, map_images) -> loss. The other arguments: see there."""
    config: DenseConfig = model.config
    return Detector(
        config=config,
        init=lambda rng: backbone.draw(config.backbone, model, config.stages, rng),
        features=partial(features, model),
        outputs=partial(outputs, model),
        loss_from_outputs=lambda params, pyramid, found, batch, rng, map_images: loss(config, found, batch, map_images),
        predict_from_features=partial(predict_from_features, model),
        class_layers=class_layers,
        conventions=conventions,
        frozen=frozen,
        strides=config.strides,
        statistics=backbone.statistics(config.backbone),
        anchored=partial(anchored, config),
        backbone=Tap(partial(backbone_maps, model), config.stages, partial(levels, model)),
    )


def features(model: Any, params: Params, batch: Batch, rng: jax.Array | None = None) -> Pyramid:
    """The levels [B, H_l, W_l, C] of a batch's images. rng: for a backbone that drops branches; None drops none."""
    return levels(model, params, backbone_maps(model, params, batch, rng))


def backbone_maps(model: Any, params: Params, batch: Batch, rng: jax.Array | None = None) -> Pyramid:
    """The maps of the backbone from which the levels are computed."""
    config: DenseConfig = model.config
    return backbone.stages(config.backbone, params, batch, rng, strides=config.stages)


def levels(model: Any, params: Params, maps: Sequence[jax.Array]) -> Pyramid:
    """The levels, from maps of the backbone."""
    return _apply(model, params, "levels", maps)


def outputs(model: Any, params: Params, pyramid: Sequence[jax.Array]) -> Outputs:
    """Class logits and box deltas per level."""

    def heads(params: Params, levels: Sequence[jax.Array]) -> Any:
        return _apply(model, params, "outputs", levels)

    found: Outputs = with_one_gradient(heads, {name: params[name] for name in HEADS}, tuple(pyramid))
    return found


def _apply(model: Any, params: Params, method: str, inputs: Any) -> Any:
    own = {name: part for name, part in params.items() if name != "backbone"}
    found: Any = model.apply({"params": own}, inputs, method=method)
    return found


def anchors(config: DenseConfig, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Anchors [A_l, 4] of every level for padded images of this size: constants."""
    c, size = config, (height, width)
    return pyramid_anchors(size, c.strides, c.anchor_sizes, c.anchor_ratios, c.anchor_offset, c.anchor_rounded)


def anchored(config: DenseConfig, found: Outputs, canvas: tuple[int, int]) -> Anchored:
    """The outputs for all anchors of images on a canvas, without an unused background."""
    every = np.concatenate(anchors(config, *canvas))
    boxes = box_ops.decode(jnp.concatenate(found.deltas, 1), jnp.asarray(every), config.box_weights)
    first = int(config.background == "first")
    return Anchored(jnp.concatenate(found.logits, 1)[..., first:], boxes, every)


@jax.named_scope("losses")
def image_losses(
    config: DenseConfig,
    logits: jax.Array,
    deltas: jax.Array,
    all_anchors: jax.Array | np.ndarray,
    gt_boxes: jax.Array,
    gt_labels: jax.Array,
    gt_valid: jax.Array,
    gt_ignore: jax.Array,
) -> ImageLosses:
    """Losses of one image: focal loss of all positive and negative anchors, box loss of the positive ones.

    logits [A, Q'], deltas [A, 4], all_anchors [A, 4]; gt_boxes [M, 4], gt_labels [M] int, gt_valid and gt_ignore [M].
    """
    c, all_anchors = config, jnp.asarray(all_anchors)
    matches = match(all_anchors, gt_boxes, gt_valid, gt_ignore, low=c.iou_low, high=c.iou_high, allow_low_quality=True)
    positive = matches.labels == POSITIVE
    classes = lanes.spread(gt_labels, matches.gt_index) + (c.background == "first")
    # Without a lesion the anchor itself is the target: finite deltas, weight 0.
    target = jnp.where(positive[:, None], lanes.spread(gt_boxes, matches.gt_index), all_anchors)
    if c.box_loss == "giou":
        box = giou_loss(box_ops.decode(deltas, all_anchors, c.box_weights), target)
    else:
        encoded = box_ops.encode(target, all_anchors, c.box_weights)
        box = smooth_l1(deltas, encoded, c.box_smooth_l1_beta).sum(-1)
    return ImageLosses(
        classes=focal_sum(logits, matches.labels, classes, c.focal_alpha, c.focal_gamma),
        box=jnp.where(positive, box, 0).sum(),
        positives=positive.sum(),
    )


def losses(
    config: DenseConfig, found: Outputs, batch: Batch, map_images: MapImages = jax.vmap
) -> tuple[jax.Array, ImageLosses]:
    """(images that count [B] bool, the summed losses [B] of the images of a batch)."""
    counts = batch.get("valid", jnp.ones(len(batch["image"]), bool))
    all_anchors = np.concatenate(anchors(config, *batch["image"].shape[1:3]))
    of_cell = len(config.anchor_sizes[0]) * len(config.anchor_ratios)

    def of_image(logits: Any, deltas: Any, *truth: jax.Array) -> ImageLosses:
        return image_losses(config, jnp.concatenate(logits), lanes.by_columns(deltas, of_cell), all_anchors, *truth)

    truth = (batch[key] for key in ("gt_boxes", "gt_labels", "gt_valid", "gt_ignore"))
    return counts, map_images(of_image)(found.logits, found.deltas, *truth)


@jax.named_scope("detections")
def select_detections(
    config: DenseConfig,
    logits: Sequence[jax.Array],
    deltas: Sequence[jax.Array],
    levels: Sequence[np.ndarray],
    image_size: jax.Array,
) -> dict[str, jax.Array]:
    """The K best detections of one image, after NMS within each class: boxes [K, 4], scores, labels, valid [K].

    Per level: logits [A_l, Q'], deltas and anchors [A_l, 4]. image_size [2] (height, width). The best (anchor, class)
    pairs of every level enter the NMS. Boxes without area, and those with non-finite scores or coordinates, are
    dropped.
    """
    c = config
    first = int(c.background == "first")

    def best_of_level(logits: jax.Array, deltas: jax.Array, level: np.ndarray) -> tuple[jax.Array, ...]:
        scores = jax.nn.sigmoid(at_least_float32(logits[:, first:])).reshape(-1)
        scores = jnp.where(scores > c.score_floor, scores, -jnp.inf)  # False for NaN too
        top, pair = top_k(scores, min(c.level_candidates, scores.shape[0]))
        anchor = pair // c.num_classes
        boxes = box_ops.decode(lanes.take(deltas, anchor), lanes.take(jnp.asarray(level), anchor), c.box_weights)
        return boxes, top, pair % c.num_classes

    best = [best_of_level(*each) for each in zip(logits, deltas, levels)]
    boxes, top, labels = (jnp.concatenate(part) for part in zip(*best))
    usable = (top > -jnp.inf) & jnp.isfinite(boxes).all(-1)
    boxes = box_ops.clip(boxes, image_size[0], image_size[1])
    usable &= (boxes[:, 2:] - boxes[:, :2] > c.detection_min_size).all(-1)
    if c.soft_nms_sigma:
        index, scores = soft_nms(boxes, top, labels, c.soft_nms_sigma, c.detections, usable)
        valid = scores > c.score_floor
    else:
        index, valid = batched_nms(boxes, top, labels, c.detection_nms_iou, c.detections, usable)
        scores = top[index]
    return {
        "boxes": jnp.where(valid[:, None], boxes[index], 0),
        "scores": jnp.where(valid, scores, 0),
        "labels": jnp.where(valid, labels[index], 0).astype(jnp.int32),
        "valid": valid,
    }


def predict_from_features(
    model: Any, params: Params, pyramid: Pyramid, batch: Batch, map_images: MapImages = jax.vmap
) -> dict[str, jax.Array]:
    """Detections of every image, best first: boxes [B, K, 4] in pixels of the batch image; scores, labels, valid
    [B, K]."""
    return detections(model.config, outputs(model, params, pyramid), batch, map_images)


def detections(
    config: DenseConfig, found: Outputs, batch: Batch, map_images: MapImages = jax.vmap
) -> dict[str, jax.Array]:
    """`select_detections` for every image: boxes [B, K, 4] and so on."""
    levels = anchors(config, *batch["image"].shape[1:3])

    def of_image(logits: Any, deltas: Any, image_size: jax.Array) -> dict[str, jax.Array]:
        return select_detections(config, logits, deltas, levels, image_size)

    return map_images(of_image)(found.logits, found.deltas, batch["image_size"])
