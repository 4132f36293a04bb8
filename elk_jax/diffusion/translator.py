"""A translator of grey images by a Brownian bridge: from the low-energy mammogram to the subtracted one.

Shapes: B batch, S side of a tile, p side of a patch, h = S / p.

Every patch of p x p pixels is one place of the U-Net with p^2 channels (1: pixels themselves). Grey values 0 to 1 are
-1 to 1 on the bridge. The network is told of the low-energy image y in two ways: the bridge ends in it, and (where
`condition` is "source") it is stacked onto x_t. The paper has the first alone; the published code has either, and its
configurations both. Both is the default here too: half-way x_t is mostly noise, and the network would have to guess
what it can be told.

What the network answers (`answer`) is x_t - x0, as published ("difference"), or x0 itself ("clean"), of which x_t - x0
follows. The loss is the same; but a small network that answers x_t - x0 spends itself on handing the noise of x_t on,
pixel by pixel, and its images stay noisy.

Parameters: a dict with `unet`.
Reference: Li et al., "BBDM: Image-to-image translation with Brownian bridge diffusion models", CVPR 2023,
arXiv 2205.07680.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from elk_jax.diffusion import bridge, unet
from elk_jax.diffusion.bridge import Bridge
from elk_jax.diffusion.inpainter import from_patches, to_patches
from elk_jax.diffusion.losses import draw_noise
from elk_jax.diffusion.unet import UNet2DCondition, UNetConfig
from elk_jax.errors import UserError

Params = Any

CONDITIONS = ("source", "none")
ANSWERS = ("difference", "clean")
LOSSES = ("l1", "l2")


@dataclass(frozen=True)
class TranslatorConfig:
    """What a model is made of.

    size: S of training. condition: "source" stacks y onto x_t, "none" leaves it out. answer: what the network's output
    is, "difference" x_t - x0 or "clean" x0.
    """

    unet: UNetConfig
    size: int = 512
    patch: int = 4
    condition: str = "source"
    answer: str = "difference"
    bridge: Bridge = field(default_factory=Bridge)

    def __post_init__(self) -> None:
        for name, known in (("condition", CONDITIONS), ("answer", ANSWERS)):
            given = getattr(self, name)
            if given not in known:
                raise UserError(f"{name} is '{given}'", where="translator", todo=f"choose one of {', '.join(known)}")
        if self.patch < 1:
            raise UserError(f"patches of {self.patch} px", where="translator.patch", todo="give 1 or more")
        step = self.patch * self.unet.factor
        if self.size < 1 or self.size % step:
            raise UserError(f"tiles of {self.size} px", where="translator.size", todo=f"use a multiple of {step}")
        if self.unet.in_channels != self.channels:
            raise UserError(
                f"the U-Net has {self.unet.in_channels} input channels, this translator needs {self.channels}",
                where="translator.unet.in_channels",
                todo=f"use {self.channels}",
            )

    @property
    def channels(self) -> int:
        """Channels that the U-Net sees."""
        return self.patch**2 * (2 if self.condition == "source" else 1)


def init(config: TranslatorConfig, rng: jax.Array) -> Params:
    """Fresh parameters; under jax.eval_shape their shapes alone."""
    return {"unet": unet.init(config.unet, rng)}


def loss(
    config: TranslatorConfig, params: Params, batch: Mapping[str, jax.Array], rng: jax.Array, kind: str = "l1"
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(loss, metrics) of a batch: `low_energy`, `subtracted` [B, S, S, 1] in [0, 1], `valid` [B].

    kind: "l1" (published) or "l2", of the predicted x_t - x0 at random times 1 to T. `clean_error`: mean absolute error
    of the answer x0 itself, in grey values 0 to 1.
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
    """Subtracted images [B, S, S, 1] in [0, 1] of low-energy ones; S may be another multiple than in training.

    keys [B]: each image depends on its own key alone. steps, eta: see `bridge.plan`. What the network takes for the
    clean image is clipped to the range of images at every step, as in the published code.
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
    """What the model takes for x_t - x0."""
    seen = jnp.concatenate([x_t, y.astype(x_t.dtype)], axis=-1) if config.condition == "source" else x_t
    model: nn.Module = UNet2DCondition(config.unet)
    found: Any = model.apply({"params": params["unet"]}, seen, t)
    return x_t - found if config.answer == "clean" else found
