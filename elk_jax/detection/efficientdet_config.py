"""All settings of an EfficientDet, and the published variants."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from elk_jax.backbones import efficientnet, networks
from elk_jax.backbones.conv import Padding
from elk_jax.detection.dense_config import STAGES, DenseConfig
from elk_jax.detection.settings import FromOne, NormName, NotNegative, Positives, Share, check_groups
from elk_jax.errors import UserError
from elk_jax.fields import Between, ByName


def octaves(scale: float, levels: int) -> tuple[tuple[float, ...], ...]:
    """Three anchor sizes for every level from P3 on: `scale` strides, and one and two thirds of an octave more."""
    return tuple(tuple(scale * 2 ** (3 + level + o / 3) for o in range(3)) for level in range(levels))


@dataclass(frozen=True)
class EfficientDetConfig(DenseConfig):
    """EfficientDet (Tan, Pang and Le 2020). The defaults are D0 with one class, and trainable norms.

    UserError for an impossible value; its `where` is the field.
    """

    name: Literal["efficientdet"] = "efficientdet"
    backbone: Annotated[Any, ByName(networks.kinds)] = field(
        default_factory=lambda: efficientnet.named("b0", head=False, num_classes=0)
    )
    background: Literal["none"] = "none"

    anchor_sizes: tuple[Positives, ...] = octaves(4.0, 5)
    anchor_ratios: Positives = (1.0, 0.5, 2.0)
    anchor_offset: NotNegative = 0.5
    anchor_rounded: Literal[False] = False
    iou_low: Share = 0.5
    focal_gamma: Annotated[float, Between(0, 100)] = 1.5
    box_smooth_l1_beta: NotNegative = 0.1
    box_loss_weight: NotNegative = 50.0
    """Weight of the box loss: of Huber's, a mean over coordinates, or of 'giou'."""
    detections: FromOne = 100

    # Pyramid and heads.
    channels: FromOne = 64
    cells: Annotated[int, Between(1, 64)] = 3
    levels: Annotated[int, Between(3, 6)] = 5
    """From P3 on."""
    fusion: Literal["fast", "sum"] = "fast"
    """How maps are fused: a mean with trained weights, or the sum."""
    head_convs: Annotated[int, Between(0, 64)] = 3
    activation: Literal["swish", "relu6"] = "swish"
    padding: Padding = "same"
    """TensorFlow's or PyTorch's (`conv.Padding`); weights fit only one of them."""
    norm: NormName = "gn"
    """See `norms.NORMS`. The heads have separate norms for every level."""
    norm_groups: FromOne = 8
    """Groups of 'gn'; `channels` must be divisible by it."""
    norm_eps: NotNegative = 1e-3
    biases: bool = True
    """Whether convolutions have a bias in addition to their norm, as TensorFlow's weights do."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_groups(self, {"channels": self.norm == "gn"})

    @property
    def stages(self) -> tuple[int, ...]:
        """Pixels per cell of the maps that are read from the backbone."""
        return STAGES

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of every level."""
        return tuple(2 ** (3 + level) for level in range(self.levels))


VARIANTS: dict[str, tuple[str, int, int, int, str, int, float]] = {
    "d0": ("b0", 64, 3, 3, "fast", 5, 4.0),
    "d1": ("b1", 88, 4, 3, "fast", 5, 4.0),
    "d2": ("b2", 112, 5, 3, "fast", 5, 4.0),
    "d3": ("b3", 160, 6, 4, "fast", 5, 4.0),
    "d4": ("b4", 224, 7, 4, "fast", 5, 4.0),
    "d5": ("b5", 288, 7, 4, "fast", 5, 4.0),
    "d6": ("b6", 384, 8, 5, "sum", 5, 4.0),
    "d7": ("b6", 384, 8, 5, "sum", 5, 5.0),
    "d7x": ("b7", 384, 8, 5, "sum", 6, 4.0),
    "lite0": ("lite0", 64, 3, 3, "sum", 5, 3.0),
    "lite1": ("lite1", 88, 4, 3, "sum", 5, 3.0),
    "lite2": ("lite2", 112, 5, 3, "sum", 5, 3.0),
    "lite3": ("lite3", 160, 6, 4, "sum", 5, 4.0),
    "lite3x": ("lite3", 200, 6, 4, "sum", 5, 3.0),
    "lite4": ("lite4", 224, 7, 4, "sum", 5, 4.0),
}
"""Backbone, channels, cells, convolutions of the heads, fusion, levels and anchor scale of the published detectors."""


def named(variant: str, **changes: Any) -> EfficientDetConfig:
    """The published detector `variant`, a key of VARIANTS, with `changes`. UserError for an unknown name."""
    if variant not in VARIANTS:
        raise UserError(f"no EfficientDet '{variant}'", todo=f"choose one of {', '.join(VARIANTS)}")
    network, channels, cells, convs, fusion, levels, scale = VARIANTS[variant]
    published: dict[str, Any] = {
        "backbone": efficientnet.named(network, head=False, num_classes=0),
        "channels": channels,
        "cells": cells,
        "head_convs": convs,
        "fusion": fusion,
        "levels": levels,
        "anchor_sizes": octaves(scale, levels),
        "activation": "relu6" if variant.startswith("lite") else "swish",
    }
    return EfficientDetConfig(**{**published, **changes})
