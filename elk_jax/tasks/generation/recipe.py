"""The settings of generation: the recipes of generators of patches by class, and their stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Self

from elk_jax.data.batches.labelled import LabelledConfig
from elk_jax.diffusion.samplers import SamplerConfig
from elk_jax.errors import UserError
from elk_jax.fields import ABOVE_ZERO, BELOW_ONE, SHARE, AtLeast, ByName, Checked, Range
from elk_jax.gan.augment import Augmentation
from elk_jax.gan.networks import GanConfig
from elk_jax.gan.objectives import NonSaturating, Objective
from elk_jax.tasks.classification.recipe import FrozenRecipe, HeadRecipe
from elk_jax.tasks.sampling import NoiseSettings, check_drawing
from elk_jax.tasks.stages import Data, EvaluateStage, FitStage, Origin, PrivateTrainStage, SynthesizeStage
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.recipe import AdversarialRecipe
from elk_jax.training.schedules import Constant, Schedule

ADAM = OptimizerConfig(name="adamw", b1=0.5, b2=0.999, weight_decay=0.0)
RATE = Constant(base=1e-4)


@dataclass(frozen=True, kw_only=True)
class GenerationRecipe(AdversarialRecipe):
    """Settings for training a generator of patches by class against a discriminator.

    model: both networks; `classes` is the number of classes of the data. images: how real patches become batches;
    batch_size is that of a step, divided among the updates of the discriminator, with `privacy` in expected units.
    augmentation: of the discriminator's input, real or synthetic. mixed_sizes: scale patches of several sizes, or not
    square, to one size; else they are refused.
    validation_images: number of real patches that are compared with as many synthetic ones, at least two; 0: all.
    choose: the checkpoint to keep: the last, or the one whose patches are most similar to those of the validation
    split.
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
            raise UserError("a distance needs more than 1 validation image", where="validation_images", todo=todo)


@dataclass(frozen=True, kw_only=True)
class TrainGeneratorStage(PrivateTrainStage):
    """Train a generator on patches of the training split, which have one class each."""

    task: Literal["generation"] = "generation"
    recipe: str = "gan"

    def __post_init__(self) -> None:
        if self.name and self.init_from:
            what = "a generator cannot start from weights, because its discriminator is not kept"
            raise UserError(what, where="init_from", todo="leave it empty")


@dataclass(frozen=True)
class Guidance(Checked):
    """Release a linear classifier of two classes (`privacy.head`); the weights of public patches for a class grow with
    the log odds that it gives them. This is classifier guidance (Dhariwal and Nichol 2021, arXiv:2105.05233) with a
    pool instead of a generator.

    contrast: shift of the mean of each class, in standard deviations of the log odds over the pool, if they were
    normal; larger values show the classes more clearly, on fewer patches. The other settings are those of a private
    head, with its defaults.
    """

    name: Literal["guidance"] = "guidance"
    contrast: Annotated[float, ABOVE_ZERO] = 1.5
    learning_rate: Annotated[float, ABOVE_ZERO] = 70.0
    steps: Annotated[int, AtLeast(1)] = 30
    averaged: Annotated[float, BELOW_ONE] = 0.5
    clip_norm: Annotated[float, ABOVE_ZERO] = HeadRecipe.clip_norm
    mean_clip: Annotated[float, ABOVE_ZERO] = HeadRecipe.mean_clip
    mean_share: Annotated[float, Range(0, 1, above=True, below=True)] = HeadRecipe.mean_share


@dataclass(frozen=True)
class Means(Checked):
    """Release the mean features of every class (DP-MERF, Harder et al. 2021, arXiv:2002.11603); the weights of the
    public patches are those closest to equal ones that have these means (`features.tilt`).

    shift: share of the distance from the public to the private patches by which the weighted patches of all classes
    move together. contrast: factor on the differences between classes, so that few patches show their class as well as
    many would. penalty: keeps weights even. count_scale: see `privacy.release.class_features`.
    """

    name: Literal["means"] = "means"
    shift: Annotated[float, SHARE] = 1.0
    contrast: Annotated[float, ABOVE_ZERO] = 3.0
    penalty: Annotated[float, ABOVE_ZERO] = 0.03
    count_scale: Annotated[float, ABOVE_ZERO] = 0.3


@dataclass(frozen=True)
class Votes(Checked):
    """Release votes of private patches for the most similar public ones, by class: one round of Private Evolution (Lin
    et al. 2024, arXiv:2305.15560) over a large pool. The votes are the weights.

    neighbours: number of public patches that a private one votes for. threshold: patches with fewer votes have weight
    0, in standard deviations of the noise. If no patch reaches it for a class, the class has equal weights, as the
    budget of the release is spent.
    """

    name: Literal["votes"] = "votes"
    neighbours: Annotated[int, AtLeast(1)] = 32
    threshold: Annotated[float, AtLeast(0)] = 2.0


def releases() -> Mapping[str, type]:
    """The kinds of release from private patches, by name."""
    return {"guidance": Guidance, "means": Means, "votes": Votes}


@dataclass(frozen=True, kw_only=True)
class PoolRecipe(FrozenRecipe):
    """Settings for weighting public patches by a release from private ones.

    components: of every kind of features, after whitening by the public patches. release: its kind and settings.
    """

    components: Annotated[int, AtLeast(1)] = 24
    release: Annotated[Any, ByName(releases)] = field(default_factory=Guidance)


@dataclass(frozen=True, kw_only=True)
class FitPoolStage(FitStage):
    """Weight public patches so that they are like the private ones of every class. Leaves RUN/STAGE/model, a generator.

    public: sources whose images become the drawn patches.
    """

    task: Literal["generation"] = "generation"
    recipe: str = "pool"
    epsilon: Annotated[float, AtLeast(0)] = 1.0

    def __post_init__(self) -> None:
        if not self.name:
            return
        if self.init_from:
            raise UserError("weights of patches have no initial weights", where="init_from", todo="leave it empty")
        if not self.public:
            what = "there are no public images to draw patches from"
            raise UserError(what, where="public", todo="name data sources of other people's images")
        for name in self.public:
            if name in self.train_on:
                what = f"'{name}' is the training data, whose patches would be published"
                raise UserError(what, where="public", todo="name data sources of public images")

    def origin(self) -> Origin:
        sources, models = super().origin()
        return Origin(sources + self.public, models)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How a denoiser samples. noise, sampler: from noise to a patch. guidance: strength of classifier-free guidance,
    away from patches without a class; 1: none. hidden: share of training examples whose class is hidden, from which it
    learns patches without a class.
    """

    noise: NoiseSettings
    sampler: SamplerConfig
    guidance: Annotated[float, AtLeast(0)]
    hidden: Annotated[float, BELOW_ONE]

    def __post_init__(self) -> None:
        check_drawing(self.noise.schedule(), self.sampler, self.guidance)
        if self.guidance != 1 and not self.hidden:
            what = f"guidance is {self.guidance}, but hidden is 0, so patches without a class are not learned"
            raise UserError(what, where="hidden", todo="train with a share such as 0.1, or set guidance=1")

    def changed(self, settings: SampleSettings) -> Self:
        """The same with the given settings. UserError if sampling is impossible with them."""
        guidance = self.guidance if settings.guidance is None else settings.guidance
        sampler = replace(self.sampler, steps=settings.sampler_steps or self.sampler.steps)
        return replace(self, guidance=guidance, sampler=sampler)


@dataclass(frozen=True)
class SampleSettings:
    """The patches to draw. classes: by name; () for all. batch_size: number of patches drawn at once.

    guidance, sampler_steps: for a denoiser, instead of the settings of its training; None keeps those.
    """

    classes: tuple[str, ...] = ()
    batch_size: Annotated[int, AtLeast(1)] = 64
    guidance: Annotated[float, AtLeast(0)] | None = None
    sampler_steps: Annotated[int, AtLeast(1)] | None = None


@dataclass(frozen=True, kw_only=True)
class SampleStage(SampleSettings, SynthesizeStage):
    """Draw patches of every class: a COCO file, and folders of classes. per_class: number for each class."""

    task: Literal["generation"] = "generation"
    per_class: Annotated[int, AtLeast(1)] = 100


@dataclass(frozen=True, kw_only=True)
class EvaluateSamplesStage(EvaluateStage):
    """Compare the patches of the source `synthetic`, made by any program, with the real ones of one split of `on`.

    frd: versions of the Frechet radiomics distance to measure, v0 or v1 (`evaluation.frd`); () for none.
    """

    task: Literal["generation"] = "generation"
    split: str = "train"
    synthetic: str
    frd: tuple[Literal["v0", "v1"], ...] = ()

    def data(self) -> tuple[Data, ...]:
        return *super().data(), Data(self.synthetic, "")
