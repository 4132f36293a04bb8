"""Convolutions that halve and double maps, as generators and discriminators use them.

Shapes: B batch, H W a map, C channels, k the kernel's size. Kernels are [k, k, C_in, C_out].

Each is computed on maps of half the side with four times the channels, where it and its gradients are dense
convolutions with stride 1. The gradient of a convolution with stride 2 spreads its input with zeros, so that three
quarters of a CPU's multiplications would be with zeros. Other devices skip these zeros; there the rearranged kernels of
a discriminator, which are larger than its maps, would only be moved, so that its convolutions have stride 2.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from elk_jax.backbones.conv import convolve_within
from elk_jax.precision import at_least_float32

SUMS = (((1, 0, 0), (1, 1, 0)), ((0, 1, 1), (0, 0, 1)))
"""[2, 2, 3], for a pixel of the small map and an even or odd pixel of the large one: which of three weights are
added."""


@jax.custom_vjp
def halved(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution of stride 2 with k / 2 - 1 zeros around the map: [B, H, W, C_in] -> [B, H/2, W/2, C_out].

    k, H and W are even. Equals PyTorch's Conv2d(k, stride 2, padding k / 2 - 1).
    """
    return lax.platform_dependent(x, kernel, cpu=halved_of_depth, default=halved_by_strides)


def _halved_forward(x: jax.Array, kernel: jax.Array):
    return halved(x, kernel), (x, kernel)


def _halved_backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array):
    def of(form: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[..., tuple[jax.Array, jax.Array]]:
        return lambda x, kernel, gradient: jax.vjp(form, x, kernel)[1](gradient)

    forms = {"cpu": of(halved_of_depth), "default": of(halved_by_strides)}
    return lax.platform_dependent(*saved, gradient, **forms)


halved.defvjp(_halved_forward, _halved_backward)


def halved_by_strides(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`halved`, as a convolution of stride 2."""
    margin = len(kernel) // 2 - 1
    return convolve_within(x, kernel, 2, ((margin, margin), (margin, margin)))


def halved_of_depth(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`halved`, on maps of half the side."""
    k, _, channels, features = kernel.shape
    half, margin = k // 2, k // 2 - 1
    x = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    folded = kernel.reshape(half, 2, half, 2, channels, features).transpose(0, 2, 1, 3, 4, 5)
    return convolve_within(space_to_depth(x), folded.reshape(half, half, 4 * channels, features))


def doubled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed 4 x 4 convolution with stride 2: [B, H, W, C_in] -> [B, 2H, 2W, C_out].

    Equals PyTorch's ConvTranspose2d(4, stride 2, padding 1). Pixel 2q + p of a row is a sum over two pixels of the
    input, q + p - 1 + t, t = 0 and 1, with the kernel's row 3 - 2t - p.
    """
    phases = kernel[::-1, ::-1].reshape(2, 2, 2, 2, *kernel.shape[2:])
    return _phases(x, phases)


def resized(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Every pixel repeated 2 x 2, then a 3 x 3 convolution: [B, H, W, C_in] -> [B, 2H, 2W, C_out].

    All pixels of the output see the same kernel (Odena et al. 2016, resize-convolution). Two of three pixels of the
    large map belong to one pixel of the small one, so their weights are added first.
    """
    sums = jnp.asarray(SUMS, kernel.dtype)
    return _phases(x, jnp.einsum("tpk,uql,klio->tpuqio", sums, sums, kernel))


def instance_norm(x: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    """Every channel of every image with mean 0 and variance 1, without parameters (Ulyanov et al. 2016).

    Statistics are in float32 or wider.
    """
    wide = at_least_float32(x)
    centred = wide - wide.mean(axis=(1, 2), keepdims=True)
    normal = centred * lax.rsqrt(jnp.square(centred).mean(axis=(1, 2), keepdims=True) + epsilon)
    return normal.astype(x.dtype)


def pixel_norm(x: jax.Array, epsilon: float = 1e-8) -> jax.Array:
    """The channels of every pixel with a mean square of 1 (Karras et al. 2018)."""
    wide = at_least_float32(x)
    return (wide * lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + epsilon)).astype(x.dtype)


def smoothed(x: jax.Array) -> jax.Array:
    """Each pixel averaged with its neighbours by (1, 2, 1) / 4 along both axes, which removes waves of two pixels.

    Border pixels are repeated beyond the border.
    """
    for axis in (1, 2):
        margins = [(1, 1) if one == axis else (0, 0) for one in range(x.ndim)]
        wide = jnp.pad(x, margins, mode="edge")
        size = x.shape[axis]
        before, own, behind = (lax.slice_in_dim(wide, start, start + size, axis=axis) for start in range(3))
        x = (before + 2 * own + behind) / 4
    return x


def space_to_depth(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H/2, W/2, 4C]: the channels of 2 x 2 pixels, row by row."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, 4 * c)


def _phases(x: jax.Array, kernels: jax.Array) -> jax.Array:
    """[B, 2H, 2W, C_out] of x [B, H, W, C_in] and kernels [2, 2, 2, 2, C_in, C_out]: row of the input and of the phase,
    then column of both."""
    b, h, w, channels = x.shape
    features = kernels.shape[-1]
    kernel = kernels.transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, channels, 4 * features)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    found = convolve_within(padded, kernel).reshape(b, h + 1, w + 1, 2, 2, features)
    rows = [
        jnp.stack([found[:, p : p + h, q : q + w, p, q] for q in (0, 1)], axis=3).reshape(b, h, 2 * w, features)
        for p in (0, 1)
    ]
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, features)
