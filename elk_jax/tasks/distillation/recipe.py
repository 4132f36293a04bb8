"""The settings of distillation: the recipe of teacher and student, which share a detector, and the stage for both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, get_args

from elk_jax.detection.detector import TapName
from elk_jax.distillation.points import Count, Sampling
from elk_jax.errors import UserError
from elk_jax.evaluation.evaluate import METRIC_NAMES
from elk_jax.fields import ABOVE_ZERO, NOT_NEGATIVE, SHARE, AtLeast, Between, OneOf
from elk_jax.tasks.detection.recipe import DetectionRecipe, TrainDetectorStage
from elk_jax.tasks.stages import Data, Origin
from elk_jax.training import schedules

Mode = Literal[
    "lesion",
    "image",
    "pretraining",
    "none",
    "pkd",
    "fgd",
    "classwise",
    "cwd",
    "mse",
    "sigmoid_l2",
    "contrastive",
    "hints",
    "outputs",
]
SIMILARITY = "similarity"
"""Similarity of a student's maps to those of the teacher of the partners, on the validation split."""


WITHOUT_LOSS = ("pretraining", "none")
"""Modes in which the student only learns to detect."""
_WITH_LOSS = tuple(mode for mode in get_args(Mode) if mode not in WITHOUT_LOSS)
READ_BY = {
    "weight": _WITH_LOSS,
    "detection_weight": _WITH_LOSS,
    "temperature": ("lesion", "image", "classwise", "cwd", "contrastive", "outputs"),
    "tolerance": ("mse", "sigmoid_l2"),
    "confidence": ("outputs",),
}
"""Setting -> the modes that read it."""


@dataclass(frozen=True, kw_only=True)
class DistillationRecipe(DetectionRecipe):
    """Settings for training a teacher and its student (Alberb et al. 2024). Both are the detector `model`.

    mode: what a student learns from its teacher besides detection (`model.MODES`); pretraining: only its initial
    weights; none: nothing, it starts from `init_from` or from random weights. weight: of this loss; None: as published.
    normalised: `lesion` and `image` compare features without their scale; False: unscaled, as published, so that this
    loss dominates all others on the fine levels of a pyramid (`lesions.lskd`).
    detection_weight: of detection; 0: the student only learns from its teacher, and its heads do not change, except in
    the mode `outputs`. distill_from: the first step with the loss of the mode, from 0. student_rate: factor on the
    learning rate of students, which start from a trained detector. student_length: factor on their steps, and on those
    between their evaluations, checkpoints and log lines, as an epoch of their few images is shorter. Steps of the
    schedule are scaled with it if they are given as shares.
    points, sampling: of a lesion, for `lesion` and `intra_align`. stride: of the level that these and `image` read, in
    pixels per cell, 32 as published; the others read all levels. On the finest level of a pyramid, which finds small
    lesions, `intra_align` can cost a teacher half of its detections (docs/results/comoto.md). tap: the levels to read:
    those of the pyramid, or of the backbone below it. temperature: of `lesion`, `image`, `classwise`, `cwd`,
    `contrastive` and `outputs`; None: as published. tolerance: displacement in cells that `mse` and `sigmoid_l2` allow
    between the maps. confidence: for `outputs`: probability from which the teacher's box is a target; None: 0.3.
    intra_align: the teacher learns similar features for all lesions, unlike those of other tissue (ImPA), with
    align_weight. negatives: cells to contrast with; breast: inside the breast; anywhere: air and padding too.
    """

    mode: Mode = "lesion"
    weight: Annotated[float, NOT_NEGATIVE] | None = None
    normalised: bool = True
    detection_weight: Annotated[float, NOT_NEGATIVE] = 1.0
    distill_from: Annotated[int, AtLeast(0)] = 0
    student_rate: Annotated[float, ABOVE_ZERO] = 1.0
    student_length: Annotated[float, ABOVE_ZERO] = 1.0
    points: Count = 9
    sampling: Sampling = "bilinear"
    stride: Annotated[int, AtLeast(1)] = 32
    tap: TapName = "pyramid"
    temperature: Annotated[float, ABOVE_ZERO] | None = None
    tolerance: Annotated[int, Between(0, 8)] = 0
    confidence: Annotated[float, SHARE] | None = None
    intra_align: bool = True
    align_weight: Annotated[float, NOT_NEGATIVE] = 2.0
    negatives: Literal["breast", "anywhere"] = "breast"
    best_metric: Annotated[str, OneOf((*METRIC_NAMES, SIMILARITY))] = "mean_sensitivity"

    def __post_init__(self) -> None:
        if self.privacy is not None:
            what = "the losses of distillation are means over the images of a batch, which interact in them"
            raise UserError(what, where="privacy", todo="set it to None; a detection stage trains privately")
        if not self.detection_weight and self.mode in WITHOUT_LOSS:
            what = f"the mode {self.mode} has no loss except that of detection"
            raise UserError(what, where="detection_weight", todo="give a number above 0, or choose another mode")
        if not self.detects and self.best_metric != SIMILARITY:
            what = "a student that does not learn to detect cannot be chosen by its detections"
            raise UserError(what, where="best_metric", todo=f"set best_metric={SIMILARITY}")
        steps = self.of_student(self.steps)
        if self.distill_from >= steps and self.mode not in WITHOUT_LOSS:
            what = f"the mode {self.mode} would start at step {self.distill_from} of {steps}"
            raise UserError(what, where="distill_from", todo="give a step of the student's training")
        schedules.build(self.schedule, steps)  # whose milestones may be out of order in fewer steps
        defaults = {one.name: one.default for one in fields(self)}
        for name, modes in READ_BY.items():
            if getattr(self, name) != defaults[name] and self.mode not in modes:
                what = f"{name} is {getattr(self, name):g}, which the mode {self.mode} does not read"
                raise UserError(what, where=name, todo=f"leave it out; it applies to {', '.join(modes)}")
        super().__post_init__()

    @property
    def detects(self) -> bool:
        """Whether a student learns to detect."""
        return self.detection_weight > 0 or self.mode == "outputs"

    def of_student(self, steps: int) -> int:
        """A number of steps scaled for a student; 0 stays 0."""
        return steps and max(1, round(self.student_length * steps))


OF_STUDENTS = (
    "mode",
    "weight",
    "normalised",
    "detection_weight",
    "distill_from",
    "student_rate",
    "student_length",
    "temperature",
    "tolerance",
    "confidence",
)
OF_TEACHERS = ("intra_align", "align_weight", "negatives")
"""Settings that the training of the other role does not read."""


@dataclass(frozen=True, kw_only=True)
class TrainDistilledStage(TrainDetectorStage):
    """Train a teacher, or a student of one.

    teacher: of a student, an earlier train stage or a model folder. The student starts from its weights, unless the
    mode is none or `init_from` names others, which a student of pairs may do. beside: images for a student's teacher,
    of any patients; their batches accompany those of `train_on`. partner: the teacher sees the partners of the
    student's images, which are pairs (`SourceSpec.partner`).
    """

    task: Literal["distillation"] = "distillation"  # type: ignore[assignment]
    recipe: str = "distill"
    role: Literal["teacher", "student"]
    teacher: str = ""
    beside: tuple[str, ...] = ()
    partner: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.role == "teacher":
            for where in ("teacher", "beside", "partner"):
                if getattr(self, where):
                    raise UserError(f"a teacher has no {where}", where=where, todo="leave it out, or set role=student")
        if self.public:
            raise UserError("public data are only for private training", where="public", todo="leave it empty")

    def data(self) -> tuple[Data, ...]:
        *train, held_out = super().data()
        return *train, *(Data(source, "train") for source in self.beside), held_out

    def named_models(self) -> Mapping[str, str]:
        return {**super().named_models(), **({"teacher": self.teacher} if self.teacher else {})}

    def origin(self) -> Origin:
        sources, models = super().origin()
        return Origin(sources + self.beside, models)

    def relevant(self, recipe: DistillationRecipe) -> DistillationRecipe:
        others = OF_STUDENTS if self.role == "teacher" else OF_TEACHERS
        changes: Any = {one.name: one.default for one in fields(DistillationRecipe) if one.name in others}
        return replace(recipe, **changes)

    def paced(self, recipe: DistillationRecipe) -> DistillationRecipe:
        """The recipe with this stage's own learning rate and steps."""
        if self.role == "teacher":
            return recipe
        every = ("steps", "eval_every", "checkpoint_every", "log_every")
        counts: Any = {name: recipe.of_student(getattr(recipe, name)) for name in every}
        schedule = replace(recipe.schedule, base=recipe.student_rate * recipe.schedule.base)
        return replace(recipe, schedule=schedule, student_rate=1.0, student_length=1.0, **counts)

    def starting(self, recipe: DistillationRecipe) -> TrainDistilledStage:
        """The stage with its initial weights as `init_from`: for a student those of its teacher, unless it names
        others."""
        own = recipe.mode == "none" or not self.teacher or self.init_from
        return self if own else replace(self, init_from=self.teacher)
