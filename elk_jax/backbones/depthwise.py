"""Depthwise convolution: each channel has its own kernel.

Shapes: B batch, H W C; k kernel size. Kernels are [k, k, 1, C].

On a CPU, XLA's grouped convolution is 5 to 30 times slower than sums of shifted maps, and its gradient 10 to 100 times.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from elk_jax.backbones.ambient import split_by_images
from elk_jax.backbones.conv import ConvNorm, Padding, margins, normed
from elk_jax.backbones.norms import Initializer, Norm, param_dtype
from elk_jax.precision import at_least_float32

he_normal_per_channel: Initializer = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
"""Kaiming normal by the k * k weights of a channel's kernel, its fan on both sides."""


def convolve_depthwise(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = "symmetric") -> jax.Array:
    """[B, H, W, C] and [k, k, 1, C] -> [B, ceil(H/stride), ceil(W/stride), C]."""
    return split_by_images(_depthwise(split_by_images(x), kernel, stride, padding))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    forms = {"cpu": shifted, "default": grouped}
    chosen = {name: partial(form, stride=stride, padding=padding) for name, form in forms.items()}
    return lax.platform_dependent(x, kernel, **chosen)


def _forward(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding):
    return _depthwise(x, kernel, stride, padding), (x, kernel)


def _backward(stride: int, padding: Padding, saved: tuple[jax.Array, jax.Array], gradient: jax.Array):
    forms = {"cpu": shifted_gradients, "default": grouped_gradients}
    chosen = {name: partial(form, stride=stride, padding=padding) for name, form in forms.items()}
    return lax.platform_dependent(*saved, gradient, **chosen)


_depthwise.defvjp(_forward, _backward)


def grouped(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """As a convolution of C groups."""
    rows, columns = (margins(padding, size, kernel.shape[0], stride) for size in x.shape[1:3])
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=(rows, columns),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def grouped_gradients(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, stride: int, padding: Padding
) -> tuple[jax.Array, jax.Array]:
    """Gradients of the map and of the kernel."""
    pull = jax.vjp(partial(grouped, stride=stride, padding=padding), x, kernel)[1]
    of_x, of_kernel = pull(gradient)
    return of_x, of_kernel


def shifted(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """As a sum of k * k shifted maps."""
    height, width = (-(-size // stride) for size in x.shape[1:3])
    return _slide(_padded(x, kernel.shape[0], stride, padding), kernel, stride, height, width).astype(x.dtype)


def shifted_gradients(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, stride: int, padding: Padding
) -> tuple[jax.Array, jax.Array]:
    """Gradients of the map, a sum of shifted gradients, and of the kernel, summed row by row.

    The kernel's is a sum over rows of products that keep batch and columns, and is reduced at the end: XLA's CPU
    reductions to the last axis are 10 to 20 times slower. Each row of the kernel is a turn of one loop, since the
    time of the compiler grows with the number of products that are written out.
    """
    k, wide = kernel.shape[0], at_least_float32(gradient)
    edges = []
    for size, given in zip(x.shape[1:3], gradient.shape[1:3], strict=True):
        before = k - 1 - margins(padding, size, k, stride)[0]
        edges.append((before, size + k - 1 - before - ((given - 1) * stride + 1), stride - 1))
    spread = lax.pad(wide, jnp.zeros((), wide.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    of_x = _slide(spread, kernel[::-1, ::-1], 1, *x.shape[1:3])

    padded = _padded(x, k, stride, padding)
    span = stride * (gradient.shape[2] - 1) + 1

    def of_kernel_row(down: jax.Array) -> jax.Array:
        def add_row(totals: tuple[jax.Array, ...], row: jax.Array):
            under = lax.dynamic_index_in_dim(padded, stride * row + down, axis=1, keepdims=False)
            of_row = lax.dynamic_index_in_dim(wide, row, axis=1, keepdims=False)
            read = (lax.slice_in_dim(under, across, across + span, stride, axis=1) for across in range(k))
            return tuple(total + tap * of_row for total, tap in zip(totals, read, strict=True)), None

        zero = jnp.zeros_like(wide[:, 0])
        totals, _ = lax.scan(add_row, (zero,) * k, jnp.arange(gradient.shape[1]))
        return jnp.stack([total.sum((0, 1)) for total in totals])

    of_kernel = lax.map(of_kernel_row, jnp.arange(k)).reshape(kernel.shape)
    return of_x.astype(x.dtype), of_kernel.astype(kernel.dtype)


def _padded(x: jax.Array, kernel_size: int, stride: int, padding: Padding) -> jax.Array:
    rows, columns = (margins(padding, size, kernel_size, stride) for size in x.shape[1:3])
    return jnp.pad(at_least_float32(x), ((0, 0), rows, columns, (0, 0)))


def _slide(padded: jax.Array, kernel: jax.Array, stride: int, height: int, width: int) -> jax.Array:
    """The `height` x `width` sums of a kernel that slides over a padded map [B, H, W, C]."""
    weights = at_least_float32(kernel).reshape(-1, kernel.shape[-1])
    total = jnp.zeros((), padded.dtype)
    for number, (row, column) in enumerate(_taps(kernel.shape[0])):
        along_rows = lax.slice_in_dim(padded, row, row + stride * (height - 1) + 1, stride, axis=1)
        tap = lax.slice_in_dim(along_rows, column, column + stride * (width - 1) + 1, stride, axis=2)
        total += tap * lax.index_in_dim(weights, number, keepdims=False)
    return total


def _taps(kernel_size: int) -> list[tuple[int, int]]:
    return [(row, column) for row in range(kernel_size) for column in range(kernel_size)]


class DepthwiseConvNorm(nn.Module):
    """Depthwise convolution, then a norm, or a bias if there is no norm: [B, H, W, C] -> [B, H/stride, W/stride, C].

    Parameters kernel [k, k, 1, C], and bias [C] or norm/*.
    """

    kernel_size: int = 3
    stride: int = 1
    norm: Norm | None = None
    kernel_init: Initializer = he_normal_per_channel
    padding: Padding = "symmetric"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k = self.kernel_size
        kernel = self.param("kernel", self.kernel_init, (k, k, 1, x.shape[-1]), param_dtype(self.dtype))
        y = convolve_depthwise(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.padding)
        return normed(self, y)


class SeparableConv(nn.Module):
    """A depthwise 3x3 convolution without bias and a 1x1 convolution, then a norm: [B, H, W, C] -> [B, H, W, features].

    bias: of the 1x1 convolution, as in `ConvNorm`. Parameters depthwise [3, 3, 1, C], pointwise/kernel, /bias, /norm.
    """

    features: int
    norm: Norm | None = None
    bias: bool | None = None
    bias_init: Initializer = nn.initializers.zeros
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    padding: Padding = "symmetric"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("depthwise", self.kernel_init, (3, 3, 1, x.shape[-1]), param_dtype(self.dtype))
        x = convolve_depthwise(x.astype(self.dtype), kernel.astype(self.dtype), padding=self.padding)
        pointwise = ConvNorm(
            self.features,
            1,
            norm=self.norm,
            kernel_init=self.kernel_init,
            bias=self.bias,
            bias_init=self.bias_init,
            dtype=self.dtype,
            name="pointwise",
        )
        return pointwise(x)
