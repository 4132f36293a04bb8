"""All settings of a Faster R-CNN, grouped by stage, and those that published weights require."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from elk_jax.backbones import networks, resnet
from elk_jax.detection import backbone
from elk_jax.detection.settings import (
    FromOne,
    NormName,
    NotNegative,
    Positive,
    Positives,
    Share,
    check_anchors,
    check_groups,
)
from elk_jax.fields import Between, ByName, check, impossible

STRIDES = (4, 8, 16, 32, 64)
"""Pixels per cell of P2..P6."""
STAGES = STRIDES[:4]
"""Pixels per cell of C2..C5, the maps of the backbone, and of P2..P5, from which regions are pooled."""

Layers = Annotated[int, Between(0, 64)]


@dataclass(frozen=True)
class FasterRCNNConfig:
    """Faster R-CNN with a feature pyramid. The defaults are ELK's: detectron2's R-101-FPN, one class.

    UserError for an impossible value; its `where` is the field.
    """

    name: Literal["faster_rcnn"] = "faster_rcnn"

    num_classes: FromOne = 1
    """Q, background not counted."""

    backbone: Annotated[Any, ByName(networks.kinds)] = field(default_factory=resnet.detectron2)
    """The network (`backbones.networks`) and its input. The pyramid and the heads compute in its `dtype`; boxes and
    losses never below float32."""

    # Feature pyramid, P2..P6.
    fpn_channels: FromOne = 256
    fpn_norm: NormName = "none"
    """See `norms.NORMS`."""
    norm_groups: FromOne = 32
    """Groups of every 'gn' after the backbone; all widths must be divisible by it."""
    norm_eps: NotNegative = 1e-5
    """Epsilon of the norms after the backbone."""

    # Anchors.
    anchor_sizes: tuple[Positives, ...] = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
    """Per level P2..P6, pixels of the resized image; every level has the same number."""
    anchor_ratios: Positives = (0.5, 1.0, 2.0)
    """Height / width."""
    anchor_offset: NotNegative = 0.0
    anchor_rounded: bool = False
    """torchvision's whole-pixel anchors (see `anchors.pyramid_anchors`)."""

    # Region proposal network.
    rpn_conv_depth: Layers = 1
    rpn_high: Share = 0.7
    """IoU from which an anchor is positive. The best anchors of every lesion are also positive."""
    rpn_low: Share = 0.3
    """IoU below which an anchor is negative."""
    rpn_samples: FromOne = 256
    rpn_positive_fraction: Share = 0.5
    rpn_smooth_l1_beta: NotNegative = 0.0
    rpn_pre_nms_train: FromOne = 2000
    """Number of best anchors of each level that are decoded."""
    rpn_pre_nms_test: FromOne = 1000
    rpn_post_nms_train: FromOne = 1000
    """P: proposals per image, best first, over all levels."""
    rpn_post_nms_test: FromOne = 1000
    rpn_nms_iou: Share = 0.7
    rpn_min_size: NotNegative = 0.0
    """Proposals must be larger than this on both sides, after clipping to the image."""

    # RoI sampling and pooling.
    roi_iou: Share = 0.5
    roi_samples: FromOne = 512
    """S per image."""
    roi_positive_fraction: Share = 0.25
    roi_append_gt: bool = True
    roi_size: FromOne = 7
    roi_sampling_ratio: Annotated[int, Between(0, 64)] = 0
    """Sampling points per bin and axis; 0: as many as a bin of the region has pixels."""
    roi_max_samples: Annotated[int, Between(1, 64)] = 8
    """Their upper limit if roi_sampling_ratio is 0. Regions with longer bins are sampled more coarsely than in
    detectron2: at 8, those longer than 56 cells of their level, at least four times as long as wide. Time grows with
    the square of this limit."""
    roi_aligned: bool = True
    """With half-pixel shift (detectron2's ROIAlignV2) or without (torchvision)."""

    # Box head.
    box_convs: Layers = 0
    box_conv_channels: FromOne = 256
    box_norm: NormName = "none"
    """Channels of the head's convolutions."""
    box_fcs: Layers = 2
    box_fc_width: FromOne = 1024
    background: Literal["first", "last"] = "last"
    """Index of the background class in the head's weights: 0 (torchvision, with box deltas too) or Q (detectron2)."""
    box_weights: tuple[Positive, Positive, Positive, Positive] = (10.0, 10.0, 5.0, 5.0)
    box_smooth_l1_beta: NotNegative = 0.0

    # Detections.
    score_floor: Share = 0.01
    """Detections must score above this."""
    detection_nms_iou: Share = 0.5
    detections: FromOne = 100
    """K per image."""
    detection_min_size: NotNegative = 0.0
    detection_candidates: FromOne = 2000
    """Number of best (proposal, class) pairs that enter the NMS; exact as long as no more exceed the score floor."""

    def __post_init__(self) -> None:
        check(self)
        backbone.check(self.backbone, STAGES)
        check_anchors(self, len(STRIDES))
        if self.rpn_low > self.rpn_high:
            raise impossible(self, "rpn_low", f"give at most rpn_high = {self.rpn_high}")
        grouped = {
            "fpn_channels": self.fpn_norm == "gn",
            "box_conv_channels": self.box_norm == "gn" and self.box_convs > 0,
        }
        check_groups(self, grouped)


def detectron2(**changes: Any) -> FasterRCNNConfig:
    """ELK's settings, for weights of detectron2's R-101-FPN, with `changes`."""
    return FasterRCNNConfig(**changes)


def torchvision(**changes: Any) -> FasterRCNNConfig:
    """For weights of torchvision's fasterrcnn_resnet50_fpn (RGB in 0..1), with `changes`.

    Its published COCO_V1 weights were trained with norms of epsilon 0.
    """
    settings: dict[str, Any] = {
        "backbone": resnet.ResNetConfig(num_classes=0),
        "anchor_rounded": True,
        "rpn_smooth_l1_beta": 1 / 9,
        "rpn_post_nms_train": 2000,
        "rpn_min_size": 1e-3,
        "roi_sampling_ratio": 2,
        "roi_aligned": False,
        "background": "first",
        "box_smooth_l1_beta": 1 / 9,
        "score_floor": 0.05,
        "detection_min_size": 1e-2,
    }
    return FasterRCNNConfig(**{**settings, **changes})


def torchvision_v2(**changes: Any) -> FasterRCNNConfig:
    """For weights of torchvision's fasterrcnn_resnet50_fpn_v2 (Li et al. 2021), with `changes`.

    Batch norms everywhere, here with constant statistics; two RPN convolutions; a box head of four convolutions and one
    dense layer.
    """
    settings: dict[str, Any] = {
        "backbone": resnet.ResNetConfig(norm="affine_bn", num_classes=0),
        "fpn_norm": "affine_bn",
        "rpn_conv_depth": 2,
        "box_convs": 4,
        "box_norm": "affine_bn",
        "box_fcs": 1,
    }
    return torchvision(**{**settings, **changes})
