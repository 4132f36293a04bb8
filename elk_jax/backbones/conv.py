"""The convolution used by every network.

Shapes: B batch, H W C; k kernel size. Kernels are [k, k, C_in, C_out].
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from elk_jax.backbones.ambient import split_by_images
from elk_jax.backbones.norms import Initializer, Norm, param_dtype

he_normal_fan_out: Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""Kaiming normal initialisation by output fan, as in torchvision's ResNets (He et al. 2015)."""

xavier_uniform_fan_in: Initializer = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
"""Uniform with variance 1/fan_in, as in the pyramids of detectron2 and torchvision."""


Padding = Literal["symmetric", "same"]
"""Zeros around a map: k // 2 on each side (PyTorch), or as few as give ceil(size / stride), the odd one behind the map
(TensorFlow's SAME). The maps are equally large; with a stride, other pixels are read."""


BAND, BANDS = 2**17, 32
"""Size of the map of an image above which a CPU computes weight gradients in bands of rows of this size; and at most so
many bands of a map, each of which is compiled."""


def margins(padding: Padding, size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """Zeros before and behind an axis of `size` pixels, for a kernel of odd size."""
    if padding == "symmetric":
        return kernel_size // 2, kernel_size // 2
    total = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
    return total // 2, total - total // 2


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = "symmetric") -> jax.Array:
    """[B, H, W, C_in] -> [B, ceil(H/stride), ceil(W/stride), C_out].

    A 1x1 convolution is computed as a matrix product over every stride-th pixel.
    """
    if kernel.shape[0] == 1:
        return matrix_product(x[:, ::stride, ::stride], kernel[0, 0])
    return split_by_images(_spatial(split_by_images(x), kernel, stride, padding))


def matrix_product(x: jax.Array, kernel: jax.Array, dimension_numbers: Any = None, **options: Any) -> jax.Array:
    """x [..., C_in] times kernel [C_in, C_out] -> [..., C_out]; also the `dot_general` of a dense layer.

    The leading axes are merged: on a CPU, XLA's gradient of the kernel is up to four times faster than with several
    contracted axes.
    """
    rows = split_by_images(x).reshape(-1, x.shape[-1])
    flat = lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), **options)
    return split_by_images(flat.reshape(*x.shape[:-1], kernel.shape[-1]))


def _plain(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, pad_rows: bool = True) -> jax.Array:
    rows, columns = (margins(padding, size, kernel.shape[0], stride) for size in x.shape[1:3])
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=(rows if pad_rows else (0, 0), columns),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _spatial(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """`_plain` with a weight gradient chosen for the platform."""
    return _plain(x, kernel, stride, padding)


def _spatial_forward(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding):
    return _plain(x, kernel, stride, padding), (x, kernel)


def _spatial_backward(stride: int, padding: Padding, saved: tuple[jax.Array, jax.Array], gradient: jax.Array):
    x, kernel = saved
    (of_x,) = jax.linear_transpose(lambda x: _plain(x, kernel, stride, padding), x)(gradient)
    whole = partial(
        weight_gradient,
        like=jax.ShapeDtypeStruct(kernel.shape, kernel.dtype),
        stride=stride,
        rows=gradient.shape[1],
        padding=padding,
    )
    row = max(math.prod(x.shape[2:]), math.prod(gradient.shape[2:]))
    if row * x.shape[1] <= BAND:
        return of_x, whole(x, gradient)
    in_bands = partial(whole, rows=max(BAND // row, -(-gradient.shape[1] // BANDS)))
    return of_x, lax.platform_dependent(x, gradient, cpu=in_bands, default=whole)


def weight_gradient(
    x: jax.Array,
    gradient: jax.Array,
    *,
    like: jax.ShapeDtypeStruct,
    stride: int,
    rows: int,
    padding: Padding = "symmetric",
) -> jax.Array:
    """Gradient of a kernel of the shape of `like` [k, k, C_in, C_out], over bands of `rows` rows of `gradient`.

    gradient: [B, H', W', C_out]. XLA's CPU convolution of two large maps exceeds the caches; bands are two to three
    times faster.
    """
    k, height = like.shape[0], gradient.shape[1]
    if rows >= height:
        return jax.linear_transpose(lambda kernel: _plain(x, kernel, stride, padding), like)(gradient)[0]
    padded = jnp.pad(x, ((0, 0), margins(padding, x.shape[1], k, stride), (0, 0), (0, 0)))
    total = jnp.zeros(like.shape, like.dtype)
    for first in range(0, height, rows):
        some = gradient[:, first : first + rows]
        below = stride * (first + some.shape[1] - 1) + k
        band = padded[:, stride * first : below]
        of_band = jax.linear_transpose(
            lambda kernel, band=band: _plain(band, kernel, stride, padding, pad_rows=False), like
        )
        total += of_band(some)[0]
    return total


_spatial.defvjp(_spatial_forward, _spatial_backward)


class ConvNorm(nn.Module):
    """Convolution, then a norm, or a bias if there is no norm.

    bias: whether there is one, whatever the norm (None: as said). Parameters kernel [k, k, C_in, features], bias
    [features] and norm/*.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    norm: Norm | None = None
    kernel_init: Initializer = he_normal_fan_out
    bias: bool | None = None
    bias_init: Initializer = nn.initializers.zeros
    padding: Padding = "symmetric"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k = self.kernel_size
        kernel = self.param("kernel", self.kernel_init, (k, k, x.shape[-1], self.features), param_dtype(self.dtype))
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.padding)
        return normed(self, y, self.bias, self.bias_init)


def normed(
    layer: Any, y: jax.Array, bias: bool | None = None, bias_init: Initializer = nn.initializers.zeros
) -> jax.Array:
    """`y` [B, H, W, C] behind the norm of a compact `layer` with fields `norm` and `dtype`, or plus its bias.

    bias: whether there is one; None: where there is no norm.
    """
    if layer.norm is None if bias is None else bias:
        values = layer.param("bias", bias_init, (y.shape[-1],), param_dtype(layer.dtype))
        y = y + values.astype(layer.dtype)
    return y if layer.norm is None else layer.norm(dtype=layer.dtype, name="norm")(y)
