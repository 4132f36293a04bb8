"""The convolution that every network here is made of.

Shapes: B batch, H W C; k kernel size. Kernels are [k, k, C_in, C_out].
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from elk_jax.backbones.norms import Initializer, Norm, param_dtype

he_normal_fan_out: Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""Kaiming normal initialisation by output fan, as torchvision's ResNets (He et al. 2015)."""

xavier_uniform_fan_in: Initializer = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
"""Uniform with variance 1/fan_in, as detectron2 and torchvision start their pyramids."""


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """[B, H, W, C_in] -> [B, ceil(H/stride), ceil(W/stride), C_out], padded as by PyTorch: k // 2 zeros a side.

    A 1x1 convolution is a matrix product over the pixels that the stride leaves, and is written as one: on CPU
    its weight gradient is two to four times faster so.
    """
    k = kernel.shape[0]
    if k == 1:
        return lax.dot_general(x[:, ::stride, ::stride], kernel[0, 0], (((3,), (0,)), ((), ())))
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((k // 2, k // 2), (k // 2, k // 2)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


class ConvNorm(nn.Module):
    """Convolution with PyTorch's padding (kernel // 2 on each side), then a norm; without norm a bias.

    Parameters kernel [k, k, C_in, features], and bias [features] or norm/*.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    norm: Norm | None = None
    kernel_init: Initializer = he_normal_fan_out
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k, kept = self.kernel_size, param_dtype(self.dtype)
        kernel = self.param("kernel", self.kernel_init, (k, k, x.shape[-1], self.features), kept)
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
        if self.norm is None:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), kept)
            return y + bias.astype(self.dtype)
        return self.norm(dtype=self.dtype, name="norm")(y)
