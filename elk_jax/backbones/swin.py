"""Swin transformers (Liu et al. 2021, arXiv:2103.14030) as feature extractors and classifiers.

Shapes: B batch, H W input size, C channels; stage l (2..5) is C_l [B, ceil(H/2^l), ceil(W/2^l), C]. In a block: h w
size of the map, G windows of an image, T = window * window tokens of each, N heads, D channels of a head. Q classes.

Parameters: backbone/patches, /patches_norm, /merge{3..5}/norm and /reduction (3..6 of MONAI),
/res{2..5}_{block}/norm1, /attention, /norm2, /mlp1 and /mlp2; norm; hidden, if there is such a layer; classifier.
Maps of any size are padded on the right and at the bottom: to whole patches, whole windows and pairs of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.backbones.conv import matrix_product
from elk_jax.backbones.initial import draw_params
from elk_jax.backbones.norms import param_dtype
from elk_jax.backbones.pixels import IMAGENET_MEAN, IMAGENET_STD, normalise
from elk_jax.errors import UserError
from elk_jax.fields import BELOW_ONE, SIDE, AtLeast, Between, OneOf, check
from elk_jax.precision import DTYPES, at_least_float32

Params = Any

EPS = 1e-5
STAGES = 4

small_normal = nn.initializers.truncated_normal(0.02)


@dataclass(frozen=True)
class SwinConfig:
    """embed: channels of C2; each later stage doubles it. depths, heads: blocks and heads of the stages.

    patch: pixels of a token's side. window: tokens of a window's side. drop_path: share of dropped residual branches in
    the last block; it rises from 0 over the blocks. frozen_stages: how many of stem, C2, ..., C5 are not trained,
    including the stem (1: only the stem, 2: the stem and C2), unlike in `EfficientNetConfig`; their branches are not
    dropped.
    remat: recompute the activations of blocks in the backward pass.
    num_classes: Q; 0: no classifier. hidden: width of a layer before the class logits, with a leaky ReLU of slope 0.2;
    0: they are linear. image_size: pixels along a side in the published training; any size can be computed.
    pixel_mean, pixel_std: for images in [0, 1], one per input channel; grey images are replicated over the channels.
    """

    name: Literal["swin"] = "swin"
    embed: Annotated[int, AtLeast(1)] = 96
    depths: tuple[Annotated[int, AtLeast(1)], ...] = (2, 2, 6, 2)
    heads: tuple[Annotated[int, AtLeast(1)], ...] = (3, 6, 12, 24)
    patch: Annotated[int, AtLeast(1)] = 4
    window: Annotated[int, AtLeast(1)] = 7
    mlp_ratio: Annotated[int, AtLeast(1)] = 4
    drop_path: Annotated[float, BELOW_ONE] = 0.2
    frozen_stages: Annotated[int, Between(0, STAGES + 1)] = 0
    remat: bool = False
    num_classes: Annotated[int, Between(0, 1 << 16)] = 1000
    hidden: Annotated[int, AtLeast(0)] = 0
    image_size: Annotated[int, SIDE] = 224
    pixel_mean: tuple[float, ...] = IMAGENET_MEAN
    pixel_std: tuple[float, ...] = IMAGENET_STD
    dtype: Annotated[str, OneOf(DTYPES)] = "float32"

    is_monai: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self)
        for name in ("depths", "heads"):
            if len(getattr(self, name)) != STAGES:
                raise UserError(f"{name} has {len(getattr(self, name))} numbers", where=name, todo="give four")
        for stage, heads in enumerate(self.heads):
            if self.width(stage) % heads:
                what = f"{self.width(stage)} channels of stage {stage + 2} cannot be split into {heads} heads"
                raise UserError(what, where="heads", todo="choose divisors of embed, 2 embed, 4 embed, 8 embed")
        if len(self.pixel_mean) != len(self.pixel_std) or not self.pixel_mean:
            raise UserError("pixel_mean and pixel_std differ in length", where="pixel_std", todo="give one per channel")

    def width(self, stage: int) -> int:
        """Channels of a stage, from 0."""
        return self.embed * 2**stage


@dataclass(frozen=True)
class MonaiSwinConfig(SwinConfig):
    """MONAI's SwinTransformer: a stage ends with its merge, and its map is the one after the merge, with twice the
    stride and width, normalised without parameters. Tokens are not normalised at the start."""

    name: Literal["monai_swin"] = "monai_swin"  # type: ignore[assignment]
    patch: Annotated[int, AtLeast(1)] = 2

    is_monai: ClassVar[bool] = True


VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "small": {"depths": (2, 2, 18, 2), "drop_path": 0.3},
    "base": {"embed": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32), "drop_path": 0.5},
}


def named(variant: str, **changes: Any) -> SwinConfig:
    """The published network `variant`, a key of VARIANTS, with `changes`. UserError for an unknown name."""
    if variant not in VARIANTS:
        raise UserError(f"no Swin transformer '{variant}'", todo=f"choose one of {', '.join(VARIANTS)}")
    return SwinConfig(**{**VARIANTS[variant], **changes})


def init(config: SwinConfig, rng: jax.Array) -> Params:
    """Random parameters."""
    return draw_params(Classifier(config), rng, jnp.zeros((1, 32, 32, len(config.pixel_mean))))


def features(
    config: SwinConfig,
    params: Params,
    images: jax.Array,
    rng: jax.Array | None = None,
    image_size: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """(C2, C3, C4, C5) of images [B, H, W, 1 or C] in [0, 1]. params may have more than the backbone.

    rng: for dropping residual branches; None drops none. image_size: see `pixels.normalise`.
    """
    stages: Any = Swin(config, name="backbone").apply(
        {"params": params["backbone"]}, normalise(images, config.pixel_mean, config.pixel_std, image_size), rng
    )
    return stages


def logits(config: SwinConfig, params: Params, images: jax.Array, rng: jax.Array | None = None) -> jax.Array:
    """Class logits [B, Q], float32 or wider, of images as in `features`. rng: of the dropped residual branches."""
    found: Any = Classifier(config).apply(
        {"params": params}, normalise(images, config.pixel_mean, config.pixel_std), rng
    )
    return found


def frozen(config: SwinConfig) -> tuple[str, ...]:
    """Regular expressions of the parameters that are not trained."""
    names = ["patches|patches_norm", *(f"merge{stage}|res{stage}_\\d+" for stage in range(2, 2 + STAGES))]
    if config.is_monai:  # whose merges are the ends of stages
        names = ["patches", *(f"res{stage}_\\d+|merge{stage + 1}" for stage in range(2, 2 + STAGES))]
    return tuple(f"^backbone/({name})/" for name in names[: config.frozen_stages])


def strides(config: SwinConfig) -> tuple[int, ...]:
    """Pixels per cell of every map of `features`."""
    first = 1 if config.is_monai else 0
    return tuple(config.patch * 2 ** (first + stage) for stage in range(STAGES))


def conventions(config: SwinConfig) -> dict[str, str]:
    """Field -> the layers whose weights change their meaning with it (see `Network`)."""
    return {"pixel_mean": r"^backbone/patches/", "pixel_std": r"^backbone/patches/"}


class Swin(nn.Module):
    """Normalised image [B, H, W, C_in] -> (C2, C3, C4, C5) at strides 4, 8, 16, 32, for patches of 4 (of MONAI of
    2).

    rng: of the dropped residual branches; None drops none. A branch is dropped for each image by itself.
    """

    config: SwinConfig

    @nn.compact
    def __call__(self, image: jax.Array, rng: jax.Array | None = None) -> tuple[jax.Array, ...]:
        config = self.config
        image = image.astype(config.dtype)
        rates = np.linspace(0, config.drop_path, sum(config.depths))
        make_block = nn.remat(Block, static_argnums=(3,)) if config.remat else Block
        x = Patches(config, name="patches")(image)
        x = x if config.is_monai else layer_norm(config, "patches_norm")(x)
        stages, number = [], 0
        for stage in range(STAGES):
            if stage and not config.is_monai:
                x = Merge(config, name=f"merge{stage + 2}")(x)
            for i in range(config.depths[stage]):
                trained = stage + 1 >= config.frozen_stages
                key = jax.random.fold_in(rng, number) if rng is not None and trained else None
                shift = config.window // 2 if i % 2 else 0
                block = make_block(config, config.heads[stage], shift, name=f"res{stage + 2}_{i}")
                x = block(x, key, float(rates[number]))
                number += 1
            if config.is_monai:
                x = Merge(config, name=f"merge{stage + 3}")(x)
            stages.append(layer_norm(config, None, use_scale=False, use_bias=False)(x) if config.is_monai else x)
        return tuple(stages)


class Patches(nn.Module):
    """[B, H, W, C_in] -> [B, ceil(H/p), ceil(W/p), embed]: a dense layer on the pixels of every patch."""

    config: SwinConfig

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        config, side = self.config, self.config.patch
        image = padded(image, side)
        batch, height, width, channels = image.shape
        patches = image.reshape(batch, height // side, side, width // side, side, channels).swapaxes(2, 3)
        return dense(config, config.embed, name="projection")(patches.reshape(*patches.shape[:3], -1))


class Merge(nn.Module):
    """[B, h, w, C] -> [B, ceil(h/2), ceil(w/2), 2 C]: four neighbours become one token."""

    config: SwinConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = padded(x, 2)
        joined = jnp.concatenate([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], axis=-1)
        joined = layer_norm(self.config, "norm")(joined)
        return dense(self.config, 2 * x.shape[-1], use_bias=False, name="reduction")(joined)


class Block(nn.Module):
    """Attention within windows, shifted by `shift` tokens, and a perceptron, each added to its input: [B, h, w, C]."""

    config: SwinConfig
    heads: int
    shift: int

    @nn.compact
    def __call__(self, x: jax.Array, rng: jax.Array | None, drop_rate: float) -> jax.Array:
        config, channels = self.config, x.shape[-1]
        keys = (None, None) if rng is None else jax.random.split(rng)
        attention = WindowAttention(config, self.heads, self.shift, name="attention")
        x = x + drop_path(attention(layer_norm(config, "norm1")(x)), keys[0], drop_rate)
        y = dense(config, config.mlp_ratio * channels, name="mlp1")(layer_norm(config, "norm2")(x))
        y = dense(config, channels, name="mlp2")(nn.gelu(y, approximate=False))
        return x + drop_path(y, keys[1], drop_rate)


class WindowAttention(nn.Module):
    """[B, h, w, C] -> [B, h, w, C]: tokens attend to those of their window, with a bias by relative position.

    In windows that shifting joins from opposite borders of the map, only parts that were neighbours see each other.
    Padding is attended to, as in the published networks.
    """

    config: SwinConfig
    heads: int
    shift: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, side, (batch, height, width, channels) = self.config, self.config.window, x.shape
        x = padded(x, side)
        # A map of a single window along an axis is not shifted along it.
        shift = tuple(self.shift if size > side else 0 for size in x.shape[1:3])
        if any(shift):
            x = jnp.roll(x, (-shift[0], -shift[1]), axis=(1, 2))
        windows = split_windows(x, side)  # [B, G, T, C]
        count, tokens = windows.shape[1:3]
        qkv = dense(config, 3 * channels, name="qkv")(windows)
        query, key, value = jnp.moveaxis(qkv.reshape(batch, count, tokens, 3, self.heads, -1), 3, 0)
        table = self.param(
            "relative_position", small_normal, ((2 * side - 1) ** 2, self.heads), param_dtype(config.dtype)
        )
        bias = jnp.moveaxis(table[relative_positions(side)], -1, 0)  # [N, T, T]
        scale = (channels // self.heads) ** -0.5
        kind = jnp.promote_types(config.dtype, jnp.float32)
        scores = jnp.einsum("bgtnd,bgsnd->bgnts", query * scale, key, preferred_element_type=kind) + bias
        if any(shift):
            scores += jnp.where(neighbours(x.shape[1:3], side, shift), 0, -100.0).astype(kind)[:, None]
        weights = jax.nn.softmax(scores, axis=-1).astype(config.dtype)
        mixed = jnp.einsum("bgnts,bgsnd->bgtnd", weights, value).reshape(batch, count, tokens, channels)
        mixed = dense(config, channels, name="projection")(mixed)
        x = join_windows(mixed, x.shape[1:3])
        if any(shift):
            x = jnp.roll(x, shift, axis=(1, 2))
        return x[:, :height, :width]


def padded(x: jax.Array, multiple: int) -> jax.Array:
    """[B, h, w, C] with zeros on the right and below, to multiples of a number."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), (0, -x.shape[2] % multiple), (0, 0)))


def split_windows(x: jax.Array, side: int) -> jax.Array:
    """[B, h, w, C] -> [B, G, T, C], windows row by row."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // side, side, width // side, side, channels).swapaxes(2, 3)
    return x.reshape(batch, -1, side * side, channels)


def join_windows(windows: jax.Array, size: Sequence[int]) -> jax.Array:
    """[B, G, T, C] -> [B, h, w, C] of `size` (h, w): the inverse of `split_windows`."""
    (height, width), (batch, _, tokens, channels) = size, windows.shape
    side = round(tokens**0.5)
    x = windows.reshape(batch, height // side, width // side, side, side, channels).swapaxes(2, 3)
    return x.reshape(batch, height, width, channels)


@lru_cache(maxsize=8)
def relative_positions(side: int) -> np.ndarray:
    """[T, T] int: row of the table for a token (first axis) that looks at another."""
    places = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)
    offset = places[:, None] - places[None] + side - 1
    return offset[..., 0] * (2 * side - 1) + offset[..., 1]


@lru_cache(maxsize=64)
def neighbours(size: tuple[int, int], side: int, shift: tuple[int, int]) -> np.ndarray:
    """[G, T, T] bool: whether two tokens of a shifted window were neighbours before the shift."""
    part = np.zeros(size, np.int32)
    for axis, amount in enumerate(shift):
        place = np.arange(size[axis])
        along = (place >= size[axis] - side).astype(np.int32) + (place >= size[axis] - amount if amount else 0)
        part = 3 * part + (along[:, None] if axis == 0 else along[None])
    (height, width) = size
    parts = part.reshape(height // side, side, width // side, side).swapaxes(1, 2).reshape(-1, side * side)
    return parts[:, :, None] == parts[:, None, :]


def drop_path(x: jax.Array, rng: jax.Array | None, rate: float) -> jax.Array:
    """The branch x [B, ...], 0 for the share `rate` of the images and scaled up for the others (Huang et al. 2016)."""
    if rng is None or rate == 0:
        return x
    kept = jax.random.bernoulli(rng, 1 - rate, (x.shape[0], *[1] * (x.ndim - 1)))
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def dense(config: SwinConfig, features: int, **options: Any) -> nn.Dense:
    """A dense layer of the network."""
    return nn.Dense(
        features,
        dtype=config.dtype,
        param_dtype=param_dtype(config.dtype),
        kernel_init=small_normal,
        dot_general=matrix_product,
        **options,
    )


def layer_norm(config: SwinConfig, name: str | None, **options: Any) -> nn.LayerNorm:
    """Statistics in float32 or wider."""
    stored = param_dtype(config.dtype)
    return nn.LayerNorm(
        epsilon=EPS, dtype=config.dtype, param_dtype=stored, use_fast_variance=False, name=name, **options
    )


class Classifier(nn.Module):
    """Network input [B, H, W, C_in] -> class logits [B, Q] in float32 or wider, from the mean of C5 over its map.

    Without a classifier (num_classes 0) the means [B, C].
    """

    config: SwinConfig

    @nn.compact
    def __call__(self, image: jax.Array, rng: jax.Array | None = None) -> jax.Array:
        config = self.config
        x = Swin(config, name="backbone")(image, rng)[-1]
        x = at_least_float32(layer_norm(config, "norm")(x)).mean((1, 2))
        if not config.num_classes:
            return x
        if config.hidden:
            x = nn.leaky_relu(dense(config, config.hidden, name="hidden")(x), 0.2)
        return at_least_float32(dense(config, config.num_classes, name="classifier")(x))
