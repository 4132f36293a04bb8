"""All settings of a RetinaNet, grouped by stage, and those that published weights require."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from elk_jax.backbones.resnet import ResNetConfig
from elk_jax.detection.dense_config import STAGES, DenseConfig
from elk_jax.detection.settings import FromOne, NormName, NotNegative, check_groups
from elk_jax.fields import Between

PYRAMID = (*STAGES, 64, 128)
"""Pixels per cell of P3..P7."""

FromZero = Annotated[int, Between(0, 1 << 16)]


@dataclass(frozen=True)
class RetinaNetConfig(DenseConfig):
    """RetinaNet. The defaults are those of Lin et al. 2017 as in torchvision, with a ResNet-50 and one class.

    UserError for an impossible value; its `where` is the field.
    """

    name: Literal["retinanet"] = "retinanet"

    # Feature pyramid, P3..P7.
    fpn: bool = True
    """False: the heads read only C5, a single level with 32 pixels per cell."""
    fpn_channels: FromOne = 256
    fpn_norm: NormName = "none"
    """See `norms.NORMS`."""
    fpn_top: Literal["p5", "c5"] = "p5"
    """The map from which P6 is computed."""
    norm_groups: FromOne = 32
    """Groups of every 'gn' after the backbone; all widths must be divisible by it."""
    norm_eps: NotNegative = 1e-5
    """Epsilon of the norms after the backbone."""

    # Heads: one for classes and one for boxes, shared by all levels.
    head_convs: Annotated[int, Between(0, 64)] = 4
    head_width: FromZero = 0
    """Channels of their convolutions; 0: as in the levels."""
    head_norm: NormName = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        grouped = {
            "fpn_channels": self.fpn and (self.fpn_norm == "gn" or (self.head_norm == "gn" and not self.head_width)),
            "head_width": self.head_norm == "gn" and self.head_width > 0,
        }
        check_groups(self, grouped)

    @property
    def stages(self) -> tuple[int, ...]:
        """Pixels per cell of the maps that are read from the backbone."""
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
    """For weights of torchvision's retinanet_resnet50_fpn, with `changes`.

    Its published COCO_V1 weights were trained with norms of epsilon 0.
    """
    settings: dict[str, Any] = {"background": "first", "anchor_sizes": _ROUNDED, "anchor_rounded": True}
    return RetinaNetConfig(**{**settings, **changes})


def torchvision_v2(**changes: Any) -> RetinaNetConfig:
    """For weights of torchvision's retinanet_resnet50_fpn_v2 (Zhang et al. 2020), with `changes`.

    Trained batch norms in the backbone, here with constant statistics, GroupNorm in the heads, P6 from C5, GIoU loss.
    """
    settings: dict[str, Any] = {
        "backbone": ResNetConfig(norm="affine_bn", num_classes=0),
        "fpn_top": "c5",
        "head_norm": "gn",
        "box_loss": "giou",
    }
    return torchvision(**{**settings, **changes})


def plain(**changes: Any) -> RetinaNetConfig:
    """On C5 only, with five anchor sizes in every cell, as in CoMoTo (Alberb et al. 2024), with `changes`."""
    settings: dict[str, Any] = {
        "fpn": False,
        "anchor_sizes": ((32.0, 64.0, 128.0, 256.0, 512.0),),
        "anchor_rounded": True,
    }
    return RetinaNetConfig(**{**settings, **changes})
