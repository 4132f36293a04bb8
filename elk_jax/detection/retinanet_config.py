"""Every number of a RetinaNet, grouped by stage, and the sets of them that published weights expect."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from elk_jax.backbones import networks
from elk_jax.backbones.resnet import ResNetConfig
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
from elk_jax.fields import Between, ByName, Range, check, impossible

STAGES = (8, 16, 32)
"""Pixels per cell of C3..C5, the maps of the backbone that a feature pyramid starts from."""
PYRAMID = (*STAGES, 64, 128)
"""Of P3..P7."""

FromZero = Annotated[int, Between(0, 1 << 16)]
Inside = Annotated[float, Range(0, 1, above=True, below=True)]


@dataclass(frozen=True)
class RetinaNetConfig:
    """RetinaNet. The defaults are those of Lin et al. 2017 as torchvision has them, with a ResNet-50 and one class.

    UserError for a value that cannot be; its `where` is the field.
    """

    name: Literal["retinanet"] = "retinanet"

    num_classes: FromOne = 1
    """Q, background not counted."""

    backbone: Annotated[Any, ByName(networks.kinds)] = field(default_factory=lambda: ResNetConfig(num_classes=0))
    """The network (`backbones.networks`) and the input that it takes. The pyramid and the heads compute in its
    `dtype`; boxes and losses never below float32."""

    # Feature pyramid, P3..P7.
    fpn: bool = True
    """False: the heads read C5 alone, a single level of 32 pixels per cell."""
    fpn_channels: FromOne = 256
    fpn_norm: NormName = "none"
    """See `norms.NORMS`."""
    fpn_top: Literal["p5", "c5"] = "p5"
    """What P6 is computed from."""
    norm_groups: FromOne = 32
    """Groups of every 'gn' behind the backbone: must divide all widths."""
    norm_eps: NotNegative = 1e-5
    """Of the norms behind the backbone."""

    # Heads: one for classes and one for boxes, the same on all levels.
    head_convs: Annotated[int, Between(0, 64)] = 4
    head_width: FromZero = 0
    """Channels of their convolutions; 0: as the levels."""
    head_norm: NormName = "none"
    prior: Inside = 0.01
    """Of a class, at the start: spares the first steps the many anchors on background."""
    background: Literal["first", "none"] = "none"
    """'first': there is an unused class before all others, with its own output (torchvision)."""

    # Anchors.
    anchor_sizes: tuple[Positives, ...] = tuple(
        (size, size * 2 ** (1 / 3), size * 2 ** (2 / 3)) for size in (32.0, 64.0, 128.0, 256.0, 512.0)
    )
    """Per level, pixels of the resized image; every level has equally many."""
    anchor_ratios: Positives = (0.5, 1.0, 2.0)
    """Height / width."""
    anchor_offset: NotNegative = 0.0
    anchor_rounded: bool = False
    """torchvision's whole-pixel anchors (see `anchors.pyramid_anchors`)."""

    # Losses.
    iou_high: Share = 0.5
    """IoU from which an anchor is positive. The best anchors of every lesion are positive as well."""
    iou_low: Share = 0.4
    """IoU below which an anchor is negative."""
    focal_alpha: Share = 0.25
    """Weight of positives; negatives have the rest."""
    focal_gamma: Annotated[float, Between(0, 100)] = 2.0
    box_loss: Literal["l1", "giou"] = "l1"
    """Of the deltas, or of the boxes that they decode to."""
    box_smooth_l1_beta: NotNegative = 0.0
    """Of 'l1': quadratic below it."""
    box_weights: tuple[Positive, Positive, Positive, Positive] = (1.0, 1.0, 1.0, 1.0)

    # Detections.
    score_floor: Share = 0.05
    """Detections must score more than this."""
    level_candidates: FromOne = 1000
    """Best (anchor, class) pairs of each level that enter the NMS."""
    detection_nms_iou: Share = 0.5
    soft_nms_sigma: NotNegative = 0.0
    """Above 0: the scores of overlapping boxes fall instead (see `nms.soft_nms`)."""
    detections: FromOne = 300
    """K of an image."""
    detection_min_size: NotNegative = 0.0

    def __post_init__(self) -> None:
        check(self)
        backbone.check(self.backbone, self.stages)
        check_anchors(self, len(self.strides))
        if self.iou_low > self.iou_high:
            raise impossible(self, "iou_low", f"give at most iou_high = {self.iou_high}")
        grouped = {
            "fpn_channels": self.fpn and (self.fpn_norm == "gn" or (self.head_norm == "gn" and not self.head_width)),
            "head_width": self.head_norm == "gn" and self.head_width > 0,
        }
        check_groups(self, grouped)

    @property
    def stages(self) -> tuple[int, ...]:
        """Pixels per cell of the maps that are read of the backbone."""
        return STAGES if self.fpn else STAGES[-1:]

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of every level."""
        return PYRAMID if self.fpn else STAGES[-1:]


_ROUNDED: tuple[tuple[float, ...], ...] = (
    (32.0, 40.0, 50.0),
    (64.0, 80.0, 101.0),
    (128.0, 161.0, 203.0),
    (256.0, 322.0, 406.0),
    (512.0, 645.0, 812.0),
)


def torchvision(**changes: Any) -> RetinaNetConfig:
    """For weights of torchvision's retinanet_resnet50_fpn, and `changes`.

    Its published COCO_V1 weights were trained with norms of epsilon 0.
    """
    settings: dict[str, Any] = {"background": "first", "anchor_sizes": _ROUNDED, "anchor_rounded": True}
    return RetinaNetConfig(**{**settings, **changes})


def torchvision_v2(**changes: Any) -> RetinaNetConfig:
    """For weights of torchvision's retinanet_resnet50_fpn_v2 (Zhang et al. 2020), and `changes`.

    Trained batch norms in the backbone, here with constant statistics, GroupNorm in the heads, P6 of C5, GIoU loss.
    """
    settings: dict[str, Any] = {
        "backbone": ResNetConfig(norm="affine_bn", num_classes=0),
        "fpn_top": "c5",
        "head_norm": "gn",
        "box_loss": "giou",
    }
    return torchvision(**{**settings, **changes})


def plain(**changes: Any) -> RetinaNetConfig:
    """On C5 alone, with five sizes of anchors in every cell, as in CoMoTo (Alhussein et al. 2024), and `changes`."""
    settings: dict[str, Any] = {
        "fpn": False,
        "anchor_sizes": ((32.0, 64.0, 128.0, 256.0, 512.0),),
        "anchor_rounded": True,
    }
    return RetinaNetConfig(**{**settings, **changes})
