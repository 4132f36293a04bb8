"""The denoising U-Net of Stable Diffusion 1.x and 2.x, and small U-Nets without text (Rombach et al. 2022).

Shapes: B batch, H W size of the sample (latents or pixels), C_in C_out its channels, S tokens of the text, D their
channels, E = 4 * block_out_channels[0] channels of the time embedding.

Parameters have diffusers' names, with slashes for dots, and numbers joined to the word before by an underscore:
`down_blocks.0.resnets.1.conv1.weight` is down_blocks_0/resnets_1/conv1/kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.backbones.initial import draw_params
from elk_jax.backbones.norms import GroupNorm
from elk_jax.diffusion import settings
from elk_jax.diffusion.attention import Implementation, SpatialTransformer
from elk_jax.diffusion.layers import Downsample, ResnetBlock, Upsample, conv, dense, zeros
from elk_jax.errors import UserError
from elk_jax.fields import EPSILON, Between, OneOf, check
from elk_jax.precision import DTYPES, at_least_float32

WITH_ATTENTION, WITHOUT = "CrossAttnDownBlock2D", "DownBlock2D"
Count = Annotated[int, Between(1, 1 << 16)]
Layers = Annotated[int, Between(1, 64)]
MOST_LAYERS = 256
"""Most layers of the downward half, including transformers: tracing more takes minutes. Stable Diffusion has 24."""


@dataclass(frozen=True)
class UNetConfig:
    """Fields and defaults as in unet/config.json of Stable Diffusion 1.5, and three more at the end.

    The upward half mirrors the downward half. cross_attention_dim None: a network without text, whose attention is
    only self-attention.
    """

    sample_size: Count = 64
    """Side of the training samples; for information only, since the network takes any size."""
    in_channels: Count = 4
    """4 latents; 9 for an inpainter: 4 noisy latents, 1 mask, 4 latents of the masked image."""
    out_channels: Count = 4
    down_block_types: tuple[str, ...] = (WITH_ATTENTION, WITH_ATTENTION, WITH_ATTENTION, WITHOUT)
    block_out_channels: tuple[Count, ...] = (320, 640, 1280, 1280)
    layers_per_block: Layers = 2
    attention_head_dim: Count | tuple[Count, ...] = 8
    """The NUMBER of heads, for all blocks or for each (a misnomer of diffusers found in every published file)."""
    cross_attention_dim: Count | None = 768
    transformer_layers_per_block: Annotated[int, Between(0, 64)] = 1
    use_linear_projection: bool = False
    norm_num_groups: Count = 32
    norm_eps: Annotated[float, EPSILON] = 1e-5

    attention: Implementation = "auto"
    """See attention.Implementation."""
    remat: bool = False
    """Recompute the activations inside every residual and attention block in the backward pass."""
    dtype: Annotated[str, OneOf(DTYPES)] = "float32"
    """Number format of the computation. Parameters, statistics and softmax are float32 or wider."""

    def __post_init__(self) -> None:
        check(self)
        blocks = len(self.block_out_channels)
        if blocks == 0 or len(self.down_block_types) != blocks:
            raise UserError(
                f"{len(self.down_block_types)} down_block_types for {blocks} block_out_channels",
                where="down_block_types",
                todo="give one type per block",
            )
        layers = blocks * (self.layers_per_block + 1) * (self.transformer_layers_per_block + 1)
        if layers > MOST_LAYERS:
            what = f"a network with {layers} layers"
            raise UserError(what, where="layers_per_block", todo=f"give at most {MOST_LAYERS}: fewer, or fewer blocks")
        if unknown := set(self.down_block_types) - {WITH_ATTENTION, WITHOUT}:
            raise UserError(
                f"unknown block {min(unknown)}", where="down_block_types", todo=f"give {WITH_ATTENTION} or {WITHOUT}"
            )
        if isinstance(self.attention_head_dim, tuple) and len(self.attention_head_dim) != blocks:
            raise UserError(
                f"{len(self.attention_head_dim)} numbers of heads for {blocks} blocks",
                where="attention_head_dim",
                todo="give one number, or one per block",
            )
        kinds = (*self.down_block_types[:-1], WITH_ATTENTION)  # the middle block attends, with the last block's width
        for channels, heads, kind in zip(self.block_out_channels, self.heads, kinds):
            if channels % self.norm_num_groups:
                raise UserError(
                    f"{channels} channels cannot be split into {self.norm_num_groups} groups",
                    where="norm_num_groups",
                    todo="give a divisor of all block_out_channels",
                )
            if kind == WITH_ATTENTION and channels % heads:
                raise UserError(
                    f"{channels} channels cannot be split into {heads} heads",
                    where="attention_head_dim",
                    todo="give a divisor of all block_out_channels",
                )

    @property
    def heads(self) -> tuple[int, ...]:
        """Number of heads of every block."""
        given = self.attention_head_dim
        return given if isinstance(given, tuple) else (given,) * len(self.block_out_channels)

    @property
    def factor(self) -> int:
        """Divisor of the height and width of a sample."""
        return 2 ** (len(self.block_out_channels) - 1)


_DEFAULTS: dict[str, Any] = {  # of diffusers 0.42, which writes all of them: those that are neither None nor False
    "act_fn": "silu",
    "addition_embed_type_num_heads": 64,
    "attention_type": "default",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "downsample_padding": 1,
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "resnet_out_scale_factor": 1.0,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
}
_ACCEPTED: dict[str, tuple[Any, ...]] = {  # values for which diffusers computes the same as this network
    "act_fn": ("silu", "swish"),
    "upcast_attention": (True,),  # the softmax is always in float32
    "up_block_types": (),  # checked below
    **dict.fromkeys(("decay", "inv_gamma", "min_decay", "optimization_step", "power"), ()),  # of its EMAModel
    **dict.fromkeys(("update_after_step", "use_ema_warmup"), ()),
}


def unet_config(content: Mapping[str, Any], where: str = "", **changes: Any) -> UNetConfig:
    """The configuration from diffusers' unet/config.json; `changes` (dtype, remat, ...) override it.

    Raises UserError for settings that this network does not support.
    """
    config = settings.from_json(UNetConfig, {**content, **changes}, _DEFAULTS, _ACCEPTED, where)
    mirrored = up_block_types(config)
    given = content.get("up_block_types", mirrored)
    if given not in (mirrored, tuple(mirrored)):
        raise UserError(f"up_block_types = {given} is not supported", where=where, todo=f"give {mirrored}")
    return config


def up_block_types(config: UNetConfig) -> list[str]:
    """diffusers' names of the upward half, which mirrors the downward half."""
    return [kind.replace("Down", "Up") for kind in reversed(config.down_block_types)]


def timestep_embedding(timesteps: jax.Array, features: int) -> jax.Array:
    """Cosines, then sines, of the time [B], of wavelengths 2 pi to 20000 pi -> [B, features] (Ho et al. 2020)."""
    half = features // 2
    exponent = np.float32(-math.log(10000)) * np.arange(half, dtype=np.float32) / np.float32(half)
    angles = at_least_float32(timesteps)[:, None] * np.exp(exponent)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepEmbedding(nn.Module):
    """Two dense layers around a SiLU: [B, C] -> [B, features]."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return dense(self.features, self.dtype, "linear_2")(nn.silu(dense(self.features, self.dtype, "linear_1")(x)))


def _resnet(config: UNetConfig, features: int, name: str) -> ResnetBlock:
    kind = nn.remat(ResnetBlock) if config.remat else ResnetBlock
    return kind(features, config.norm_num_groups, config.norm_eps, jnp.dtype(config.dtype), name=name)


def _transformer(config: UNetConfig, heads: int, name: str) -> SpatialTransformer:
    kind = nn.remat(SpatialTransformer) if config.remat else SpatialTransformer
    return kind(
        heads,
        config.transformer_layers_per_block,
        config.norm_num_groups,
        config.use_linear_projection,
        config.attention,
        jnp.dtype(config.dtype),
        name=name,
    )


class DownBlock(nn.Module):
    """x [B, h, w, C] -> (x [B, h/2, w/2, features], or [B, h, w, features] if `last`; skip connections)."""

    config: UNetConfig
    features: int
    heads: int  # 0: no attention
    last: bool

    @nn.compact
    def __call__(
        self, x: jax.Array, time: jax.Array, text: jax.Array | None
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        skips = []
        for i in range(self.config.layers_per_block):
            x = _resnet(self.config, self.features, f"resnets_{i}")(x, time)
            if self.heads:
                x = _transformer(self.config, self.heads, f"attentions_{i}")(x, text)
            skips.append(x)
        if not self.last:
            x = Downsample("symmetric", jnp.dtype(self.config.dtype), name="downsamplers_0")(x)
            skips.append(x)
        return x, tuple(skips)


class MidBlock(nn.Module):
    """Residual block, attention, residual block: [B, h, w, C] -> the same shape."""

    config: UNetConfig
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array, text: jax.Array | None) -> jax.Array:
        x = _resnet(self.config, x.shape[-1], "resnets_0")(x, time)
        x = _transformer(self.config, self.heads, "attentions_0")(x, text)
        return _resnet(self.config, x.shape[-1], "resnets_1")(x, time)


class UpBlock(nn.Module):
    """x [B, h, w, C] and skip connections, last first -> [B, 2h, 2w, features], or [B, h, w, features] if `last`.

    It has one residual block for each skip connection.
    """

    config: UNetConfig
    features: int
    heads: int  # 0: no attention
    last: bool

    @nn.compact
    def __call__(
        self, x: jax.Array, skips: tuple[jax.Array, ...], time: jax.Array, text: jax.Array | None
    ) -> jax.Array:
        for i, skip in enumerate(skips):
            x = _resnet(self.config, self.features, f"resnets_{i}")(jnp.concatenate([x, skip], axis=-1), time)
            if self.heads:
                x = _transformer(self.config, self.heads, f"attentions_{i}")(x, text)
        return x if self.last else Upsample(jnp.dtype(self.config.dtype), name="upsamplers_0")(x)


class UNet2DCondition(nn.Module):
    """sample [B, H, W, C_in], timesteps [B] (numbers from 0 to 999), text [B, S, D] or None -> [B, H, W, C_out].

    The output is float32 or wider. Raises UserError if the number of channels does not match, if `config.factor` does
    not divide H and W, or if the text is missing, of the wrong width, or given to a network without text.
    """

    config: UNetConfig

    @nn.compact
    def __call__(
        self, sample: jax.Array, timesteps: jax.Array, encoder_hidden_states: jax.Array | None = None
    ) -> jax.Array:
        c, text = self.config, encoder_hidden_states
        _check(c, sample, text)
        dtype = jnp.dtype(c.dtype)
        text = None if text is None else text.astype(dtype)
        widths, blocks = c.block_out_channels, len(c.block_out_channels)
        heads = [n if kind == WITH_ATTENTION else 0 for n, kind in zip(c.heads, c.down_block_types)]

        time = timestep_embedding(timesteps, widths[0])
        time = TimestepEmbedding(4 * widths[0], dtype, name="time_embedding")(time.astype(dtype))
        x = conv(widths[0], dtype, "conv_in")(sample.astype(dtype))
        skips: tuple[jax.Array, ...] = (x,)
        for i in range(blocks):
            last = i == blocks - 1
            x, more = DownBlock(c, widths[i], heads[i], last, name=f"down_blocks_{i}")(x, time, text)
            skips += more
        x = MidBlock(c, c.heads[-1], name="mid_block")(x, time, text)
        for i in range(blocks):
            j, last = blocks - 1 - i, i == blocks - 1
            skips, mine = skips[: -(c.layers_per_block + 1)], skips[-(c.layers_per_block + 1) :]
            x = UpBlock(c, widths[j], heads[j], last, name=f"up_blocks_{i}")(x, mine[::-1], time, text)
        x = nn.silu(GroupNorm(c.norm_num_groups, c.norm_eps, dtype=dtype, name="conv_norm_out")(x))
        return at_least_float32(conv(c.out_channels, dtype, "conv_out", kernel_init=zeros)(x))


def _check(config: UNetConfig, sample: jax.Array, text: jax.Array | None) -> None:
    _, height, width, channels = sample.shape
    if channels != config.in_channels:
        raise UserError(
            f"{channels} channels for a U-Net with {config.in_channels}",
            where="in_channels",
            todo="an inpainter takes 9 (noisy latents, mask, latents of the masked image), text-to-image 4",
        )
    if height % config.factor or width % config.factor:
        raise UserError(
            f"{height} x {width} is not divisible by {config.factor}",
            where="sample",
            todo=f"use multiples of {config.factor}",
        )
    expected, given = config.cross_attention_dim, None if text is None else text.shape[-1]
    if expected != given:
        raise UserError(
            f"{_text(given)} for a U-Net that takes {_text(expected)}",
            where="cross_attention_dim",
            todo="use the text encoder of the same model",
        )


def _text(channels: int | None) -> str:
    return "no text" if channels is None else f"text with {channels} channels"


def init(config: UNetConfig, rng: jax.Array) -> Any:
    """Initial parameters (nested dict); only their shapes under jax.eval_shape."""
    side = config.factor
    sample = jnp.zeros((1, side, side, config.in_channels))
    text = None if config.cross_attention_dim is None else jnp.zeros((1, 1, config.cross_attention_dim))
    return draw_params(UNet2DCondition(config), rng, sample, jnp.zeros(1), text)
