"""Layers shared by the U-Net and the autoencoder. Parameters have diffusers' names.

Shapes: B batch, H W C. Kernels are [k, k, C_in, C_out]; dense layers [C_in, C_out]. Parameters are float32 (or wider),
compute is in `dtype`, statistics of norms are float32 or wider.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from elk_jax.backbones.conv import ConvNorm, Padding, matrix_product
from elk_jax.backbones.norms import GroupNorm, param_dtype

lecun_normal = nn.initializers.lecun_normal()
zeros = nn.initializers.zeros
"""Initialises the last layer of a residual branch or of the network, so that the untrained branch is the identity
(Ho et al. 2020, Dhariwal & Nichol 2021)."""


def conv(
    features: int,
    dtype: Any,
    name: str | None,
    kernel_size: int = 3,
    kernel_init: Any = lecun_normal,
    stride: int = 1,
    padding: Padding = "symmetric",
) -> ConvNorm:
    """A convolution that divides height and width by `stride`: kernel, bias. name None: the attribute in `setup`."""
    return ConvNorm(features, kernel_size, stride, kernel_init=kernel_init, padding=padding, dtype=dtype, name=name)


def dense(features: int, dtype: Any, name: str, bias: bool = True, kernel_init: Any = lecun_normal) -> nn.Dense:
    """A dense layer over the last axis: kernel, bias."""
    return nn.Dense(
        features,
        use_bias=bias,
        dtype=dtype,
        param_dtype=param_dtype(dtype),
        kernel_init=kernel_init,
        dot_general=matrix_product,
        name=name,
    )


def layer_norm(dtype: Any, name: str, eps: float = 1e-5) -> nn.LayerNorm:
    """Layer normalisation over the last axis: scale, bias. Statistics in float32 or wider."""
    return nn.LayerNorm(eps, dtype=dtype, param_dtype=param_dtype(dtype), use_fast_variance=False, name=name)


class ResnetBlock(nn.Module):
    """Norm, SiLU and convolution, twice, beside a shortcut: x [B, H, W, C_in], time [B, D] -> [B, H, W, features].

    Parameters norm1, conv1, norm2, conv2; time_emb_proj where `time` is given; conv_shortcut where C_in differs.
    """

    features: int
    groups: int
    eps: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array | None = None) -> jax.Array:
        norm = partial(GroupNorm, self.groups, self.eps, dtype=self.dtype)
        y = conv(self.features, self.dtype, "conv1")(nn.silu(norm(name="norm1")(x)))
        if time is not None:
            y += dense(self.features, self.dtype, "time_emb_proj")(nn.silu(time))[:, None, None]
        y = nn.silu(norm(name="norm2")(y))
        y = conv(self.features, self.dtype, "conv2", kernel_init=zeros)(y)
        if x.shape[-1] != self.features:
            x = conv(self.features, self.dtype, "conv_shortcut", kernel_size=1)(x)
        return x + y


class Downsample(nn.Module):
    """3x3 convolution of stride 2: [B, H, W, C] -> [B, H/2, W/2, C], for even H and W.

    padding: "symmetric" in the U-Net, "same" in the autoencoder.
    """

    padding: Padding
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return conv(x.shape[-1], self.dtype, "conv", stride=2, padding=self.padding)(x)


class Upsample(nn.Module):
    """Every pixel doubled in both directions, then a 3x3 convolution: [B, H, W, C] -> [B, 2H, 2W, C]."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, features = x.shape
        doubled = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, features))
        return conv(features, self.dtype, "conv")(doubled.reshape(batch, 2 * height, 2 * width, features))
