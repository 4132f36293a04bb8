"""The settings of the comparison of painted lesions with real ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from elk_jax.tasks.stages import Data, EvaluateStage


@dataclass(frozen=True, kw_only=True)
class LesionQualityStage(EvaluateStage):
    """Compare the synthetic lesions of the source `synthetic` with the real ones of one split of `on`.

    synthetic_split: of the synthetic images; "" for all, such as those of a set without splits.
    repeated: search for painted lesions that repeat one of the training split of `on`; False: do not open that split.
    features: a detector's train stage or model folder whose features are compared in addition to radiomics; "": none.
    """

    task: Literal["lesion_quality"] = "lesion_quality"
    split: str = "train"
    synthetic: str
    synthetic_split: str = "train"
    repeated: bool = True
    features: str = ""

    def data(self) -> tuple[Data, ...]:
        splits = dict.fromkeys((self.split, "train") if self.repeated else (self.split,))
        return *(Data(self.on, split) for split in splits), Data(self.synthetic, self.synthetic_split)

    def named_models(self) -> Mapping[str, str]:
        return {"features": self.features} if self.features else {}

    def evaluated(self, writers: Mapping[str, str]) -> tuple[str, ...]:
        return (writers[self.synthetic],) if self.synthetic in writers else ()
