"""Image translation by a Brownian bridge: from the low-energy mammogram to the subtracted one.

Shapes: B batch, S side of a tile, p side of a patch, h = S / p.

A patch of p x p pixels becomes one position of the U-Net with p^2 channels. Grey values from 0 to 1 become -1 to 1 on
the bridge. The network sees the low-energy image y in two ways: the bridge ends in it, and with the condition "source"
y is concatenated to x_t. The paper describes only the first; the published code offers both, and its configurations use
both, as does the default here: near the midpoint x_t is mostly noise, and the network would have to guess y.

The output of the network (`answer`) is x_t - x0, as published ("difference"), or x0 itself ("clean"), from which
x_t - x0 follows. The loss is the same, but a small network that predicts x_t - x0 spends its capacity on copying the
noise of x_t, and its images stay noisy.

Parameters: a dict with `unet`.
Reference: Li et al., "BBDM: Image-to-image translation with Brownian bridge diffusion models", CVPR 2023,
arXiv 2205.07680.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from elk_jax.diffusion import bridge, unet
from elk_jax.diffusion.bridge import Bridge
from elk_jax.diffusion.inpainter import from_patches, to_patches
from elk_jax.diffusion.losses import draw_noise
from elk_jax.diffusion.unet import UNet2DCondition, UNetConfig
from elk_jax.errors import UserError
from elk_jax.fields import SIDE, check

Params = Any


@dataclass(frozen=True)
class TranslatorConfig:
    """The parts of a model.

    size: S of training. condition: "source" concatenates y to x_t, "none" does not. answer: the network's output,
    "difference" (x_t - x0) or "clean" (x0).
    """

    unet: UNetConfig
    size: Annotated[int, SIDE] = 512
    patch: Annotated[int, SIDE] = 4
    condition: Literal["source", "none"] = "source"
    answer: Literal["difference", "clean"] = "difference"
    bridge: Bridge = field(default_factory=Bridge)

    def __post_init__(self) -> None:
        check(self)
        step = self.patch * self.unet.factor
        if self.size % step:
            raise UserError(f"size is {self.size}", where="size", todo=f"use a multiple of {step}")
        if self.unet.in_channels != self.channels:
            raise UserError(
                f"the U-Net has {self.unet.in_channels} input channels, this translator needs {self.channels}",
                where="unet.in_channels",
                todo=f"use {self.channels}",
            )

    @property
    def channels(self) -> int:
        """Input channels of the U-Net."""
        return self.patch**2 * (2 if self.condition == "source" else 1)


def init(config: TranslatorConfig, rng: jax.Array) -> Params:
    """Initial parameters; only their shapes under jax.eval_shape."""
    return {"unet": unet.init(config.unet, rng)}


def loss(
    config: TranslatorConfig, params: Params, batch: Mapping[str, jax.Array], rng: jax.Array, kind: str = "l1"
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(loss, metrics) of a batch: `low_energy`, `subtracted` [B, S, S, 1] in [0, 1], `valid` [B].

    kind: "l1" (published) or "l2", of the predicted x_t - x0 at random times from 1 to T. `clean_error`: mean absolute
    error of the predicted x0, in grey values from 0 to 1.
    """
    rng_time, rng_noise = jax.random.split(rng)
    x0, y = _to_bridge(config, batch["subtracted"]), _to_bridge(config, batch["low_energy"])
    t = jax.random.randint(rng_time, x0.shape[:1], 1, config.bridge.steps + 1)
    noise = draw_noise(rng_noise, x0.shape, dtype=x0.dtype.type)
    x_t, wanted = bridge.add_noise(config.bridge, x0, y, noise, t), bridge.target(config.bridge, x0, y, noise, t)
    error = jnp.abs(_denoise(config, params, x_t, t, y) - wanted)
    each = (error if kind == "l1" else error**2).mean(axis=(1, 2, 3))
    valid = batch.get("valid", jnp.ones(len(each), bool))
    mean = lambda values: jnp.where(valid, values, 0).sum() / jnp.maximum(valid.sum(), 1)
    return mean(each), {"clean_error": mean(error.mean(axis=(1, 2, 3))) / 2}


def translate(
    config: TranslatorConfig, params: Params, low_energy: jax.Array, keys: jax.Array, steps: int, eta: float = 1.0
) -> jax.Array:
    """Subtracted images [B, S, S, 1] in [0, 1] from low-energy ones; S may differ from training (a valid multiple).

    keys [B]: each image depends only on its own key. steps, eta: see `bridge.plan`. The predicted clean image is
    clipped to the range of images at every step, as in the published code.
    """
    y = _to_bridge(config, low_energy)

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        return x - jnp.clip(x - _denoise(config, params, x, t, y), -1, 1)

    found = bridge.sample(denoise, config.bridge, y, keys, steps, eta)
    return jnp.clip((from_patches(found, config.patch) + 1) / 2, 0, 1)


def _to_bridge(config: TranslatorConfig, image: jax.Array) -> jax.Array:
    """[B, S, S, 1] in [0, 1] -> [B, h, h, p p] in [-1, 1]."""
    return to_patches(2 * image - 1, config.patch)


def _denoise(config: TranslatorConfig, params: Params, x_t: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
    """The predicted x_t - x0."""
    seen = jnp.concatenate([x_t, y.astype(x_t.dtype)], axis=-1) if config.condition == "source" else x_t
    model: nn.Module = UNet2DCondition(config.unet)
    found: Any = model.apply({"params": params["unet"]}, seen, t)
    return x_t - found if config.answer == "clean" else found
