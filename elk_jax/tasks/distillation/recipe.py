"""The settings of distillation: the recipe of teacher and student, which are one detector, and the stage of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from elk_jax.distillation.points import Count, Sampling
from elk_jax.errors import UserError
from elk_jax.fields import ABOVE_ZERO, NOT_NEGATIVE, AtLeast
from elk_jax.tasks.detection.recipe import DetectionRecipe, TrainDetectorStage
from elk_jax.tasks.stages import Data, Origin

Mode = Literal["lesion", "image", "pretraining", "none", "pkd", "fgd", "classwise", "cwd"]


@dataclass(frozen=True, kw_only=True)
class DistillationRecipe(DetectionRecipe):
    """How a teacher and its student are trained (Alberb et al. 2024). Both are the detector `model`.

    mode: what a student learns of its teacher beside detection (`model.MODES`); pretraining: its weights, to start
    from; none: nothing, it starts from `init_from`, or from random weights. weight: of this loss; None: as published.
    distill_from: the first step with it, from 0.
    points, sampling: of a lesion, for `lesion` and `intra_align`. stride: of the level that these and `image` read, in
    pixels per cell; the others read all levels. temperature: of `lesion`, `image`, `classwise` and `cwd`; None: as
    published.
    intra_align: the teacher learns that lesions resemble each other and not what lies beside them (ImPA), by
    align_weight. negatives: what lies beside; breast: cells of the breast; anywhere: air and padding too.
    """

    mode: Mode = "lesion"
    weight: Annotated[float, NOT_NEGATIVE] | None = None
    distill_from: Annotated[int, AtLeast(0)] = 0
    points: Count = 9
    sampling: Sampling = "bilinear"
    stride: Annotated[int, AtLeast(1)] = 8
    temperature: Annotated[float, ABOVE_ZERO] | None = None
    intra_align: bool = True
    align_weight: Annotated[float, NOT_NEGATIVE] = 2.0
    negatives: Literal["breast", "anywhere"] = "breast"

    def __post_init__(self) -> None:
        if self.privacy is not None:
            what = "the losses of distillation are means over the images of a batch, which meet in them"
            raise UserError(what, where="privacy", todo="set it to None; a detection stage trains privately")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class TrainDistilledStage(TrainDetectorStage):
    """Train a teacher, or a student of one.

    teacher: of a student, a train stage before it or a model folder; its weights start the student, unless the mode is
    none. beside: images of a student's teacher, of any patients: batches of them run beside those of `train_on`.
    """

    task: Literal["distillation"] = "distillation"  # type: ignore[assignment]
    recipe: str = "distill"
    role: Literal["teacher", "student"]
    teacher: str = ""
    beside: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.role == "teacher" and (self.teacher or self.beside):
            where = "teacher" if self.teacher else "beside"
            raise UserError(f"a teacher has no {where}", where=where, todo="leave it empty, or set role=student")
        if self.public:
            raise UserError("public data are of private trainings", where="public", todo="leave it empty")

    def data(self) -> tuple[Data, ...]:
        *train, held_out = super().data()
        return *train, *(Data(source, "train") for source in self.beside), held_out

    def named_models(self) -> Mapping[str, str]:
        return {**super().named_models(), **({"teacher": self.teacher} if self.teacher else {})}

    def origin(self) -> Origin:
        sources, models = super().origin()
        return Origin(sources + self.beside, models)

    def starting(self, recipe: DistillationRecipe) -> TrainDistilledStage:
        """The stage with the weights that it starts from as `init_from`: a student's are those of its teacher."""
        return self if recipe.mode == "none" or not self.teacher else replace(self, init_from=self.teacher)
