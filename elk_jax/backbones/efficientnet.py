"""EfficientNet B0-B7 (Tan and Le 2019) and EfficientNet-Lite 0-4: features of an image by stage, and its class.

Shapes: B batch, H W input size, C channels, Q classes. Stage s (1..7) is [B, ceil(H/r), ceil(W/r), C_s], where r is
2, 4, 8, 16, 16, 32, 32.

Parameters: backbone/stem and backbone/stage{1..7}_{block}/{expand, depthwise, project} (kernel, norm/*), with
squeeze-and-excitation also .../squeeze/{reduce, expand} (kernel, bias); head (kernel, norm/*); classifier (kernel,
bias).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.backbones.conv import ConvNorm, Padding, matrix_product
from elk_jax.backbones.depthwise import DepthwiseConvNorm
from elk_jax.backbones.initial import draw_params
from elk_jax.backbones.norms import NORMS, Norm, frozen_patterns, norm_from_name, param_dtype
from elk_jax.backbones.pixels import IMAGENET_MEAN, IMAGENET_STD, normalise
from elk_jax.errors import UserError
from elk_jax.fields import ABOVE_ZERO, BELOW_ONE, NOT_EMPTY, SIDE, Between, OneOf, Range, check, impossible
from elk_jax.precision import DTYPES, at_least_float32

Params = Any

STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Blocks, kernel size, stride, expansion and channels of the seven stages of B0."""
STEM, HEAD = 32, 1280
"""Channels of the first and of the last convolution of B0."""

VARIANTS: dict[str, tuple[float, float, int, float]] = {
    "b0": (1.0, 1.0, 224, 0.2),
    "b1": (1.0, 1.1, 240, 0.2),
    "b2": (1.1, 1.2, 260, 0.3),
    "b3": (1.2, 1.4, 300, 0.3),
    "b4": (1.4, 1.8, 380, 0.4),
    "b5": (1.6, 2.2, 456, 0.4),
    "b6": (1.8, 2.6, 528, 0.5),
    "b7": (2.0, 3.1, 600, 0.5),
    "lite0": (1.0, 1.0, 224, 0.2),
    "lite1": (1.0, 1.1, 240, 0.2),
    "lite2": (1.1, 1.2, 260, 0.3),
    "lite3": (1.2, 1.4, 280, 0.3),
    "lite4": (1.4, 1.8, 300, 0.3),
}
"""Width and depth multipliers, image size and dropout of the published networks."""

_LITE: dict[str, Any] = {
    "squeeze_excite": False,
    "fixed_ends": True,
    "activation": "relu6",
    "pixel_mean": (127 / 255,) * 3,
    "pixel_std": (128 / 255,) * 3,
}


@dataclass(frozen=True)
class EfficientNetConfig:
    """An EfficientNet. The defaults are B0 with the conventions of its TensorFlow weights.

    UserError for an impossible value; its `where` is the field.
    """

    name: Literal["efficientnet"] = "efficientnet"
    width: Annotated[float, ABOVE_ZERO] = 1.0
    """Multiplier of all channels; the products are rounded to multiples of 8."""
    depth: Annotated[float, ABOVE_ZERO] = 1.0
    """Multiplier of the blocks of each stage, rounded up."""
    fixed_ends: bool = False
    """Whether stem, head and the number of blocks of the first and last stage are those of B0 (Lite)."""
    squeeze_excite: bool = True
    activation: Literal["swish", "relu6"] = "swish"
    padding: Padding = "same"
    """TensorFlow's or PyTorch's (`conv.Padding`); weights fit only one of them."""
    norm: Annotated[str, OneOf(tuple(NORMS))] = "frozen_bn"
    """See `norms.NORMS`."""
    norm_groups: Annotated[int, Between(1, 1 << 16)] = 8
    """Groups of 'gn'; all channels must be divisible by it, as by 8."""
    norm_eps: Annotated[float, Range(0, 1)] = 1e-3
    head: bool = True
    """Whether there is a 1x1 convolution after the last stage, for a classifier."""
    num_classes: Annotated[int, Between(0, 1 << 16)] = 1000
    """Q; 0: no classifier."""

    # Input: (image - pixel_mean) / pixel_std, for an image in [0, 1]; one number per input channel.
    pixel_mean: Annotated[tuple[float, ...], NOT_EMPTY] = IMAGENET_MEAN
    pixel_std: Annotated[tuple[Annotated[float, ABOVE_ZERO], ...], NOT_EMPTY] = IMAGENET_STD
    image_size: Annotated[int, SIDE] = 224
    """Pixels along a side in the published training. Any size can be computed."""

    drop_path: Annotated[float, BELOW_ONE] = 0.2
    """Share of images that skip the last block in training; those before skip less often (stochastic depth)."""
    dropout: Annotated[float, BELOW_ONE] = 0.2
    """Share of the features that the classifier does not see in training."""
    frozen_stages: Annotated[int, Between(0, len(STAGES))] = 0
    """0: everything is trained. n: the stem and the first n stages are frozen, and none of their branches is dropped.
    The stem is not counted, unlike in `SwinConfig`."""
    dtype: Annotated[str, OneOf(DTYPES)] = "float32"

    def __post_init__(self) -> None:
        check(self)
        if len(self.pixel_std) != len(self.pixel_mean):
            raise impossible(self, "pixel_std", f"give {len(self.pixel_mean)} numbers, as many as pixel_mean has")
        if self.num_classes and not self.head:
            raise impossible(self, "head", "set head=true, which the classifier needs, or num_classes=0")
        widths = [stem_width(self), *(width for block in blocks(self) for width in (block.expanded, block.features))]
        odd = [width for width in widths if width % self.norm_groups]
        if self.norm == "gn" and odd:
            raise impossible(self, "norm_groups", f"give a divisor of all channels, such as {odd[0]}: 8 is one")


def named(variant: str, **changes: Any) -> EfficientNetConfig:
    """The published network `variant`, a key of VARIANTS, with `changes`. UserError for an unknown name."""
    if variant not in VARIANTS:
        raise UserError(f"no EfficientNet '{variant}'", todo=f"choose one of {', '.join(VARIANTS)}")
    width, depth, image_size, dropout = VARIANTS[variant]
    published = {"width": width, "depth": depth, "image_size": image_size, "dropout": dropout}
    return EfficientNetConfig(**{**published, **(_LITE if variant.startswith("lite") else {}), **changes})


@dataclass(frozen=True)
class Block:
    """One inverted bottleneck: block `index` (from 0) of `stage` (from 1). skips: whether the input is added."""

    stage: int
    index: int
    kernel_size: int
    stride: int
    inputs: int
    expanded: int
    features: int

    @property
    def skips(self) -> bool:
        return self.stride == 1 and self.inputs == self.features

    @property
    def path(self) -> str:
        """Of the parameters."""
        return f"stage{self.stage}_{self.index}"


def blocks(config: EfficientNetConfig) -> tuple[Block, ...]:
    """All blocks, in their order."""
    found: list[Block] = []
    inputs = stem_width(config)
    for stage, (repeats, kernel_size, stride, expansion, width) in enumerate(STAGES, start=1):
        fixed = config.fixed_ends and stage in (1, len(STAGES))
        features = _scaled(width, config.width)
        for index in range(repeats if fixed else math.ceil(repeats * config.depth)):
            first = index == 0
            block = Block(stage, index, kernel_size, stride if first else 1, inputs, expansion * inputs, features)
            found.append(block)
            inputs = features
    return tuple(found)


def stem_width(config: EfficientNetConfig) -> int:
    """Channels after the stem."""
    return STEM if config.fixed_ends else _scaled(STEM, config.width)


def _scaled(width: int, multiplier: float) -> int:
    """width * multiplier to the nearest multiple of 8, but not below nine tenths of it."""
    wanted = width * multiplier
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


class SqueezeExcite(nn.Module):
    """Every channel times a factor that follows from the means of all channels (Hu et al. 2018)."""

    reduced: int
    activation: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        mean = jnp.mean(at_least_float32(x), axis=(1, 2), keepdims=True)
        hidden = activate(self.activation, ConvNorm(self.reduced, 1, dtype=self.dtype, name="reduce")(mean))
        return x * nn.sigmoid(ConvNorm(x.shape[-1], 1, dtype=self.dtype, name="expand")(hidden))


class InvertedBottleneck(nn.Module):
    """1x1 expansion, depthwise convolution, squeeze-and-excitation, 1x1 projection (Sandler et al. 2018).

    [B, H, W, inputs] -> [B, H/stride, W/stride, features]. share [B]: factor of each image's branch beside the input;
    None: 1.
    """

    block: Block
    config: EfficientNetConfig

    @nn.compact
    def __call__(self, x: jax.Array, share: jax.Array | None) -> jax.Array:
        block, c = self.block, self.config
        norm, dtype = norm_of(c), jnp.dtype(c.dtype)
        y = x
        if block.expanded != block.inputs:
            y = activate(c.activation, ConvNorm(block.expanded, 1, norm=norm, dtype=dtype, name="expand")(y))
        depthwise = DepthwiseConvNorm(
            block.kernel_size, block.stride, norm, padding=c.padding, dtype=dtype, name="depthwise"
        )
        y = activate(c.activation, depthwise(y))
        if c.squeeze_excite:
            y = SqueezeExcite(max(1, block.inputs // 4), c.activation, dtype, name="squeeze")(y)
        y = ConvNorm(block.features, 1, norm=norm, dtype=dtype, name="project")(y)
        if not block.skips:
            return y
        return x + (y if share is None else y * share[:, None, None, None].astype(dtype))


class Backbone(nn.Module):
    """Normalised image [B, H, W, C_in] -> the outputs of the seven stages. shares: [blocks, B] or None."""

    config: EfficientNetConfig

    @nn.compact
    def __call__(self, image: jax.Array, shares: jax.Array | None = None) -> tuple[jax.Array, ...]:
        c = self.config
        stem = ConvNorm(stem_width(c), 3, 2, norm_of(c), padding=c.padding, dtype=jnp.dtype(c.dtype), name="stem")
        x = activate(c.activation, stem(image))
        outputs: dict[int, jax.Array] = {}
        for number, block in enumerate(blocks(c)):
            share = None if shares is None else shares[number]
            x = InvertedBottleneck(block, c, name=block.path)(x, share)
            outputs[block.stage] = x
        return tuple(outputs.values())


class EfficientNet(nn.Module):
    """The network: backbone, head and classifier, the three top-level names of its parameters."""

    config: EfficientNetConfig

    def setup(self) -> None:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        self.backbone = Backbone(c)
        if c.head:
            self.head = ConvNorm(HEAD if c.fixed_ends else _scaled(HEAD, c.width), 1, norm=norm_of(c), dtype=dtype)
        if c.num_classes:
            self.classifier = nn.Dense(
                c.num_classes, dtype=dtype, param_dtype=param_dtype(dtype), dot_general=matrix_product
            )

    def __call__(self, image: jax.Array) -> Any:
        """Use every parameter once, for `init`."""
        stages = self.backbone(image)
        pooled = self.pooled(stages[-1]) if self.config.head else stages[-1]
        return self.classifier(pooled) if self.config.num_classes else pooled

    def pooled(self, x: jax.Array) -> jax.Array:
        """The last stage [B, h, w, C] -> the means of the head's features [B, C_head]."""
        x = activate(self.config.activation, self.head(x))
        return jnp.mean(at_least_float32(x), axis=(1, 2))


def norm_of(config: EfficientNetConfig) -> Norm | None:
    """The factory of all norms."""
    return norm_from_name(config.norm, groups=config.norm_groups, eps=config.norm_eps)


def activate(name: str, x: jax.Array) -> jax.Array:
    """The activation called `name`, of EfficientNetConfig.activation."""
    return nn.swish(x) if name == "swish" else nn.relu6(x)


def init(config: EfficientNetConfig, rng: jax.Array) -> Params:
    """Random parameters."""
    return draw_params(EfficientNet(config), rng, jnp.zeros((1, 32, 32, len(config.pixel_mean))))


def features(
    config: EfficientNetConfig,
    params: Params,
    images: jax.Array,
    rng: jax.Array | None = None,
    image_size: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """The outputs of the seven stages for images [B, H, W, 1 or C] in [0, 1]. params may have more than the backbone.

    rng: for stochastic depth; None, as in inference: there is none. image_size: see `pixels.normalise`.
    """
    shares = None if rng is None else _shares(config, rng, len(images))
    stages: Any = Backbone(config, name="backbone").apply(
        {"params": params["backbone"]}, normalise(images, config.pixel_mean, config.pixel_std, image_size), shares
    )
    return stages


def logits(config: EfficientNetConfig, params: Params, images: jax.Array, rng: jax.Array | None = None) -> jax.Array:
    """Class logits [B, Q], float32 or wider, of images as in `features`. rng: of stochastic depth and dropout."""
    depth, drop = (None, None) if rng is None else jax.random.split(rng)
    last = features(config, params, images, depth)[-1]
    pooled: Any = EfficientNet(config).apply({"params": params}, last, method=EfficientNet.pooled)
    if drop is not None:
        kept = jax.random.bernoulli(drop, 1 - config.dropout, pooled.shape)
        pooled = jnp.where(kept, pooled / (1 - config.dropout), 0)
    found: Any = EfficientNet(config).apply({"params": params}, pooled, method=lambda network, x: network.classifier(x))
    return at_least_float32(found)


def _shares(config: EfficientNetConfig, rng: jax.Array, batch: int) -> jax.Array:
    """[blocks, B]: 0 where an image skips a block, else 1 / the block's probability (Huang et al. 2016)."""
    everything = blocks(config)
    skipped = [
        0 if block.stage <= config.frozen_stages else config.drop_path * number / len(everything)
        for number, block in enumerate(everything)
    ]
    kept = 1 - jnp.asarray(skipped)[:, None]
    return jax.random.bernoulli(rng, kept, (len(everything), batch)) / kept


def frozen(config: EfficientNetConfig) -> tuple[str, ...]:
    """Regular expressions of the parameters that are not trained."""
    stages = "".join(str(stage) for stage in range(1, config.frozen_stages + 1))
    constants = frozen_patterns(config.norm, ("backbone/", "head"))
    return (*constants, *((rf"^backbone/(stem|stage[{stages}]_\d+)/",) if stages else ()))


def strides(config: EfficientNetConfig) -> tuple[int, ...]:
    """Pixels per cell of every map of `features`."""
    return tuple(int(stride) for stride in np.cumprod([stride for _, _, stride, _, _ in STAGES]) * 2)


def conventions(config: EfficientNetConfig) -> dict[str, str]:
    """Field -> the layers whose weights change their meaning with it (see `Network`)."""
    layers = {
        "pixel_mean": r"^backbone/stem/",
        "pixel_std": r"^backbone/stem/",
        "padding": r"^backbone/",
        "activation": r"^backbone/",
        "norm_eps": r"^(backbone/.*|head)/norm/",
    }
    return {**layers, "norm_groups": r"^(backbone/.*|head)/norm/"} if config.norm == "gn" else layers
