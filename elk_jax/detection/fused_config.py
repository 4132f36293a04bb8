"""Every number of a fused detector: an EfficientDet of two trunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from elk_jax.detection.detector import TapName
from elk_jax.detection.efficientdet_config import EfficientDetConfig
from elk_jax.errors import UserError
from elk_jax.fields import BELOW_ONE


@dataclass(frozen=True)
class FusedConfig(EfficientDetConfig):
    """An EfficientDet of two trunks whose maps are joined (Sharma et al. 2024). The other settings are those of both.

    UserError for a value that cannot be; its `where` is the field.
    """

    name: Literal["fused"] = "fused"  # type: ignore[assignment]

    second: Literal["own", "partner"] = "own"
    """What the second trunk reads: the same image as the first, or its partner, so that pairs are needed."""
    tap: TapName = "pyramid"
    """Which maps are joined: those of the pyramid, or those of the backbone, below one pyramid."""
    join: Literal["conv", "concat"] = "conv"
    """'conv': a 1x1 convolution of both, which starts as the first trunk alone. 'concat': both, to wider layers."""
    drop: Annotated[float, BELOW_ONE] = 0.0
    """Probability that an image in training has no partner (modality dropout, Neverova et al. 2015). Above 0 the
    detector is tested without: the maps of the second trunk are 0 then."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drop and self.second == "own":
            what = "the second trunk reads the same image, which is never missing"
            raise UserError(what, where="drop", todo="set second=partner, or drop=0")
