"""The settings of translation: the recipe of a translator, and the stages that train and evaluate it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from elk_jax.data.batches.pairs import PairConfig
from elk_jax.data.tiles import check_stride
from elk_jax.diffusion.bridge import Bridge, plan
from elk_jax.diffusion.translator import TranslatorConfig
from elk_jax.errors import UserError
from elk_jax.evaluation.bootstrap import Resamples
from elk_jax.fields import BELOW_ONE, AtLeast, Checked, check
from elk_jax.tasks.sampling import PixelNetwork
from elk_jax.tasks.stages import EvaluateModelsStage, PrivateTrainStage
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.schedules import Schedule, WarmupCosine


@dataclass(frozen=True)
class TranslatorModel(PixelNetwork):
    """A translator of tiles.

    condition: `source`: the low-energy image is stacked onto the noisy one; `none`: it is only the end point of the
    bridge. answer: output of the U-Net: `clean`: the clean image; `difference`: noisy minus clean image, as published.
    """

    size: Annotated[int, AtLeast(1)] = 128
    block_out_channels: tuple[int, ...] = (48, 96)
    condition: Literal["source", "none"] = "source"
    answer: Literal["clean", "difference"] = "clean"
    bridge: Bridge = field(default_factory=Bridge)
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        check(self)
        self.config()

    def config(self) -> TranslatorConfig:
        network = self.unet(inputs=2 if self.condition == "source" else 1, dtype=self.dtype, remat=self.remat)
        own = ("size", "patch", "condition", "answer", "bridge")
        return TranslatorConfig(unet=network, **{name: getattr(self, name) for name in own})


@dataclass(frozen=True)
class BridgeSampler(Checked):
    """Settings of sampling. steps: evaluations of the network. eta: fresh noise; 1 as published, 0 for the initial
    noise only."""

    steps: int = 20
    eta: float = 1.0


ADAMW = OptimizerConfig(name="adamw", weight_decay=0.0, clip_norm=1.0)
COSINE = WarmupCosine(base=1e-3, warmup_steps=50)


@dataclass(frozen=True, kw_only=True)
class TranslationRecipe(TrainingRecipe):
    """Settings for training and evaluating a translator.

    loss: l1 (published) or l2. validation_pairs: pairs of the validation split; 0: all. choose: the checkpoint to keep:
    the last, or the one with the lowest loss on the validation pairs. bootstrap: resamples of patients for the
    intervals.
    """

    model: TranslatorModel = field(default_factory=TranslatorModel)
    loss: Literal["l1", "l2"] = "l1"
    sampler: BridgeSampler = field(default_factory=BridgeSampler)
    pairs: PairConfig = field(default_factory=PairConfig)
    steps: Annotated[int, AtLeast(1)] = 500
    optimizer: OptimizerConfig = ADAMW
    schedule: Schedule = COSINE
    ema_decay: Annotated[float, BELOW_ONE] = 0.99
    log_every: Annotated[int, AtLeast(1)] = 20
    checkpoint_every: Annotated[int, AtLeast(0)] = 250
    eval_every: Annotated[int, AtLeast(0)] = 250
    validation_pairs: Annotated[int, AtLeast(0)] = 64
    choose: Literal["last", "best"] = "last"
    bootstrap: Resamples = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            check_stride(self.pairs.stride, self.model.size)
        except UserError as error:
            raise error.within("pairs") from error
        try:
            plan(self.model.bridge, self.sampler.steps, self.sampler.eta)
        except UserError as error:
            raise error.within("sampler") from error


@dataclass(frozen=True, kw_only=True)
class TrainTranslatorStage(PrivateTrainStage):
    """Train a translator on pairs of the training split."""

    task: Literal["translation"] = "translation"
    recipe: str = "bridge"


@dataclass(frozen=True, kw_only=True)
class EvaluateTranslatorsStage(EvaluateModelsStage):
    """Translate one split, and compare the results with the real subtracted images."""

    task: Literal["translation"] = "translation"
    recipe: str = "bridge"
