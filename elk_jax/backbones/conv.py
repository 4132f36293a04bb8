"""The convolution used by every network.

Shapes: B batch, H W C; k kernel size. Kernels are [k, k, C_in, C_out].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
"""Zeros around a map: k // 2 on each side (PyTorch), or as few as give ceil(size / stride), the odd one after the map
(TensorFlow's SAME). The maps have equal sizes; with a stride, different pixels are read."""


Edges = tuple[tuple[int, int], tuple[int, int]]
"""Zeros above and below a map, and left and right of it."""
NO_EDGES: Edges = ((0, 0), (0, 0))

LAYOUT = ("NHWC", "HWIO", "NHWC")
"""Of maps, kernels and results."""

BAND, BANDS = 2**17, 32
"""Size of an image's map above which a CPU computes weight gradients in bands of rows of this size; and the most bands
of a map, each of which is compiled."""


def margins(padding: Padding, size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis of `size` pixels, for a kernel of odd size."""
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
    rows, columns = (margins(padding, size, kernel.shape[0], stride) for size in x.shape[1:3])
    return convolve_within(x, kernel, stride, (rows, columns))


def convolve_within(x: jax.Array, kernel: jax.Array, stride: int = 1, edges: Edges = NO_EDGES) -> jax.Array:
    """`convolve` with these zeros around the map. Gradients are computed in the way that is fastest on the platform."""
    return split_by_images(_spatial(split_by_images(x), kernel, stride, edges))


def matrix_product(x: jax.Array, kernel: jax.Array, dimension_numbers: Any = None, **options: Any) -> jax.Array:
    """x [..., C_in] times kernel [C_in, C_out] -> [..., C_out]; also the `dot_general` of a dense layer.

    The leading axes are merged: on a CPU, XLA's gradient of the kernel is up to four times faster than with several
    contracted axes.
    """
    rows = split_by_images(x).reshape(-1, x.shape[-1])
    flat = lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), **options)
    return split_by_images(flat.reshape(*x.shape[:-1], kernel.shape[-1]))


def _plain(x: jax.Array, kernel: jax.Array, stride: int, edges: Edges) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (stride, stride), edges, dimension_numbers=LAYOUT)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _spatial(x: jax.Array, kernel: jax.Array, stride: int, edges: Edges) -> jax.Array:
    """`_plain` with gradients chosen for the platform."""
    return _plain(x, kernel, stride, edges)


def _spatial_forward(x: jax.Array, kernel: jax.Array, stride: int, edges: Edges):
    return _plain(x, kernel, stride, edges), (x, kernel)


def _spatial_backward(stride: int, edges: Edges, saved: tuple[jax.Array, jax.Array], gradient: jax.Array):
    forms = {"cpu": gradients_in_plain_layout, "default": transposed_gradients}
    chosen = {name: partial(form, stride=stride, edges=edges) for name, form in forms.items()}
    return lax.platform_dependent(*saved, gradient, **chosen)


_spatial.defvjp(_spatial_forward, _spatial_backward)


def transposed_gradients(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, *, stride: int, edges: Edges
) -> tuple[jax.Array, jax.Array]:
    """Gradients of the map and of the kernel, as JAX derives them."""
    (of_x,) = jax.linear_transpose(lambda x: _plain(x, kernel, stride, edges), x)(gradient)
    (of_kernel,) = jax.linear_transpose(lambda kernel: _plain(x, kernel, stride, edges), kernel)(gradient)
    return of_x, of_kernel


def gradients_in_plain_layout(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, *, stride: int, edges: Edges
) -> tuple[jax.Array, jax.Array]:
    """`transposed_gradients`, both as convolutions of maps [B, H, W, C] with kernels [k, k, C_in, C_out].

    XLA's CPU convolution is fast only in this layout. It converts other layouts, except in the body of a loop, where
    they are up to 20 times slower.
    """
    row, height = max(math.prod(x.shape[2:]), math.prod(gradient.shape[2:])), gradient.shape[1]
    rows = height if row * x.shape[1] <= BAND else max(BAND // row, -(-height // BANDS))
    of_kernel = weight_gradient(x, gradient, kernel.shape[0], stride=stride, edges=edges, rows=rows)
    return map_gradient(kernel, gradient, x.shape[1:3], stride=stride, edges=edges), of_kernel


def map_gradient(
    kernel: jax.Array, gradient: jax.Array, size: Sequence[int], *, stride: int, edges: Edges
) -> jax.Array:
    """Gradient of a map of `size` H, W: a spread `gradient` [B, H', W', C_out], convolved with the turned kernel."""
    k = kernel.shape[0]
    before = [k - 1 - first for first, _ in edges]
    behind = [
        pixels + k - 1 - start - (stride * (given - 1) + 1)
        for pixels, start, given in zip(size, before, gradient.shape[1:3], strict=True)
    ]
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    return lax.conv_general_dilated(
        gradient,
        turned,
        (1, 1),
        tuple(zip(before, behind)),
        lhs_dilation=(stride, stride),
        dimension_numbers=LAYOUT,
    )


def weight_gradient(
    x: jax.Array, gradient: jax.Array, kernel_size: int, *, stride: int, edges: Edges, rows: int
) -> jax.Array:
    """Gradient of a kernel [k, k, C_in, C_out], a sum over bands of `rows` rows of `gradient` [B, H', W', C_out].

    This is the convolution of the map with a spread gradient, for which images and channels are exchanged. Two large
    maps exceed the caches of a CPU; bands are two to three times faster.
    """
    (above, _), (left, _) = edges
    height, width = gradient.shape[1:3]
    right = stride * (width - 1) + kernel_size - x.shape[2] - left
    images_last = x.transpose(3, 1, 2, 0)
    total = jnp.zeros((), x.dtype)
    for first in range(0, height, rows):
        band = gradient[:, first : first + rows].transpose(1, 2, 0, 3)
        start = stride * first - above
        end = start + stride * (len(band) - 1) + kernel_size
        top, bottom = max(start, 0), min(end, x.shape[1])  # the rows that the map has of those that the band sees
        total += lax.conv_general_dilated(
            images_last[:, top:bottom],
            band,
            (1, 1),
            ((top - start, end - bottom), (left, right)),
            rhs_dilation=(stride, stride),
            dimension_numbers=LAYOUT,
        )
    return total.transpose(1, 2, 0, 3)


class ConvNorm(nn.Module):
    """Convolution, then a norm, or a bias if there is no norm.

    bias: whether there is one, whatever the norm (None: only without norm). Parameters kernel [k, k, C_in, features],
    bias [features] and norm/*.
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
    """`y` [B, H, W, C] after the norm of a compact `layer` with fields `norm` and `dtype`, or plus its bias.

    bias: whether there is one; None: if there is no norm.
    """
    if layer.norm is None if bias is None else bias:
        values = layer.param("bias", bias_init, (y.shape[-1],), param_dtype(layer.dtype))
        y = y + values.astype(layer.dtype)
    return y if layer.norm is None else layer.norm(dtype=layer.dtype, name="norm")(y)
