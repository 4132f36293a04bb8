"""MCGAN: a generator of patches by class, and a discriminator that sees the class as a second image.

Shapes: B batch, S side of a patch in pixels, Z noise, Q classes. Images are [B, S, S, 1]; a generator's are in
[-1, 1].

Radford et al. 2016 (DCGAN) conditioned on the class, as trained by Osuala et al. 2024 (arXiv:2407.12669): 14,424,144
parameters in the generator for 128 px and 25,944,676 in its discriminator. Kernels are initialised from N(0, 0.02).

Parameters: condition/embedding, condition/kernel, condition/bias, and conv_{1, 2, ...}/kernel from the input on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from elk_jax.backbones.conv import matrix_product
from elk_jax.backbones.initial import draw_params
from elk_jax.backbones.norms import param_dtype
from elk_jax.errors import UserError
from elk_jax.fields import SIDE, AtLeast, Checked
from elk_jax.gan.layers import doubled, halved, instance_norm, pixel_norm, resized, smoothed

Params = Any
NORMAL = nn.initializers.normal(0.02)
TORCH_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Uniform within 1 / sqrt(inputs), as in PyTorch's dense layers."""
LEAST = 4
"""Side of the smallest map."""
NORMS = {"instance": instance_norm, "pixel": pixel_norm, "none": lambda x: x}
SLOPE = 0.1
"""Slope of leaky ReLUs."""


@dataclass(frozen=True)
class GanConfig(Checked):
    """Both networks.

    size: S, a power of two. classes: Q; 1: unconditional. noise: Z. embedding: size of a class embedding before its
    dense layer. generator_width, discriminator_width: channels of their largest maps. discriminator_kernel: 6, unlike
    the generator's 4, or 4. upsampling: `transposed` convolutions, as published; or `resize`: every pixel is repeated
    2 x 2 before a 3 x 3 convolution, and the finished image is smoothed by (1, 2, 1) / 4, so that neither causes a
    checkerboard. generator_norm, discriminator_norm: for every map except images and the discriminator's first:
    `instance` normalisation without parameters, as published, which hides the brightness and contrast of a patch from
    the discriminator and fixes them in the generator; `pixel` normalisation; or `none`.
    """

    size: Annotated[int, SIDE] = 128
    classes: Annotated[int, AtLeast(1)] = 2
    noise: Annotated[int, AtLeast(1)] = 100
    embedding: Annotated[int, AtLeast(1)] = 50
    generator_width: Annotated[int, AtLeast(1)] = 64
    discriminator_width: Annotated[int, AtLeast(1)] = 64
    discriminator_kernel: Literal[4, 6] = 6
    upsampling: Literal["transposed", "resize"] = "transposed"
    generator_norm: Literal["instance", "pixel", "none"] = "instance"
    discriminator_norm: Literal["instance", "pixel", "none"] = "instance"
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 2 * LEAST or self.size & (self.size - 1):
            todo = f"give a power of two from {2 * LEAST}: 32, 64, 128, 256"
            raise UserError(f"patches of {self.size} px", where="size", todo=todo)

    @property
    def doublings(self) -> int:
        """Number of doublings from the smallest map to the image."""
        return (self.size // LEAST).bit_length() - 1


def init_generator(config: GanConfig, rng: jax.Array) -> Params:
    """Fresh parameters."""
    noise, label = jnp.zeros((1, config.noise)), jnp.zeros((1,), jnp.int32)
    return draw_params(_Generator(config), rng, noise, label)


def generate(config: GanConfig, params: Params, noise: jax.Array, label: jax.Array) -> jax.Array:
    """Patches [B, S, S, 1] in [-1, 1] from noise [B, Z] and classes [B]."""
    return cast(jax.Array, _Generator(config).apply({"params": params}, noise, label))


def init_discriminator(config: GanConfig, rng: jax.Array) -> Params:
    """Fresh parameters."""
    image, label = jnp.zeros((1, config.size, config.size, 1)), jnp.zeros((1,), jnp.int32)
    return draw_params(_Discriminator(config), rng, image, label)


def discriminate(config: GanConfig, params: Params, image: jax.Array, label: jax.Array) -> jax.Array:
    """Log odds [B] that patches [B, S, S, 1] of these classes [B] are real; for other objectives a score."""
    return cast(jax.Array, _Discriminator(config).apply({"params": params}, image, label))


def noise_of(config: GanConfig, key: jax.Array, count: int) -> jax.Array:
    """Noise [count, Z] from N(0, 1)."""
    return jax.random.normal(key, (count, config.noise))


def to_range(image: jax.Array) -> jax.Array:
    """Grey values from [0, 1] to the generator's range."""
    return 2 * image - 1


def to_grey(image: jax.Array) -> jax.Array:
    """Back to [0, 1]."""
    return jnp.clip((image + 1) / 2, 0, 1)


class _Condition(nn.Module):
    """Classes [B] -> [B, features]: an embedding, a dense layer, a leaky ReLU."""

    classes: int
    embedding: int
    features: int

    @nn.compact
    def __call__(self, label: jax.Array) -> jax.Array:
        table = self.param("embedding", nn.initializers.normal(1.0), (self.classes, self.embedding))
        kernel = self.param("kernel", TORCH_UNIFORM, (self.embedding, self.features))
        bound = self.embedding**-0.5  # in PyTorch, the bias of a dense layer is initialised like its kernel
        draw_bias = lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        bias = self.param("bias", draw_bias, (self.features,))
        chosen = jax.nn.one_hot(label, self.classes) @ table
        return nn.leaky_relu(matrix_product(chosen, kernel) + bias, SLOPE)


class _Kernel(nn.Module):
    """The kernel of a convolution."""

    size: int
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, channels: int) -> jax.Array:
        shape = (self.size, self.size, channels, self.features)
        return self.param("kernel", NORMAL, shape, param_dtype(self.dtype)).astype(self.dtype)


class _Generator(nn.Module):
    config: GanConfig

    @nn.compact
    def __call__(self, noise: jax.Array, label: jax.Array) -> jax.Array:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        steps = config.doublings
        kernel = lambda number, size, features: _Kernel(size, features, dtype, name=f"conv_{number}")
        if config.classes > 1:
            condition = _Condition(config.classes, config.embedding, config.noise, name="condition")(label)
            noise = jnp.concatenate([condition, noise], axis=-1)
        width = config.generator_width * 2 ** (steps - 1)
        first = kernel(1, LEAST, width)(noise.shape[-1])
        spread = matrix_product(noise.astype(dtype), first.transpose(2, 0, 1, 3).reshape(noise.shape[-1], -1))
        x = spread.reshape(len(noise), LEAST, LEAST, width)
        enlarge, side = (doubled, 4) if config.upsampling == "transposed" else (resized, 3)
        for number in range(2, steps + 2):
            x = nn.relu(NORMS[config.generator_norm](x))
            width = width // 2 if number <= steps else 1
            x = enlarge(x, kernel(number, side, width)(x.shape[-1]))
        image = jnp.tanh(x.astype(param_dtype(dtype)))
        return image if config.upsampling == "transposed" else smoothed(image)


class _Discriminator(nn.Module):
    config: GanConfig

    @nn.compact
    def __call__(self, image: jax.Array, label: jax.Array) -> jax.Array:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        kernel = lambda number, features: _Kernel(config.discriminator_kernel, features, dtype, name=f"conv_{number}")
        x = image
        if config.classes > 1:
            condition = _Condition(config.classes, config.embedding, config.size**2, name="condition")(label)
            x = jnp.concatenate([image, condition.reshape(image.shape)], axis=-1)
        x, width = x.astype(dtype), config.discriminator_width
        for number in range(1, config.doublings + 1):
            x = halved(x, kernel(number, width)(x.shape[-1]))
            x = nn.leaky_relu(NORMS[config.discriminator_norm](x) if number > 1 else x, SLOPE)
            width *= 2
        # the last kernel covers the map and, if it is larger, the zeros around it
        margin = (config.discriminator_kernel - LEAST) // 2
        last = kernel(config.doublings + 1, 1)(x.shape[-1])[margin : margin + LEAST, margin : margin + LEAST]
        return matrix_product(x.reshape(len(x), -1), last.reshape(-1, 1))[:, 0].astype(param_dtype(dtype))
