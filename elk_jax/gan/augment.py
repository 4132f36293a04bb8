"""Differentiable augmentation of real and generated patches alike (DiffAugment, Zhao et al. 2020).

The discriminator sees only augmented patches, so it cannot memorise few training patches. The generator's patches are
augmented before they are scored, so it does not learn the augmentation. Patches [B, S, S, 1] in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from elk_jax.fields import SHARE, AtLeast, Checked


@dataclass(frozen=True)
class Augmentation(Checked):
    """brightness: largest shift of grey values, as a share of their range; contrast: exp(u(-c, c)) scales them about
    the mean of a patch. shift: largest shift of a patch, as a share of its side; its border is repeated. cutout: side
    of a square that is replaced by mid grey, as a share. 0 switches each off.
    """

    brightness: Annotated[float, SHARE] = 0.0
    contrast: Annotated[float, AtLeast(0)] = 0.0
    shift: Annotated[float, SHARE] = 0.0
    cutout: Annotated[float, SHARE] = 0.0

    @property
    def is_off(self) -> bool:
        return not (self.brightness or self.contrast or self.shift or self.cutout)


def augmented(config: Augmentation, image: jax.Array, key: jax.Array) -> jax.Array:
    """Patches [B, S, S, 1], each augmented with its own random numbers."""
    if config.is_off:
        return image
    return jax.vmap(lambda one, key: _changed(config, one, key))(image, jax.random.split(key, len(image)))


def _changed(config: Augmentation, image: jax.Array, key: jax.Array) -> jax.Array:
    light, scale, move, hole = jax.random.split(key, 4)
    size = image.shape[0]
    if config.brightness:
        image = image + 2 * config.brightness * jax.random.uniform(light, minval=-1.0)
    if config.contrast:
        factor = jnp.exp(config.contrast * jax.random.uniform(scale, minval=-1.0))
        image = (image - image.mean()) * factor + image.mean()
    if config.shift:
        most = round(config.shift * size)
        start = jax.random.randint(move, (2,), 0, 2 * most + 1)
        wide = jnp.pad(image, ((most, most), (most, most), (0, 0)), mode="edge")
        image = jax.lax.dynamic_slice(wide, (*start, 0), image.shape)
    if config.cutout:
        side = round(config.cutout * size)
        corner = jax.random.randint(hole, (2, 1), -(side // 2), size - side // 2)
        inside = (jnp.arange(size) >= corner) & (jnp.arange(size) < corner + side)
        image = jnp.where((inside[0][:, None] & inside[1])[..., None], 0.0, image)
    return image
