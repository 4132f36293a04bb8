"""Patches by class from noise: a U-Net that denoises blocks of pixels, conditioned on the class of the patch.

Shapes: B batch, S side of a patch, p side of a block of pixels, h = S / p, Q classes, E channels of a class.

A block of p x p pixels becomes one position of the U-Net with p^2 channels, its cosine waves, each divided by its
standard deviation over real patches: nothing is lost, and all channels are about 1. Pixels are not: the finest waves of
a mammogram are hundreds of times smaller than its shades, so that noise hides them in nearly every time step, and the
noise that remains at the end is larger than they are.

The class is a one-word text for the U-Net, whose attention adds its information. One more class means none: it is
learned from examples whose class is hidden, and guidance leads away from it.

Parameters: a dict with `unet` and `classes` [Q + 1, E].
References: Ho et al. 2020, arXiv 2006.11239; Salimans and Ho 2022, arXiv 2202.00512 (v); Hang et al. 2023, arXiv
2303.09556 (min-SNR weights); Ho and Salimans 2022, arXiv 2207.12598 (guidance).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.diffusion import losses, schedule, unet
from elk_jax.diffusion.inpainter import from_patches, to_patches
from elk_jax.diffusion.samplers import SamplerConfig, classifier_free, sample
from elk_jax.diffusion.schedule import Schedule
from elk_jax.diffusion.unet import UNet2DCondition, UNetConfig
from elk_jax.errors import UserError
from elk_jax.fields import ABOVE_ZERO, SHARE, SIDE, AtLeast, check

Params = Any

EMBEDDING = "classes"


@dataclass(frozen=True)
class Strengths:
    """Strength of waves in real patches. mean: grey value. deviations: of the p^2 waves of a block (`waves`)."""

    mean: Annotated[float, SHARE]
    deviations: tuple[Annotated[float, ABOVE_ZERO], ...]

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class DenoiserConfig:
    """The parts of a model. size: S. patch: p. classes: Q."""

    unet: UNetConfig
    strengths: Strengths
    size: Annotated[int, SIDE] = 128
    patch: Annotated[int, SIDE] = 4
    classes: Annotated[int, AtLeast(1)] = 2

    def __post_init__(self) -> None:
        check(self)
        step = self.patch * self.unet.factor
        if self.size % step:
            raise UserError(f"size is {self.size}", where="size", todo=f"use a multiple of {step}")
        depth = self.patch**2
        for name in ("in_channels", "out_channels"):
            given = getattr(self.unet, name)
            if given != depth:
                what = f"the U-Net has {given} {name.replace('_', ' ')}, but blocks of {self.patch} px have {depth}"
                raise UserError(what, where=f"unet.{name}", todo=f"use {depth}")
        given = len(self.strengths.deviations)
        if given != depth:
            raise UserError(f"{given} deviations for {depth} waves", where="strengths.deviations", todo=f"give {depth}")
        if self.unet.cross_attention_dim is None:
            what = "the U-Net takes no text, so it cannot be given the class"
            raise UserError(what, where="unet.cross_attention_dim", todo="give a number of channels")


def init(config: DenoiserConfig, rng: jax.Array) -> Params:
    """Initial parameters; only their shapes under jax.eval_shape."""
    of_unet, of_classes = jax.random.split(rng)
    shape = (config.classes + 1, config.unet.cross_attention_dim or 0)
    return {"unet": unet.init(config.unet, of_unet), EMBEDDING: jax.random.normal(of_classes, shape)}


def loss(
    config: DenoiserConfig,
    params: Params,
    batch: Mapping[str, jax.Array],
    rng: jax.Array,
    noise: Schedule,
    gamma: float = 0.0,
    hidden: float = 0.1,
) -> jax.Array:
    """The loss of a batch: `image` [B, S, S, 1] in [0, 1], `label` [B], `valid` [B].

    gamma: of the weights by signal-to-noise ratio, 0 for none. With a schedule that ends in pure noise, the last time
    steps, where drawing starts, then have hardly any weight. hidden: share of examples whose class is hidden from the
    network.
    """
    of_time, of_noise, of_class = jax.random.split(rng, 3)
    valid = batch["valid"]
    image = jnp.where(valid[:, None, None, None], batch["image"], 0)  # no gradient of padding, even of NaN
    x0 = waves(image - config.strengths.mean, config.patch) / jnp.asarray(config.strengths.deviations, image.dtype)
    t = jax.random.randint(of_time, x0.shape[:1], 0, noise.steps)
    drawn = losses.draw_noise(of_noise, x0.shape, dtype=x0.dtype.type)
    label = jnp.where(jax.random.bernoulli(of_class, hidden, t.shape), config.classes, batch["label"])
    output = _denoise(config, params, schedule.add_noise(noise, x0, drawn, t), t, label)
    weight = losses.min_snr_weight(noise, t, gamma) if gamma else None
    target = schedule.target(noise, x0, drawn, t)
    return losses.denoising_loss(output, target, weight=weight, valid=valid)[0]


def generate(
    config: DenoiserConfig,
    params: Params,
    label: jax.Array,
    keys: jax.Array,
    noise: Schedule,
    sampler: SamplerConfig,
    guidance: float = 1.0,
) -> jax.Array:
    """Patches [B, S, S, 1] in [0, 1] of the classes `label` [B], each a function of its key [B].

    guidance: strength of the guidance away from patches without class; 1 for none.
    """
    denoise = classifier_free(
        lambda x, t, told: _denoise(config, params, x, t, told),
        label,
        jnp.full_like(label, config.classes),
        guidance,
    )
    side = config.size // config.patch
    found = sample(denoise, noise, sampler, (len(label), side, side, config.patch**2), keys)
    image = pixels(found * jnp.asarray(config.strengths.deviations, found.dtype), config.patch)
    return jnp.clip(image + config.strengths.mean, 0, 1)


def waves(image: jax.Array, patch: int) -> jax.Array:
    """[B, S, S, 1] -> [B, h, h, p p]: the orthonormal cosine transform of every block.

    Channel (i, j) = i p + j has i half-waves down the block, and j across it. It is computed in full precision, since
    the finest waves are hundreds of times smaller than the first.
    """
    return jnp.matmul(to_patches(image, patch), basis(patch).astype(image.dtype), precision="highest")


def pixels(found: jax.Array, patch: int) -> jax.Array:
    """Inverse of `waves`."""
    return from_patches(jnp.matmul(found, basis(patch).T.astype(found.dtype), precision="highest"), patch)


def basis(patch: int) -> np.ndarray:
    """[p p, p p] float64: a column for each wave of a block."""
    places = np.arange(patch)
    length = np.where(places == 0, 1 / patch, 2 / patch)
    rows: np.ndarray = np.cos(np.pi / patch * np.outer(places, places + 0.5)) * np.sqrt(length[:, np.newaxis])
    return np.einsum("iy,jx->yxij", rows, rows).reshape(patch**2, patch**2)


def _denoise(config: DenoiserConfig, params: Params, x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
    """The output of the U-Net for noisy blocks [B, h, h, p p] of the classes `label` [B]; Q: of none."""
    told = params[EMBEDDING][label][:, None]
    found: Any = UNet2DCondition(config.unet).apply({"params": params["unet"]}, x, t, told)
    return found
