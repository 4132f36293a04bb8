"""Faster R-CNN with a feature pyramid (Ren et al. 2015, Lin et al. 2017): parameters, losses, predictions.

Shape legend: B batch, H W size of the padded images, L levels P2..P6, A anchors over all levels, M padded ground truth,
P proposals, S sampled RoIs, K detections, Q classes, h w pooled size, C channels.

The modules only map arrays to arrays; everything else is a chain of public steps, each usable on its own:

    features -> rpn_outputs -> proposals -> (training: roi_samples) -> pooled -> box_outputs

`detector` wraps that chain as a `Detector` and adds nothing. Per-image steps are written for one image and mapped by
`map_images`. Batches and `map_images`: see `detector.py`. Named scopes are the parts in the account of a compiled
program (`programs/account.py`); modules have a scope of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.backbones.ambient import with_one_gradient
from elk_jax.backbones.fpn import FPN
from elk_jax.backbones.norms import frozen_patterns, norm_from_name
from elk_jax.detection import backbone, lanes
from elk_jax.detection import boxes as box_ops
from elk_jax.detection.anchors import pyramid_anchors
from elk_jax.detection.detector import Anchored, Batch, Detector, MapImages, Params, Pyramid
from elk_jax.detection.faster_rcnn_config import (
    STAGES,
    STRIDES,
    FasterRCNNConfig,
    detectron2,
    torchvision,
    torchvision_v2,
)
from elk_jax.detection.roi_align import multilevel_roi_align
from elk_jax.detection.roi_heads import (
    BoxHead,
    BoxOutputs,
    RoISamples,
    box_loss_sums,
    sample_rois,
    select_detections,
)
from elk_jax.detection.rpn import Proposals, RPNHead, RPNOutputs, RPNSums, rpn_loss_sums, select_proposals
from elk_jax.detection.settings import norm_conventions

__all__ = ["FasterRCNN", "FasterRCNNConfig", "detectron2", "torchvision", "torchvision_v2"]

CLASS_LAYERS = r"box_head/(class_logits|box_deltas)/"


class FasterRCNN(nn.Module):
    """The parts after the backbone: fpn, rpn and box_head, top-level names of the parameters beside `backbone`."""

    config: FasterRCNNConfig

    def setup(self) -> None:
        c = self.config
        dtype = jnp.dtype(c.backbone.dtype)
        norm = partial(norm_from_name, groups=c.norm_groups, eps=c.norm_eps)
        self.fpn = FPN(c.fpn_channels, norm(c.fpn_norm), dtype=dtype)
        self.rpn = RPNHead(len(c.anchor_sizes[0]) * len(c.anchor_ratios), c.rpn_conv_depth, dtype)
        self.box_head = BoxHead(
            num_classes=c.num_classes,
            background=c.background,
            convs=c.box_convs,
            conv_channels=c.box_conv_channels,
            norm=norm(c.box_norm),
            fcs=c.box_fcs,
            fc_width=c.box_fc_width,
            dtype=dtype,
        )

    def __call__(self, stages: Sequence[jax.Array]) -> tuple[RPNOutputs, BoxOutputs]:
        """Use every parameter once, for `init`, on C2..C5; the region is arbitrary."""
        features = self.fpn(stages)
        size = self.config.roi_size
        finest = features[0]
        region = jnp.broadcast_to(finest[:, :1, None, :1], (len(finest), 1, size, size, finest.shape[-1]))
        return self.rpn(features), self.box_head(region)


def detector(config: FasterRCNNConfig) -> Detector:
    """Faster R-CNN as a `Detector`."""
    model = FasterRCNN(config)
    return Detector(
        config=config,
        init=partial(init, model),
        features=partial(features, model),
        outputs=partial(rpn_outputs, model),
        loss_from_outputs=partial(loss_from_outputs, model),
        predict_from_features=partial(predict_from_features, model),
        class_layers=CLASS_LAYERS,
        conventions=conventions(config),
        frozen=frozen(config),
        strides=STRIDES,
        statistics=backbone.statistics(config.backbone),
        stages=2,
        anchored=partial(anchored, config),
    )


def init(model: FasterRCNN, rng: jax.Array) -> Params:
    """Fresh parameters, a nested dict; see `draw_params`."""
    return backbone.draw(model.config.backbone, model, STAGES, rng)


def frozen(config: FasterRCNNConfig) -> tuple[str, ...]:
    """Regular expressions of parameters that are constants with the chosen norms and never trained."""
    fpn, head = frozen_patterns(config.fpn_norm, ("fpn/",)), frozen_patterns(config.box_norm, ("box_head/",))
    return (*backbone.frozen(config.backbone), *fpn, *head)


def conventions(config: FasterRCNNConfig) -> dict[str, str]:
    """Setting -> the layers whose weights change their meaning with it (see `Detector`).

    Without the anchor sizes, which every training run may plan for its own lesions.
    """
    return {
        **backbone.conventions(config.backbone),
        **norm_conventions(r"^(fpn|box_head)/.*/norm/", config.fpn_norm, config.box_norm),
        "anchor_ratios": r"^rpn/(objectness|deltas)/",
        "anchor_offset": r"^rpn/(objectness|deltas)/",
        "anchor_rounded": r"^rpn/(objectness|deltas)/",
        "roi_aligned": r"^box_head/(conv1|fc1)/",
        "background": r"^box_head/class_logits/",
        "box_weights": r"^box_head/box_deltas/",
    }


# The steps.


def _apply(model: FasterRCNN, params: Params, method: Any, inputs: Any) -> Any:
    return model.apply({"params": params}, inputs, method=method)


def features(model: FasterRCNN, params: Params, batch: Batch, rng: jax.Array | None = None) -> Pyramid:
    """P2..P6 [B, H_l, W_l, C] of a batch's images. rng: for a backbone that drops branches; None drops none."""
    stages = backbone.stages(model.config.backbone, params, batch, rng, strides=STAGES)
    return _apply(model, params, lambda network, maps: network.fpn(maps), stages)


def rpn_outputs(model: FasterRCNN, params: Params, pyramid: Sequence[jax.Array]) -> RPNOutputs:
    """Objectness logits [B, A_l] and deltas [B, A_l, 4] per level."""

    def head(params: Params, levels: Sequence[jax.Array]) -> Any:
        return _apply(model, params, lambda network, levels: network.rpn(levels), levels)

    found: RPNOutputs = with_one_gradient(head, {"rpn": params["rpn"]}, tuple(pyramid))
    return found


def box_outputs(model: FasterRCNN, params: Params, regions: jax.Array) -> BoxOutputs:
    """Class logits [B, S, Q + 1] (background last) and box deltas [B, S, Q, 4] of regions [B, S, h, w, C]."""
    return _apply(model, params, lambda network, pooled: network.box_head(pooled), regions)


def anchors(config: FasterRCNNConfig, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Anchors [A_l, 4] of every level for padded images of this size: constants."""
    c = config
    return pyramid_anchors((height, width), STRIDES, c.anchor_sizes, c.anchor_ratios, c.anchor_offset, c.anchor_rounded)


def anchored(config: FasterRCNNConfig, found: RPNOutputs, canvas: tuple[int, int]) -> Anchored:
    """Objectness [B, A, 1] of all anchors, and their decoded boxes."""
    every = np.concatenate(anchors(config, *canvas))
    boxes = box_ops.decode(jnp.concatenate(found.deltas, 1), jnp.asarray(every))
    return Anchored(jnp.concatenate(found.objectness_logits, 1)[..., None], boxes, every)


@jax.named_scope("proposals")
def proposals(
    config: FasterRCNNConfig,
    outputs: RPNOutputs,
    batch: Batch,
    *,
    training: bool,
    map_images: MapImages = jax.vmap,
) -> Proposals:
    """Proposals [B, P, ...] from the RPN's outputs, within the limits for training or for testing."""
    levels = anchors(config, *batch["image"].shape[1:3])

    def of_image(logits, deltas, image_size):
        return select_proposals(
            logits,
            deltas,
            levels,
            image_size,
            pre_nms=config.rpn_pre_nms_train if training else config.rpn_pre_nms_test,
            post_nms=config.rpn_post_nms_train if training else config.rpn_post_nms_test,
            nms_iou=config.rpn_nms_iou,
            min_size=config.rpn_min_size,
        )

    return map_images(of_image)(outputs.objectness_logits, outputs.deltas, batch["image_size"])


@jax.named_scope("rpn_losses")
def rpn_sums(
    config: FasterRCNNConfig, outputs: RPNOutputs, batch: Batch, rngs: jax.Array, map_images: MapImages = jax.vmap
) -> RPNSums:
    """Sums [B] over the sampled anchors of every image. rngs: one key per image."""
    all_anchors = np.concatenate(anchors(config, *batch["image"].shape[1:3]))

    def of_image(rng, logits, deltas, *truth):
        return rpn_loss_sums(
            rng,
            jnp.concatenate(logits),
            lanes.concatenate(deltas),
            all_anchors,
            *truth,
            low=config.rpn_low,
            high=config.rpn_high,
            samples=config.rpn_samples,
            positive_fraction=config.rpn_positive_fraction,
            beta=config.rpn_smooth_l1_beta,
        )

    truth = (batch[key] for key in ("gt_boxes", "gt_valid", "gt_ignore"))
    return map_images(of_image)(rngs, outputs.objectness_logits, outputs.deltas, *truth)


@jax.named_scope("roi_samples")
def roi_samples(
    config: FasterRCNNConfig, proposed: Proposals, batch: Batch, rngs: jax.Array, map_images: MapImages = jax.vmap
) -> RoISamples:
    """Regions [B, S, ...] on which the box head is trained. rngs: one key per image."""
    of_image = partial(
        sample_rois,
        num_classes=config.num_classes,
        iou=config.roi_iou,
        samples=config.roi_samples,
        positive_fraction=config.roi_positive_fraction,
        append_gt=config.roi_append_gt,
    )
    truth = (batch[key] for key in ("gt_boxes", "gt_labels", "gt_valid", "gt_ignore"))
    return map_images(of_image)(rngs, proposed, *truth)


@jax.named_scope("roi_align")
def pooled(
    config: FasterRCNNConfig,
    pyramid: Sequence[jax.Array],
    boxes: jax.Array,
    valid: jax.Array,
    map_images: MapImages = jax.vmap,
) -> jax.Array:
    """Features [B, S, h, w, C] of boxes [B, S, 4], each from its own level of P2..P5; 0 where valid [B, S] is False."""

    def of_image(levels, boxes, valid):
        return multilevel_roi_align(
            levels,
            boxes,
            (config.roi_size, config.roi_size),
            STAGES,
            config.roi_sampling_ratio,
            config.roi_aligned,
            valid=valid,
            max_adaptive_samples=config.roi_max_samples,
        )

    return map_images(of_image)(tuple(pyramid[: len(STAGES)]), boxes, valid)


# The two chains.


def loss_from_outputs(
    model: FasterRCNN,
    params: Params,
    pyramid: Pyramid,
    outputs: RPNOutputs,
    batch: Batch,
    rng: jax.Array,
    map_images: MapImages = jax.vmap,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sum of the four losses, and metrics: each loss, and mean counts per image.

    The RPN's losses are divided by the number of sampled anchors, the box head's by the number of sampled regions
    (including background), both over the whole batch (as in detectron2 and torchvision when all slots are filled).
    Images without a lesion count as background. Images with batch["valid"] False do not count.
    """
    config = model.config
    counts = batch.get("valid", jnp.ones(len(batch["image"]), bool))
    rng_rpn, rng_roi = (jax.random.split(key, len(counts)) for key in jax.random.split(rng))

    first = rpn_sums(config, outputs, batch, rng_rpn, map_images)
    first = jax.tree.map(lambda per_image: jnp.where(counts, per_image, 0).sum(), first)

    proposed = proposals(config, outputs, batch, training=True, map_images=map_images)
    samples = roi_samples(config, proposed, batch, rng_roi, map_images)
    samples = samples._replace(valid=samples.valid & counts[:, None], is_positive=samples.is_positive & counts[:, None])
    regions = pooled(config, pyramid, samples.boxes, samples.valid, map_images)
    scored = box_outputs(model, params, regions)
    with jax.named_scope("box_losses"):
        second = box_loss_sums(scored, samples, weights=config.box_weights, beta=config.box_smooth_l1_beta)

    anchors_seen, regions_seen = (jnp.maximum(sums.samples, 1) for sums in (first, second))
    losses = {
        "loss_rpn_objectness": first.objectness / anchors_seen,
        "loss_rpn_box": first.box / anchors_seen,
        "loss_class": second.classes / regions_seen,
        "loss_box": second.box / regions_seen,
    }
    images = jnp.maximum(counts.sum(), 1)
    per_image = {
        "rpn_positives": first.positives / images,
        "roi_positives": second.positives / images,
        "proposals": (proposed.valid & counts[:, None]).sum() / images,
    }
    return jnp.stack(list(losses.values())).sum(), {**losses, **per_image}


def predict_from_features(
    model: FasterRCNN, params: Params, pyramid: Pyramid, batch: Batch, map_images: MapImages = jax.vmap
) -> dict[str, jax.Array]:
    """Detections of every image, best first: boxes [B, K, 4] in pixels of the batch image; scores, labels, valid
    [B, K]."""
    config = model.config
    outputs = rpn_outputs(model, params, pyramid)
    proposed = proposals(config, outputs, batch, training=False, map_images=map_images)
    regions = pooled(config, pyramid, proposed.boxes, proposed.valid, map_images)
    scored = box_outputs(model, params, regions)
    of_image = partial(
        select_detections,
        weights=config.box_weights,
        score_floor=config.score_floor,
        nms_iou=config.detection_nms_iou,
        detections=config.detections,
        min_size=config.detection_min_size,
        candidates=config.detection_candidates,
    )
    with jax.named_scope("detections"):
        found = map_images(of_image)(scored.class_logits, scored.box_deltas, proposed, batch["image_size"])
    return dict(found._asdict())
