"""The settings of unified representations: the stage that trains a fused detector. Its recipe is that of detection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from elk_jax.errors import UserError
from elk_jax.tasks.detection.recipe import TrainDetectorStage


@dataclass(frozen=True, kw_only=True)
class TrainFusedStage(TrainDetectorStage):
    """Train a detector of two trunks (`detection.fused_config.FusedConfig`).

    own, other: earlier train stages or model folders: EfficientDets whose trunks it starts from. The layers after the
    trunks start from those of `own`. Without both, and without `init_from`, it starts from random weights.
    """

    task: Literal["unified"] = "unified"  # type: ignore[assignment]
    recipe: str = "fused"
    own: str = ""
    other: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.own) != bool(self.other):
            where = "other" if self.own else "own"
            raise UserError("only one of the two trunks has weights", where=where, todo="name a model for both")
        if self.own and self.init_from:
            what = "init_from names a whole detector, and own and other name its trunks"
            raise UserError(what, where="init_from", todo="leave either it or own and other empty")

    @property
    def members(self) -> dict[str, str]:
        """Setting -> the model of each trunk; {} if it starts from other weights."""
        return {"own": self.own, "other": self.other} if self.own else {}

    def named_models(self) -> Mapping[str, str]:
        return {**super().named_models(), **self.members}

    @property
    def starts_trained(self) -> bool:
        return super().starts_trained or bool(self.own)
