"""The settings of detection: the recipe of a detector, and the stages that train and evaluate it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from elk_jax.data.augment import NO_AUGMENTATION, Resize
from elk_jax.data.batches.detection import LoaderConfig
from elk_jax.data.batches.mixing import check_weights
from elk_jax.data.flips import Flip
from elk_jax.data.slice_greys import SliceGreys
from elk_jax.detection import detectors
from elk_jax.detection.detector import has_anchors
from elk_jax.detection.volumes import Rule
from elk_jax.errors import UserError
from elk_jax.evaluation import fusion
from elk_jax.evaluation.bootstrap import Resamples
from elk_jax.evaluation.evaluate import METRIC_NAMES
from elk_jax.evaluation.hits import criterion_from_text
from elk_jax.fields import NOT_EMPTY, SHARE, AtLeast, ByName, OneOf
from elk_jax.tasks.detection.model import Same, Scales, Weight, at_scale
from elk_jax.tasks.stages import CombineStage, EvaluateModelsStage, PrivateTrainStage
from elk_jax.training.recipe import TrainingRecipe

Metric = Literal["froc", "dbtex"]
"""A setting: the metric for images, or that of the DBTex challenge for tomosynthesis volumes."""
FIT = Resize(short_sides=(), max_long_side=0, jitter=(1.0, 1.0))
"""Resize to the largest size that fits the canvas."""


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe(TrainingRecipe):
    """Settings for training, testing and evaluating a detector.

    model: the detector, chosen by its field `name` (`detection.detectors.DETECTORS`).
    plan_anchors: derive one anchor size per level from the lesions of the training split; several sizes of a level keep
    their ratios. False: use those of `model`.
    crop_to_breast: first cut away the air around the breast.
    test_resize: size of the images in testing, in the canvases of `loader`. test_flips: mirrored views to detect in as
    well; test_scales: factors on the size of the input, the first of them 1, at each of which it detects in all of
    these views; the detections are fused. Checkpoints are chosen without them. test_same: IoUs to try, from which boxes
    of several views count as the same lesion; best_metric chooses on the folds or the validation split, the first of
    equally good ones. With folds it also chooses how many of the mirrored views and of the scales are used, in the
    order given. slice_greys: of whole volumes, in testing.
    best_metric: metric on the validation split that chooses the checkpoint. choose_score_floor: detections with a lower
    score are dropped while choosing; score_floor: the same in testing.
    bootstrap: resamples of patients for the intervals; 0: no intervals.

    In private training, `loader.batch_size` is the expected number of units in a batch, the loss is the mean over the
    images of a unit, and no setting may be derived from the training data: give the anchors, one canvas and
    `max_boxes`.
    """

    model: Annotated[Any, ByName(detectors.kinds)] = field(default_factory=detectors.DEFAULT)
    plan_anchors: bool = True
    crop_to_breast: bool = True
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    test_resize: Resize = FIT
    test_flips: tuple[Flip, ...] = ()
    test_scales: Scales = (1.0,)
    test_same: Annotated[tuple[Same, ...], NOT_EMPTY] = (fusion.SAME,)
    slice_greys: SliceGreys = "window"
    best_metric: Annotated[str, OneOf(METRIC_NAMES)] = "mean_sensitivity"
    score_floor: Annotated[float, SHARE] = 0.01
    choose_score_floor: Annotated[float, SHARE] = 0.1
    bootstrap: Resamples = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test_scales[0] != 1:
            what = f"the first scale is {self.test_scales[0]:g}, but checkpoints are chosen at 1"
            todo = "begin with 1.0, or set the size itself in test_resize and loader.buckets"
            raise UserError(what, where="test_scales", todo=todo)
        for scale in self.test_scales[1:]:
            at_scale(self.test_loader(), scale, "test_scales")
        if len(self.test_same) > 1 and not self.test_flips and set(self.test_scales) == {1.0}:
            what = f"{len(self.test_same)} IoUs for fusing boxes, but only one view"
            todo = "give mirrored views with test_flips or sizes with test_scales, or leave it out"
            raise UserError(what, where="test_same", todo=todo)
        if self.model.score_floor != type(self.model).score_floor:
            what = f"model.score_floor is {self.model.score_floor:g}, in place of which training sets score_floor"
            raise UserError(what, where="model.score_floor", todo="leave it out, and set score_floor of the recipe")
        for name, resize in (("loader.resize", self.loader.resize), ("test_resize", self.test_resize)):
            if resize.jitter and resize.max_long_side:
                what = f"max_long_side is {resize.max_long_side}, but with jitter the canvas limits the size"
                todo = "set it to 0, or give short_sides and jitter=()"
                raise UserError(what, where=f"{name}.max_long_side", todo=todo)
        if self.privacy is not None:
            self._check_private()

    def _check_private(self) -> None:
        """UserError for settings that would use statistics of the training data or mix units."""
        loader = self.loader
        if self.plan_anchors and has_anchors(self.model):
            todo = "set plan_anchors=False, and set model.anchor_sizes from public knowledge of lesions"
            raise UserError(
                "anchors planned from protected lesions reveal their sizes", where="plan_anchors", todo=todo
            )
        if len(loader.buckets) != 1:
            what = f"{len(loader.buckets)} canvases, but all examples of a private training share one"
            raise UserError(what, where="loader.buckets", todo="give one (height, width), not chosen by the data")
        if not loader.max_boxes:
            what = "the largest number of lesions in a protected image would determine the size of batches"
            raise UserError(what, where="loader.max_boxes", todo="give a number that no image exceeds, such as 16")
        for name in ("lesion_share", "small_share"):
            if (share := getattr(loader, name)) is not None:
                what = f"{name} is {share:g}, but all units are drawn with the same probability"
                raise UserError(what, where=f"loader.{name}", todo="set it to None in a private training")
        if loader.augmentation.copy_paste:
            what = "lesions pasted from other patients would mix protected patients in one gradient"
            raise UserError(what, where="loader.augmentation.copy_paste", todo="set it to 0 in a private training")

    def test_loader(self) -> LoaderConfig:
        """The loader with the canvases and batch size of training, the fixed size of testing, and no randomness."""
        return replace(
            self.loader,
            resize=self.test_resize,
            augmentation=NO_AUGMENTATION,
            lesion_share=None,
            small_share=None,
            max_boxes=0,
        )


@dataclass(frozen=True, kw_only=True)
class TrainDetectorStage(PrivateTrainStage):
    """Train a detector.

    weights: share of the draws of each source in `train_on`, on any scale; () for shares by size. repetition: another
    number draws other initial weights and batches on the same data, to separate the effect of a training from chance.
    """

    task: Literal["detection"] = "detection"
    recipe: str = "detector"
    weights: tuple[float, ...] = ()
    repetition: Annotated[int, AtLeast(0)] = 0

    def __post_init__(self) -> None:
        check_weights(self.weights, len(self.train_on))


@dataclass(frozen=True, kw_only=True)
class CombineDetectorsStage(CombineStage):
    """Combine several detectors of any architectures into an ensemble, whose boxes are fused (`evaluation.fusion`). For
    a single detector, overlapping boxes are merged.

    recipe: its score_floor applies to the fused boxes, and its best_metric chooses `same` on the validation split.
    scales: factors on the size of each member's input; all are used. weights: of the members; () for equal ones. same:
    IoUs to try, from which boxes of members count as the same lesion; the first of equally good ones is chosen.
    """

    task: Literal["detection"] = "detection"
    recipe: str = "detector"
    scales: Scales = (1.0,)
    weights: tuple[Weight, ...] = ()
    same: Annotated[tuple[Same, ...], NOT_EMPTY] = (0.4, 0.3, 0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights and len(self.weights) != len(self.members):
            what = f"{len(self.weights)} weights for {len(self.members)} members"
            raise UserError(what, where="weights", todo="give one for each, or () for equal ones")


@dataclass(frozen=True, kw_only=True)
class EvaluateDetectorsStage(EvaluateModelsStage):
    """Evaluate detectors.

    metric: froc for images; dbtex for whole tomosynthesis volumes, for which all slices of `on` are read, whatever its
    `slices`. criterion: for a hit in an image (`evaluation.hits.criterion_from_text`). volume_rule: how detections of
    slices become findings of a volume. late: pairs of trained models; the first sees the images of `on`, the second
    their partners (`SourceSpec.partner`); the fused boxes of both are evaluated as FIRST+SECOND.
    """

    task: Literal["detection"] = "detection"
    recipe: str = "detector"
    metric: Metric = "froc"
    criterion: str = "iou:0.3"
    volume_rule: Rule = "group"
    late: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        criterion_from_text(self.criterion)
        default = type(self).__dataclass_fields__
        for name, metric in (("criterion", "froc"), ("volume_rule", "dbtex")):
            if self.metric != metric and getattr(self, name) != default[name].default:
                what = f"{name} applies to metric={metric}, but the metric is {self.metric}"
                raise UserError(what, where=name, todo="leave it out")
        if self.metric == "dbtex" and self.late:
            todo = "leave it out, or set metric=froc"
            raise UserError("boxes of pairs are fused, not findings of volumes", where="late", todo=todo)

    def trained(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.models, *(model for pair in self.late for model in pair))))

    @property
    def subjects(self) -> tuple[str, ...]:
        return *self.models, *("+".join(pair) for pair in self.late)
