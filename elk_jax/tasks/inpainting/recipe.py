"""The settings of lesion synthesis: the recipe of an inpainter, and the stages that train it and paint with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from elk_jax.data.batches.crops import CloseupConfig
from elk_jax.diffusion import lora
from elk_jax.diffusion.attention import Implementation
from elk_jax.diffusion.inpainter import InpainterConfig, LossConfig
from elk_jax.diffusion.samplers import SamplerConfig
from elk_jax.errors import UserError
from elk_jax.fields import ABOVE_ZERO, BELOW_ONE, AtLeast, Checked, OneOf, check
from elk_jax.precision import DTYPES
from elk_jax.synthesis.placement import AREAS
from elk_jax.tasks.sampling import NoiseSettings, PixelNetwork, check_drawing
from elk_jax.tasks.stages import Data, Origin, PrivateTrainStage, SynthesizeStage
from elk_jax.training.optimizer import OptimizerConfig, compile_pattern
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.schedules import Schedule as RateSchedule
from elk_jax.training.schedules import WarmupCosine


@dataclass(frozen=True)
class PixelModel(PixelNetwork):
    """An inpainter in pixel space, trained from random weights.

    scale: standard deviation of the images, relative to noise of 1. Neighbouring pixels are similar, so the shapes in
    an image of scale 1 are visible through nearly every noise level, and the model learns little about shapes
    (Hoogeboom et al. 2023, arXiv 2301.11093; Chen 2023, arXiv 2301.10972).
    """

    scale: Annotated[float, ABOVE_ZERO] = 0.3
    down_block_types: tuple[str, ...] = ("DownBlock2D", "CrossAttnDownBlock2D")  # attention only at 8 x 8 positions

    def __post_init__(self) -> None:
        check(self)
        self.config(contrast=1.0)

    def config(self, contrast: float) -> InpainterConfig:
        """The model for images of this contrast, the standard deviation of their grey values."""
        network = self.unet(inputs=4, others=1)
        return InpainterConfig(unet=network, size=self.size, patch=self.patch, std=contrast / self.scale)


@dataclass(frozen=True)
class NetworkSettings(Checked):
    """Settings of computation for the networks of a model loaded with init_from."""

    dtype: Annotated[str, OneOf(DTYPES)] = "float32"
    remat: bool = False
    attention: Implementation = "auto"


@dataclass(frozen=True)
class Prompts:
    """Texts for a model that reads text, in training and painting."""

    lesion: str = "a mammogram with a mass lesion"
    tissue: str = "a mammogram"
    negative: str = ""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters instead of the whole model; they need a learning rate of about 1e-4.

    rank: 0 for none. alpha: 0 for the rank (strength 1). targets: regular expression of the layers, such as
    'unet/.*attn\\d/to_(q|k|v|out_0)$'.
    """

    rank: Annotated[int, AtLeast(0)] = 0
    alpha: Annotated[float, AtLeast(0)] = 0.0
    targets: str = f"({lora.ATTENTION})|({lora.TEXT_ATTENTION})"

    def __post_init__(self) -> None:
        check(self)
        compile_pattern(self.targets, "targets")
        if self.alpha and not self.rank:
            what = f"alpha is {self.alpha:g}, but the rank is 0, without adapters"
            raise UserError(what, where="alpha", todo="give a rank, or set alpha=0")


SAMPLER = SamplerConfig(steps=20, lambda_min=-5.1)
LOSS = LossConfig(mask_outside=0.1, prior_weight=0.5)
ADAMW = OptimizerConfig(name="adamw", weight_decay=0.01, clip_norm=1.0)
COSINE = WarmupCosine(base=1e-3, warmup_steps=100)


@dataclass(frozen=True, kw_only=True)
class InpaintingRecipe(TrainingRecipe):
    """Settings for training an inpainter.

    model: in pixel space; None if init_from provides a model. networks, prompts: of such a model.
    guidance: strength of classifier-free guidance while painting; 1 for none.
    cached_windows: encode this many windows of every lesion once, instead of a new window in every step; 0: do not.
    train_text_encoder: of a model that has one, or its adapters.
    validation_closeups: lesions of the validation split; 0: all.
    choose: the checkpoint to keep: the last, or the one with the lowest loss on the validation close-ups.
    """

    model: PixelModel | None = field(default_factory=PixelModel)
    networks: NetworkSettings = NetworkSettings()
    prompts: Prompts = Prompts()
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    sampler: SamplerConfig = SAMPLER
    guidance: Annotated[float, AtLeast(0)] = 1.0
    closeups: CloseupConfig = field(default_factory=CloseupConfig)
    cached_windows: Annotated[int, AtLeast(0)] = 0
    loss: LossConfig = LOSS
    lora: LoraConfig = field(default_factory=LoraConfig)
    train_text_encoder: bool = True
    steps: Annotated[int, AtLeast(1)] = 1600
    optimizer: OptimizerConfig = ADAMW
    schedule: RateSchedule = COSINE
    ema_decay: Annotated[float, BELOW_ONE] = 0.98
    log_every: Annotated[int, AtLeast(1)] = 20
    checkpoint_every: Annotated[int, AtLeast(0)] = 500
    eval_every: Annotated[int, AtLeast(0)] = 500
    validation_closeups: Annotated[int, AtLeast(0)] = 32
    choose: Literal["last", "best"] = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.privacy is not None and self.cached_windows:
            todo = "set it to 0: private training draws a new window of every lesion in every step"
            raise UserError("windows cannot be cached in private training", where="cached_windows", todo=todo)
        check_drawing(self.noise.schedule(), self.sampler, self.guidance)


@dataclass(frozen=True, kw_only=True)
class TrainInpainterStage(PrivateTrainStage):
    """Train an inpainter on close-ups of the lesions of the training split."""

    task: Literal["inpainting"] = "inpainting"
    recipe: str = "inpainter"


@dataclass(frozen=True)
class PaintSettings:
    """Settings for painting lesions.

    area: sizes of the lesions, by name of a rule stored by the inpainter's training (`free`: all sizes). lesion_free:
    use only canvases without any lesion; else windows without lesions.
    grain: add the grain of the surrounding tissue to lesions that are smoother than it; not in whole windows.
    whole_window: paste the whole window, as published, instead of the lesion with a soft border.
    """

    area: Annotated[str, OneOf(AREAS)] = "free"
    batch_size: Annotated[int, AtLeast(1)] = 8
    lesion_free: bool = False
    grain: bool = True
    whole_window: bool = False


@dataclass(frozen=True, kw_only=True)
class PaintStage(PaintSettings, SynthesizeStage):
    """Paint lesions into training images of the source `canvases`.

    share: painted lesions per real one of the training split of `share_of` ("": of `canvases`; ELK: 1.0 and 2.0).
    count: number of painted lesions, instead of a share; 0: use the share.
    """

    task: Literal["inpainting"] = "inpainting"
    canvases: str
    share_of: str = ""
    share: Annotated[float, AtLeast(0)] = 1.0
    count: Annotated[int, AtLeast(0)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.share and not self.count:
            raise UserError(f"share is {self.share}", where="share", todo="give a share above 0, or a count")

    def data(self) -> tuple[Data, ...]:
        return tuple(Data(source, "train") for source in dict.fromkeys((self.canvases, self.share_of or self.canvases)))

    def origin(self) -> Origin:
        return Origin((self.canvases,), (self.model,))

    def settings(self) -> dict[str, Any]:
        """The fields of PaintSettings."""
        return {name: getattr(self, name) for name in PaintSettings.__dataclass_fields__}
