"""The settings of denoising: the recipe of a denoiser of patches by class, and the stage that trains it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from elk_jax.data.batches.labelled import LabelledConfig
from elk_jax.diffusion.patches import DenoiserConfig, Strengths
from elk_jax.diffusion.samplers import SamplerConfig
from elk_jax.errors import UserError
from elk_jax.fields import BELOW_ONE, SIDE, AtLeast, Between, check
from elk_jax.tasks.generation.recipe import Drawing
from elk_jax.tasks.sampling import NoiseSettings, PixelNetwork
from elk_jax.tasks.stages import PrivateTrainStage
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.schedules import Schedule, WarmupCosine


@dataclass(frozen=True)
class PatchNetwork(PixelNetwork):
    """A denoiser of patches. classes: of the data. embedding: channels that encode the class."""

    size: Annotated[int, SIDE] = 128
    down_block_types: tuple[str, ...] = ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D")
    block_out_channels: tuple[int, ...] = (48, 96, 144)
    classes: Annotated[int, AtLeast(1)] = 2
    embedding: Annotated[int, Between(1, 1 << 16)] = 64
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        check(self)
        if self.size % self.patch:
            raise UserError(
                f"blocks of {self.patch} px do not divide a patch of {self.size} px",
                where="patch",
                todo="give a divisor",
            )
        self.config()

    def config(self, strengths: Strengths | None = None) -> DenoiserConfig:
        """The model. strengths: of the waves of its blocks; None if their values do not matter."""
        network = self.unet(inputs=1, text=self.embedding, dtype=self.dtype, remat=self.remat)
        any_others = Strengths(0.5, (1.0,) * self.patch**2)
        return DenoiserConfig(network, strengths or any_others, self.size, self.patch, self.classes)


NOISE = NoiseSettings(prediction="v", zero_terminal_snr=True)
SAMPLER = SamplerConfig(name="ddim", steps=50, spacing="trailing", eta=1.0)
ADAMW = OptimizerConfig(name="adamw", weight_decay=0.0, clip_norm=1.0)
COSINE = WarmupCosine(base=5e-4, warmup_steps=100)


@dataclass(frozen=True, kw_only=True)
class DenoisingRecipe(TrainingRecipe, Drawing):
    """Settings for training a denoiser of patches by class, and for sampling.

    gamma: of the weighting by signal-to-noise ratio (`losses.min_snr_weight`); 0: none. noise, sampler, guidance,
    hidden: see `Drawing`. images, mixed_sizes: as for a generator trained against a discriminator. validation_images:
    number of real patches on which the loss is measured; 0: all. choose: the checkpoint to keep: the last, or the best
    by that loss.
    """

    model: PatchNetwork = field(default_factory=PatchNetwork)
    noise: NoiseSettings = NOISE
    gamma: Annotated[float, AtLeast(0)] = 0.0
    hidden: Annotated[float, BELOW_ONE] = 0.1
    sampler: SamplerConfig = SAMPLER
    guidance: Annotated[float, AtLeast(0)] = 1.0
    images: LabelledConfig = field(default_factory=lambda: LabelledConfig(transpose=0.0))
    mixed_sizes: bool = False
    steps: Annotated[int, AtLeast(1)] = 2000
    optimizer: OptimizerConfig = ADAMW
    schedule: Schedule = COSINE
    ema_decay: Annotated[float, BELOW_ONE] = 0.999
    log_every: Annotated[int, AtLeast(1)] = 20
    checkpoint_every: Annotated[int, AtLeast(0)] = 500
    eval_every: Annotated[int, AtLeast(0)] = 500
    validation_images: Annotated[int, AtLeast(0)] = 128
    choose: Literal["last", "best"] = "last"

    def __post_init__(self) -> None:
        TrainingRecipe.__post_init__(self)
        Drawing.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class TrainDenoiserStage(PrivateTrainStage):
    """Train a denoiser on patches of the training split, which have one class each. init_from: another denoiser."""

    task: Literal["denoising"] = "denoising"
    recipe: str = "denoiser"
