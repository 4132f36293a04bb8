"""Settings common to one-stage detectors: input, anchors, losses, detections."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from elk_jax.backbones import networks
from elk_jax.backbones.resnet import ResNetConfig
from elk_jax.detection import backbone
from elk_jax.detection.settings import FromOne, NotNegative, Positive, Positives, Share, check_anchors
from elk_jax.fields import Between, ByName, Range, check, impossible

STAGES = (8, 16, 32)
"""Pixels per cell of C3..C5, the maps of the backbone from which a pyramid starts."""

Inside = Annotated[float, Range(0, 1, above=True, below=True)]


@dataclass(frozen=True)
class DenseConfig:
    """A detector with an output for every anchor of its levels. The defaults are those of Lin et al. 2017 (RetinaNet).

    The settings of a detector derive from this class and define the properties `stages` and `strides`. UserError for an
    impossible value; its `where` is the field.
    """

    name: str = ""

    num_classes: FromOne = 1
    """Q, background not counted."""

    backbone: Annotated[Any, ByName(networks.kinds)] = field(default_factory=lambda: ResNetConfig(num_classes=0))
    """The network (`backbones.networks`) and its input. The pyramid and the heads compute in its `dtype`; boxes and
    losses never below float32."""

    prior: Inside = 0.01
    """Initial probability of a class: keeps the many background anchors from dominating the first steps."""
    background: Literal["first", "none"] = "none"
    """'first': an unused class precedes all others, with its own output (torchvision)."""

    # Anchors.
    anchor_sizes: tuple[Positives, ...] = tuple(
        (size, size * 2 ** (1 / 3), size * 2 ** (2 / 3)) for size in (32.0, 64.0, 128.0, 256.0, 512.0)
    )
    """Per level, pixels of the resized image; every level has the same number."""
    anchor_ratios: Positives = (0.5, 1.0, 2.0)
    """Height / width."""
    anchor_offset: NotNegative = 0.0
    anchor_rounded: bool = False
    """torchvision's whole-pixel anchors (see `anchors.pyramid_anchors`)."""

    # Losses.
    iou_high: Share = 0.5
    """IoU from which an anchor is positive. The best anchors of every lesion are also positive."""
    iou_low: Share = 0.4
    """IoU below which an anchor is negative."""
    focal_alpha: Share = 0.25
    """Weight of positives; negatives have 1 minus this weight."""
    focal_gamma: Annotated[float, Between(0, 100)] = 2.0
    box_loss: Literal["l1", "giou"] = "l1"
    """Box loss on the deltas, or on the decoded boxes."""
    box_smooth_l1_beta: NotNegative = 0.0
    """For 'l1': quadratic below this value (Huber's delta)."""
    box_weights: tuple[Positive, Positive, Positive, Positive] = (1.0, 1.0, 1.0, 1.0)

    # Detections.
    score_floor: Share = 0.05
    """Detections must score above this."""
    level_candidates: FromOne = 1000
    """Number of best (anchor, class) pairs of each level that enter the NMS."""
    detection_nms_iou: Share = 0.5
    soft_nms_sigma: NotNegative = 0.0
    """Above 0: the scores of overlapping boxes are lowered instead (see `nms.soft_nms`); 0.5 in EfficientDet's
    evaluation."""
    detections: FromOne = 300
    """K per image."""
    detection_min_size: NotNegative = 0.0

    def __post_init__(self) -> None:
        check(self)
        backbone.check(self.backbone, self.stages)
        check_anchors(self, len(self.strides))
        if self.iou_low > self.iou_high:
            raise impossible(self, "iou_low", f"give at most iou_high = {self.iou_high}")

    @property
    def stages(self) -> tuple[int, ...]:
        """Pixels per cell of the maps that are read from the backbone."""
        raise NotImplementedError

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of every level."""
        raise NotImplementedError
