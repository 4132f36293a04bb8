"""All settings of a fused detector: an EfficientDet with two trunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from elk_jax.detection.detector import TapName
from elk_jax.detection.efficientdet_config import EfficientDetConfig
from elk_jax.errors import UserError
from elk_jax.fields import BELOW_ONE


@dataclass(frozen=True)
class FusedConfig(EfficientDetConfig):
    """An EfficientDet with two trunks whose maps are joined (Sharma et al. 2024). Other settings apply to both trunks.

    UserError for an impossible value; its `where` is the field.
    """

    name: Literal["fused"] = "fused"  # type: ignore[assignment]

    second: Literal["own", "partner"] = "own"
    """Input of the second trunk: the same image as the first, or its partner, which requires pairs."""
    tap: TapName = "pyramid"
    """The maps that are joined: those of the pyramid, or those of the backbone, below a single pyramid."""
    join: Literal["conv", "concat"] = "conv"
    """'conv': a 1x1 convolution of both, which initially passes only the first trunk. 'concat': both, to wider
    layers."""
    drop: Annotated[float, BELOW_ONE] = 0.0
    """Probability that a training image has no partner (modality dropout, Neverova et al. 2015). Above 0, the detector
    is tested without partners: the maps of the second trunk are then 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drop and self.second == "own":
            what = "the second trunk reads the same image, which is never missing"
            raise UserError(what, where="drop", todo="set second=partner, or drop=0")
