"""The autoencoder between pixels and latents (AutoencoderKL of Stable Diffusion; Rombach et al. 2022, section 3.1).

Shapes: B batch, H W of the image, C its channels, h = H / factor, w = W / factor, Z latent channels.

Parameters have diffusers' names (see unet.py): encoder/*, decoder/*, quant_conv, post_quant_conv.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from elk_jax.backbones.initial import draw_params
from elk_jax.backbones.norms import GroupNorm
from elk_jax.diffusion import settings
from elk_jax.diffusion.attention import Implementation, MapAttention
from elk_jax.diffusion.layers import Downsample, ResnetBlock, Upsample, conv
from elk_jax.errors import UserError
from elk_jax.fields import NOT_EMPTY, Between, OneOf, Range, check
from elk_jax.precision import DTYPES, at_least_float32

EPS = 1e-6
MIN_LOGVAR, MAX_LOGVAR = -30.0, 20.0
MOST_LAYERS = 256
"""Most layers of the encoder: tracing more takes minutes. Stable Diffusion has 12."""
Count = Annotated[int, Between(1, 1 << 16)]


@dataclass(frozen=True)
class AutoencoderConfig:
    """Fields and defaults as in vae/config.json of Stable Diffusion 1.x and 2.x, and three fields of this project."""

    sample_size: Count = 512
    """Side of the training images; for information only."""
    in_channels: Count = 3
    out_channels: Count = 3
    latent_channels: Count = 4
    block_out_channels: Annotated[tuple[Count, ...], NOT_EMPTY] = (128, 256, 512, 512)
    layers_per_block: Annotated[int, Between(1, 64)] = 2
    norm_num_groups: Count = 32
    scaling_factor: Annotated[float, Range(0, 1e6, above=True)] = 0.18215
    """1 / standard deviation of the latents: see `to_latents`."""
    mid_block_add_attention: bool = True

    attention: Implementation = "auto"
    """See attention.Implementation."""
    remat: bool = False
    """Recompute the activations inside every residual block in the backward pass."""
    dtype: Annotated[str, OneOf(DTYPES)] = "float32"
    """Number format of the computation."""

    def __post_init__(self) -> None:
        check(self)
        layers = len(self.block_out_channels) * (self.layers_per_block + 1)
        if layers > MOST_LAYERS:
            what = f"a network with {layers} layers"
            raise UserError(what, where="layers_per_block", todo=f"give at most {MOST_LAYERS}: fewer, or fewer blocks")
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise UserError(
                    f"{channels} channels cannot be split into {self.norm_num_groups} groups",
                    where="norm_num_groups",
                    todo="give a divisor of all block_out_channels",
                )

    @property
    def factor(self) -> int:
        """Pixels per latent, in each direction."""
        return 2 ** (len(self.block_out_channels) - 1)


_DEFAULTS: dict[str, Any] = {  # defaults of diffusers 0.42 that differ from ours, or for fields that we do not have
    "sample_size": 32,
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "force_upcast": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}
_ACCEPTED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "force_upcast": (False,),  # concerns float16, which is not supported here
    "down_block_types": (),  # checked below
    "up_block_types": (),
}


def autoencoder_config(content: Mapping[str, Any], where: str = "", **changes: Any) -> AutoencoderConfig:
    """The configuration from diffusers' vae/config.json; `changes` (dtype, ...) override it.

    Raises UserError for settings that this network does not support.
    """
    config = settings.from_json(AutoencoderConfig, {**content, **changes}, _DEFAULTS, _ACCEPTED, where)
    for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        expected = [kind] * len(config.block_out_channels)
        if content.get(name, expected) not in (expected, tuple(expected)):
            raise UserError(f"{name} = {content[name]} is not supported", where=where, todo=f"give {expected}")
    return config


def _resnet(config: AutoencoderConfig, features: int, name: str) -> ResnetBlock:
    kind = nn.remat(ResnetBlock) if config.remat else ResnetBlock
    return kind(features, config.norm_num_groups, EPS, jnp.dtype(config.dtype), name=name)


class Middle(nn.Module):
    """Residual block, attention over all positions, residual block: [B, h, w, C] -> the same shape."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, features = self.config, x.shape[-1]
        x = _resnet(c, features, "resnets_0")(x)
        if c.mid_block_add_attention:
            x = MapAttention(c.norm_num_groups, c.attention, jnp.dtype(c.dtype), name="attentions_0")(x)
        return _resnet(c, features, "resnets_1")(x)


class Block(nn.Module):
    """Residual blocks, then a change of the size unless it is None: [B, H, W, C] -> [B, H', W', features].

    layers: number of residual blocks; the decoder has one more than the encoder.
    """

    config: AutoencoderConfig
    features: int
    layers: int
    change: Literal["down", "up"] | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.layers):
            x = _resnet(self.config, self.features, f"resnets_{i}")(x)
        if self.change == "down":
            return Downsample("same", jnp.dtype(self.config.dtype), name="downsamplers_0")(x)
        return Upsample(jnp.dtype(self.config.dtype), name="upsamplers_0")(x) if self.change == "up" else x


class Encoder(nn.Module):
    """Image [B, H, W, C] -> moments [B, h, w, 2Z] before quant_conv."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        x = conv(c.block_out_channels[0], dtype, "conv_in")(x.astype(dtype))
        for i, features in enumerate(c.block_out_channels):
            last = i == len(c.block_out_channels) - 1
            x = Block(c, features, c.layers_per_block, None if last else "down", name=f"down_blocks_{i}")(x)
        x = Middle(c, name="mid_block")(x)
        x = nn.silu(GroupNorm(c.norm_num_groups, EPS, dtype=dtype, name="conv_norm_out")(x))
        return conv(2 * c.latent_channels, dtype, "conv_out")(x)


class Decoder(nn.Module):
    """Latents [B, h, w, Z] after post_quant_conv -> image [B, H, W, C]."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        x = conv(c.block_out_channels[-1], dtype, "conv_in")(x.astype(dtype))
        x = Middle(c, name="mid_block")(x)
        for i, features in enumerate(reversed(c.block_out_channels)):
            last = i == len(c.block_out_channels) - 1
            x = Block(c, features, c.layers_per_block + 1, None if last else "up", name=f"up_blocks_{i}")(x)
        x = nn.silu(GroupNorm(c.norm_num_groups, EPS, dtype=dtype, name="conv_norm_out")(x))
        return conv(c.out_channels, dtype, "conv_out")(x)


class AutoencoderKL(nn.Module):
    """Encodes images in [-1, 1] to a normal distribution over latents, and decodes latents to images.

    `apply({"params": p}, images, method="encode")` and `apply({"params": p}, latents, method="decode")`.
    """

    config: AutoencoderConfig

    def setup(self) -> None:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        self.encoder, self.decoder = Encoder(c), Decoder(c)
        self.quant_conv = conv(2 * c.latent_channels, dtype, None, 1)
        self.post_quant_conv = conv(c.latent_channels, dtype, None, 1)

    def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, H, W, C] -> mean and log variance [B, h, w, Z], float32 or wider, before scaling.

        Raises UserError unless C is `config.in_channels`, and H and W are multiples of `config.factor`.
        """
        c = self.config
        _, height, width, channels = images.shape
        if channels != c.in_channels:
            what = f"{channels} image channels for an autoencoder with {c.in_channels}"
            raise UserError(what, where="in_channels", todo=f"give {c.in_channels}")
        if height % c.factor or width % c.factor:
            what = f"{height} x {width} px is not divisible by {c.factor}"
            raise UserError(what, where="image", todo=f"use multiples of {c.factor}")
        moments = at_least_float32(self.quant_conv(self.encoder(images)))
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, MIN_LOGVAR, MAX_LOGVAR)

    def decode(self, latents: jax.Array) -> jax.Array:
        """[B, h, w, Z], before scaling -> [B, H, W, C], float32 or wider, about -1 to 1 (not clipped)."""
        return at_least_float32(self.decoder(self.post_quant_conv(latents)))

    def __call__(self, images: jax.Array) -> jax.Array:
        """The images decoded from the mean latents."""
        return self.decode(self.encode(images)[0])


def to_latents(
    mean: jax.Array, logvar: jax.Array, config: AutoencoderConfig, rng: jax.Array | None = None
) -> jax.Array:
    """The latents for the U-Net, [B, h, w, Z] of about unit variance: a draw from the encoder's distribution (its
    mean if rng is None), times the scaling factor."""
    if rng is not None:
        mean = mean + jnp.exp(0.5 * logvar) * jax.random.normal(rng, mean.shape, mean.dtype)
    return mean * config.scaling_factor


def from_latents(latents: jax.Array, config: AutoencoderConfig) -> jax.Array:
    """Undo the scaling of `to_latents`; the result is the input of `decode`."""
    return latents / config.scaling_factor


def init(config: AutoencoderConfig, rng: jax.Array) -> Any:
    """Initial parameters (nested dict); only their shapes under jax.eval_shape."""
    images = jnp.zeros((1, config.factor, config.factor, config.in_channels))
    return draw_params(AutoencoderKL(config), rng, images)
