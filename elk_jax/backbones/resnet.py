"""Residual networks (He et al. 2016) as feature extractors and classifiers.

Shapes: B batch, H W input size, C channels; stage l (2..5) is C_l [B, ceil(H/2^l), ceil(W/2^l), C]. Q classes.

Parameters: backbone/stem/conv, backbone/res{2..5}_{block}/conv{1,2,3} and /shortcut, each a ConvNorm (kernel, norm/*);
classifier (kernel, bias).
Padding is as in PyTorch, so that weights of torchvision and detectron2 give the same features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from elk_jax.backbones.conv import ConvNorm, Padding, margins, matrix_product
from elk_jax.backbones.initial import draw_params
from elk_jax.backbones.norms import (
    BATCH_NORM,
    NORMS,
    Norm,
    frozen_patterns,
    norm_from_name,
    param_dtype,
    statistics_patterns,
    zero_residual_norm,
)
from elk_jax.backbones.pixels import IMAGENET_MEAN, IMAGENET_STD, normalise
from elk_jax.fields import NOT_EMPTY, NOT_NEGATIVE, POSITIVE, SIDE, Between, OneOf, check, impossible
from elk_jax.precision import DTYPES, at_least_float32

Params = Any

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Residual blocks of the stages res2..res5, by depth: all depths that there are."""

Positive = Annotated[float, POSITIVE]
Shift = Annotated[float, Between(-NOT_NEGATIVE.high, NOT_NEGATIVE.high)]


@dataclass(frozen=True)
class ResNetConfig:
    """A ResNet. The defaults are torchvision's ResNet-50.

    UserError for an impossible value; its `where` is the field.
    """

    name: Literal["resnet"] = "resnet"
    depth: Annotated[int, OneOf(tuple(BLOCKS))] = 50
    """Layers."""
    width: Annotated[int, Between(1, 1 << 16)] = 64
    """Channels of the convolutions in the blocks of C2; each later stage doubles it."""
    stem_width: Annotated[int, Between(0, 1 << 16)] = 0
    """Channels of the stem; 0: as `width`. Half-width networks keep a full stem of 64."""
    norm: Annotated[str, OneOf((*NORMS, BATCH_NORM))] = "frozen_bn"
    """See `norms.NORMS` and `norms.BatchNorm`."""
    norm_groups: Annotated[int, Between(1, 1 << 16)] = 32
    """Groups of 'gn'; all widths must be divisible by it."""
    norm_eps: Annotated[float, NOT_NEGATIVE] = 1e-5
    stride_in_1x1: bool = False
    """Where a bottleneck block halves the image: its first 1x1 (detectron2) or its 3x3 convolution (torchvision)."""
    remat: tuple[Annotated[int, Between(2, 5)], ...] = ()
    """Stages (2..5) whose activations are recomputed in the backward pass: less memory, more time."""
    num_classes: Annotated[int, Between(0, 1 << 16)] = 1000
    """Q; 0: no classifier."""

    # Input: (image * pixel_scale - pixel_mean) / pixel_std, for an image in [0, 1]; one number per input channel.
    pixel_scale: Positive = 1.0
    pixel_mean: Annotated[tuple[Shift, ...], NOT_EMPTY] = IMAGENET_MEAN
    """In the channel order of the weights. Its length is the number of channels that the network takes; colour images
    must come in the same order."""
    pixel_std: tuple[Positive, ...] = IMAGENET_STD
    image_size: Annotated[int, SIDE] = 224
    """Pixels along a side in the published training. Any size can be computed."""
    dtype: Annotated[str, OneOf(DTYPES)] = "float32"

    def __post_init__(self) -> None:
        check(self)
        if len(self.pixel_std) != len(self.pixel_mean):
            raise impossible(self, "pixel_std", f"give {len(self.pixel_mean)} numbers, as many as pixel_mean has")
        for name in ("width", "stem_width") if self.norm == "gn" else ():
            if getattr(self, name) % self.norm_groups:
                raise impossible(self, "norm_groups", f"give a divisor of {name} = {getattr(self, name)}")


def detectron2(**changes: Any) -> ResNetConfig:
    """For weights of detectron2's backbones (Caffe2 ResNets; blue, green, red in 0..255), with `changes`."""
    settings: dict[str, Any] = {
        "depth": 101,
        "stride_in_1x1": True,
        "num_classes": 0,
        "pixel_scale": 255.0,
        "pixel_mean": (103.530, 116.280, 123.675),
        "pixel_std": (1.0, 1.0, 1.0),
    }
    return ResNetConfig(**{**settings, **changes})


def has_bottlenecks(depth: int) -> bool:
    """Whether the blocks of a ResNet are bottlenecks (1x1, 3x3, 1x1) or basic (3x3, 3x3)."""
    return depth >= 50


class Stem(nn.Module):
    """7x7 convolution of stride 2, ReLU, max-pool of stride 2: [B, H, W, C_in] -> [B, H/4, W/4, width]."""

    width: int
    norm: Norm | None
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return max_pool(nn.relu(ConvNorm(self.width, 7, 2, self.norm, dtype=self.dtype, name="conv")(x)))


def max_pool(x: jax.Array, padding: Padding = "symmetric") -> jax.Array:
    """3x3 max-pool of stride 2, padded with -inf: [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), C].

    It is the maximum of three shifted slices, along one axis and then the other. The gradient of a windowed reduction
    is several times slower on a CPU, and on a sharded batch it gathers the activations of all devices.
    """
    for axis in (1, 2):
        size, edges = -(-x.shape[axis] // 2), margins(padding, x.shape[axis], 3, 2)
        padded = jnp.pad(x, [edges if i == axis else (0, 0) for i in range(4)], constant_values=-jnp.inf)
        first, second, third = (
            jax.lax.slice_in_dim(padded, start, start + 2 * size - 1, stride=2, axis=axis) for start in range(3)
        )
        x = jnp.maximum(jnp.maximum(first, second), third)
    return x


@jax.custom_vjp
def rectified_sum(branch: jax.Array, skipped: jax.Array) -> jax.Array:
    """relu(branch + skipped), of one shape and type: the end of a residual block.

    It is written as a selection between two arrays, here and in the gradient. XLA's CPU compiler duplicates cheap
    functions of one array into all their consumers: a maximum with zero would be recomputed, with all the blocks before
    it, in every block of a stage (a third more time and memory for 101 layers).
    """
    total = branch + skipped
    return jnp.where(total <= 0, jnp.zeros_like(total), total)  # NaN propagates


def _rectified_sum_forward(branch: jax.Array, skipped: jax.Array):
    total = rectified_sum(branch, skipped)
    return total, total


def _rectified_sum_backward(total: jax.Array, gradient: jax.Array):
    gradient = jnp.where(total > 0, gradient, jnp.zeros_like(gradient))
    return gradient, gradient


rectified_sum.defvjp(_rectified_sum_forward, _rectified_sum_backward)


class Block(nn.Module):
    """Fields of both kinds of residual blocks. last_norm: of the last convolution, before the shortcut is added."""

    width: int
    stride: int
    norm: Norm | None
    last_norm: Norm | None
    stride_in_1x1: bool
    dtype: Any


class BasicBlock(Block):
    """Two 3x3 convolutions and a shortcut: [B, H, W, C_in] -> [B, H/stride, W/stride, width]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(ConvNorm(self.width, 3, self.stride, self.norm, dtype=self.dtype, name="conv1")(x))
        y = ConvNorm(self.width, 3, 1, self.last_norm, dtype=self.dtype, name="conv2")(y)
        return rectified_sum(y, shortcut(self, x, self.width))


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions and a shortcut: [B, H, W, C_in] -> [B, H/stride, W/stride, 4 width].

    The stride is in the first 1x1 (the original network, detectron2) or in the 3x3 (torchvision).
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        stride1, stride3 = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
        y = nn.relu(ConvNorm(self.width, 1, stride1, self.norm, dtype=self.dtype, name="conv1")(x))
        y = nn.relu(ConvNorm(self.width, 3, stride3, self.norm, dtype=self.dtype, name="conv2")(y))
        y = ConvNorm(4 * self.width, 1, 1, self.last_norm, dtype=self.dtype, name="conv3")(y)
        return rectified_sum(y, shortcut(self, x, 4 * self.width))


def shortcut(block: Block, x: jax.Array, features: int) -> jax.Array:
    """The input itself, or its 1x1 projection if the block changes its size or channels."""
    if block.stride == 1 and x.shape[-1] == features:
        return x
    return ConvNorm(features, 1, block.stride, block.norm, dtype=block.dtype, name="shortcut")(x)


class ResNet(nn.Module):
    """Normalised image [B, H, W, C_in] -> (C2, C3, C4, C5) at strides 4, 8, 16, 32."""

    config: ResNetConfig
    training: bool = False
    """Whether batch norms read the statistics of the batch."""

    @nn.compact
    def __call__(self, image: jax.Array) -> tuple[jax.Array, ...]:
        c = self.config
        norm = norm_from_name(c.norm, groups=c.norm_groups, eps=c.norm_eps, training=self.training)
        dtype = jnp.dtype(c.dtype)
        block_type = Bottleneck if has_bottlenecks(c.depth) else BasicBlock
        x = Stem(c.stem_width or c.width, norm, dtype, name="stem")(image)
        stages = []
        for stage, blocks in enumerate(BLOCKS[c.depth], start=2):
            make_block = nn.remat(block_type) if stage in c.remat else block_type
            for i in range(blocks):
                x = make_block(
                    width=c.width * 2 ** (stage - 2),
                    stride=2 if i == 0 and stage > 2 else 1,
                    norm=norm,
                    last_norm=zero_residual_norm(norm),
                    stride_in_1x1=c.stride_in_1x1,
                    dtype=dtype,
                    name=f"res{stage}_{i}",
                )(x)
            stages.append(x)
        return tuple(stages)


class Classifier(nn.Module):
    """The network: backbone and classifier, the two top-level names of its parameters.

    Normalised image [B, H, W, C_in] -> class logits [B, Q] in float32 or wider, from the mean of C5 over its map;
    without a classifier (num_classes 0) the means [B, C]. training: see `ResNet`.
    """

    config: ResNetConfig
    training: bool = False

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        c = self.config
        pooled = at_least_float32(ResNet(c, self.training, name="backbone")(image)[-1]).mean((1, 2))
        if not c.num_classes:
            return pooled
        stored = param_dtype(c.dtype)
        dense = nn.Dense(
            c.num_classes, dtype=c.dtype, param_dtype=stored, dot_general=matrix_product, name="classifier"
        )
        return at_least_float32(dense(pooled))


def init(config: ResNetConfig, rng: jax.Array) -> Params:
    """Random parameters."""
    return draw_params(Classifier(config), rng, jnp.zeros((1, 32, 32, len(config.pixel_mean))))


def features(
    config: ResNetConfig,
    params: Params,
    images: jax.Array,
    rng: jax.Array | None = None,
    image_size: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """(C2, C3, C4, C5) of images [B, H, W, 1 or C] in [0, 1]. params may have more than the backbone.

    They are deterministic. rng: its presence means training, which matters to `batch_bn`; padding counts in its
    statistics. image_size: see `pixels.normalise`.
    """
    stages: Any = ResNet(config, rng is not None, name="backbone").apply(
        {"params": params["backbone"]}, _input(config, images, image_size)
    )
    return stages


def logits(config: ResNetConfig, params: Params, images: jax.Array, rng: jax.Array | None = None) -> jax.Array:
    """Class logits [B, Q], float32 or wider, of images as in `features`."""
    found: Any = Classifier(config, rng is not None).apply({"params": params}, _input(config, images))
    return found


def _input(config: ResNetConfig, images: jax.Array, image_size: jax.Array | None = None) -> jax.Array:
    scaled = at_least_float32(images) * config.pixel_scale
    return normalise(scaled, config.pixel_mean, config.pixel_std, image_size)


def frozen(config: ResNetConfig) -> tuple[str, ...]:
    """Regular expressions of the parameters that are not trained."""
    return frozen_patterns(config.norm, ("backbone/",))


def statistics(config: ResNetConfig) -> tuple[str, ...]:
    """Regular expressions of the parameters that are running statistics (see `norms.BatchNorm`)."""
    return statistics_patterns(config.norm, ("backbone/",))


def strides(config: ResNetConfig) -> tuple[int, ...]:
    """Pixels per cell of every map of `features`."""
    return 4, 8, 16, 32


def conventions(config: ResNetConfig) -> dict[str, str]:
    """Field -> the layers whose weights change their meaning with it (see `Network`)."""
    layers = {
        "pixel_scale": r"^backbone/stem/",
        "pixel_mean": r"^backbone/stem/",
        "pixel_std": r"^backbone/stem/",
        "stride_in_1x1": r"^backbone/res\d_\d+/conv3/",  # of bottlenecks alone
        "norm_eps": r"^backbone/.*/norm/",
    }
    return {**layers, "norm_groups": r"^backbone/.*/norm/"} if config.norm == "gn" else layers
