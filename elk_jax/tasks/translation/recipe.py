"""What can be set of translation: the recipe of a translator, and the stages that train and evaluate it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from elk_jax.data.batches.pairs import PairConfig
from elk_jax.diffusion.bridge import Bridge, plan
from elk_jax.diffusion.translator import TranslatorConfig
from elk_jax.diffusion.unet import UNetConfig
from elk_jax.fields import BELOW_ONE, AtLeast, check
from elk_jax.tasks.stages import EvaluateModelsStage, TrainStage
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.schedules import Schedule, WarmupCosine


@dataclass(frozen=True)
class TranslatorModel:
    """A translator: size, patch, condition, answer, bridge, and settings of its U-Net.

    size: side of a tile. patch: pixels of one place of the U-Net, in each direction.
    condition: `source`: the low-energy image is stacked onto the noisy one; `none`: it is the end of the bridge alone.
    answer: of the U-Net: `clean`: the clean image; `difference`: of the noisy image from it, as published.
    """

    size: Annotated[int, AtLeast(1)] = 128
    patch: Annotated[int, AtLeast(1)] = 4
    condition: Literal["source", "none"] = "source"
    answer: Literal["clean", "difference"] = "clean"
    bridge: Bridge = field(default_factory=Bridge)
    down_block_types: tuple[str, ...] = ("DownBlock2D", "DownBlock2D")  # attention in the middle alone
    block_out_channels: tuple[int, ...] = (48, 96)
    layers_per_block: int = 1
    attention_head_dim: int | tuple[int, ...] = 4
    norm_num_groups: int = 16
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        check(self)
        self.config()

    def config(self) -> TranslatorConfig:
        depth = self.patch**2
        network = UNetConfig(
            sample_size=self.size // self.patch,
            in_channels=depth * (2 if self.condition == "source" else 1),
            out_channels=depth,
            cross_attention_dim=None,
            down_block_types=self.down_block_types,
            block_out_channels=self.block_out_channels,
            layers_per_block=self.layers_per_block,
            attention_head_dim=self.attention_head_dim,
            norm_num_groups=self.norm_num_groups,
            dtype=self.dtype,
            remat=self.remat,
        )
        return TranslatorConfig(
            unet=network,
            size=self.size,
            patch=self.patch,
            condition=self.condition,
            answer=self.answer,
            bridge=self.bridge,
        )


@dataclass(frozen=True)
class BridgeSampler:
    """How an answer is drawn. steps: of the network. eta: fresh noise, 1 as published, 0 for the first noise alone."""

    steps: int = 20
    eta: float = 1.0

    def __post_init__(self) -> None:
        check(self)


ADAMW = OptimizerConfig(name="adamw", weight_decay=0.0, clip_norm=1.0)
COSINE = WarmupCosine(base=1e-3, warmup_steps=50)


@dataclass(frozen=True, kw_only=True)
class TranslationRecipe(TrainingRecipe):
    """How a translator is trained and evaluated.

    loss: l1 (published) or l2. validation_pairs: pairs of the validation split; 0: all. choose: the checkpoint to keep,
    the last, or the best by the loss on the validation pairs. bootstrap: resamples of patients for the intervals.
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
    bootstrap: Annotated[int, AtLeast(0)] = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        plan(self.model.bridge, self.sampler.steps, self.sampler.eta)


@dataclass(frozen=True, kw_only=True)
class TrainTranslatorStage(TrainStage):
    """Train a translator on pairs of the training split."""

    task: Literal["translation"] = "translation"
    recipe: str = "bridge"


@dataclass(frozen=True, kw_only=True)
class EvaluateTranslatorsStage(EvaluateModelsStage):
    """Translate one split, and compare with the real subtracted images."""

    task: Literal["translation"] = "translation"
    recipe: str = "bridge"
