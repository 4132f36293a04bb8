"""The settings of generation: the recipe of a generator of patches by class, and its stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from elk_jax.data.batches.labelled import LabelledConfig
from elk_jax.errors import UserError
from elk_jax.fields import BELOW_ONE, AtLeast
from elk_jax.gan.augment import Augmentation
from elk_jax.gan.networks import GanConfig
from elk_jax.gan.objectives import NonSaturating, Objective
from elk_jax.tasks.stages import Data, EvaluateStage, PrivateTrainStage, SynthesizeStage
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.recipe import AdversarialRecipe
from elk_jax.training.schedules import Constant, Schedule

ADAM = OptimizerConfig(name="adamw", b1=0.5, b2=0.999, weight_decay=0.0)
RATE = Constant(base=1e-4)


@dataclass(frozen=True, kw_only=True)
class GenerationRecipe(AdversarialRecipe):
    """How a generator of patches by class is trained, against a discriminator.

    model: both networks; `classes` is the number of those of the data. images: how real patches become batches;
    batch_size is of a step, and each update of the discriminator gets its part, with `privacy` so many expected units.
    augmentation: of what the discriminator sees, real or made. mixed_sizes: patches of several sizes, or not square,
    are scaled to one; else they are refused.
    validation_images: real patches that as many made ones are compared with, two at least; 0: all.
    choose: the checkpoint to keep, the last, or the one whose patches look most like those of the validation split.
    """

    model: GanConfig = field(default_factory=GanConfig)
    objective: Objective = field(default_factory=NonSaturating)
    images: LabelledConfig = field(default_factory=lambda: LabelledConfig(transpose=0.0))
    augmentation: Augmentation = field(default_factory=Augmentation)
    mixed_sizes: bool = False
    ratio: Annotated[int, AtLeast(1)] = 2
    optimizer: OptimizerConfig = ADAM
    schedule: Schedule = RATE
    discriminator_optimizer: OptimizerConfig = ADAM
    discriminator_schedule: Schedule = RATE
    ema_decay: Annotated[float, BELOW_ONE] = 0.999
    log_every: Annotated[int, AtLeast(1)] = 20
    checkpoint_every: Annotated[int, AtLeast(0)] = 500
    eval_every: Annotated[int, AtLeast(0)] = 500
    validation_images: Annotated[int, AtLeast(0)] = 256
    choose: Literal["last", "best"] = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images.batch_size % self.ratio:
            what = f"{self.images.batch_size} images for {self.ratio} updates of the discriminator"
            raise UserError(what, where="images.batch_size", todo=f"give a multiple of {self.ratio}")
        if self.validation_images == 1:
            todo = "give 2 or more, or 0 for all"
            raise UserError("1 validation image has no distance", where="validation_images", todo=todo)


@dataclass(frozen=True, kw_only=True)
class TrainGeneratorStage(PrivateTrainStage):
    """Train a generator on patches of the training split, which have one class each."""

    task: Literal["generation"] = "generation"
    recipe: str = "gan"

    def __post_init__(self) -> None:
        if self.name and self.init_from:
            what = "a generator starts from nothing: its discriminator is not kept"
            raise UserError(what, where="init_from", todo="leave it empty")


@dataclass(frozen=True)
class SampleSettings:
    """What is drawn. classes: by name; () for all. batch_size: patches drawn at once."""

    classes: tuple[str, ...] = ()
    batch_size: Annotated[int, AtLeast(1)] = 64


@dataclass(frozen=True, kw_only=True)
class SampleStage(SampleSettings, SynthesizeStage):
    """Draw patches of every class: a COCO file, and folders of classes. per_class: how many of each."""

    task: Literal["generation"] = "generation"
    per_class: Annotated[int, AtLeast(1)] = 100


@dataclass(frozen=True, kw_only=True)
class EvaluateSamplesStage(EvaluateStage):
    """Compare the patches of the source `synthetic`, by whatever program, with the real ones of one split of `on`."""

    task: Literal["generation"] = "generation"
    split: str = "train"
    synthetic: str

    def data(self) -> tuple[Data, ...]:
        return *super().data(), Data(self.synthetic, "")
