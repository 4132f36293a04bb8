"""Gaussian noise for the sums of private data, which shows nothing of a sum beyond what the noise allows.

The accounting assumes noise of real numbers. JAX draws a normal number of float32 from 23 bits: it is one of 8 million
values, far apart beyond three deviations, and never beyond 5.5. Whoever subtracts a candidate for the sum sees whether
the rest is such a value, however much noise there is (Mironov 2012, for floating-point noise in general). Here, two
numbers are drawn from 64 bits, and the noisy sum is rounded to a grid that is coarse compared with the values of noise
and sum, and fine compared with the noise.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

GRID = 2.0**-8
"""Spacing of released values in standard deviations of the noise. It adds 1 part in 800,000 to their variance."""


def gaussian(key: jax.Array, size: int) -> jax.Array:
    """Standard normal numbers [size], float32. Box and Muller 1958.

    40 bits for the radius of two numbers, which is at most 7.5, and 24 for their angle.
    """
    first, second = jax.random.bits(key, (2, -(-size // 2)), jnp.uint32)
    share = first.astype(jnp.float32) * 2.0**-32 + ((second & 255).astype(jnp.float32) + 0.5) * 2.0**-40
    radius, angle = jnp.sqrt(-2 * jnp.log(share)), (second >> 8).astype(jnp.float32) * (math.pi * 2.0**-23)
    return jnp.concatenate([radius * jnp.cos(angle), radius * jnp.sin(angle)])[:size]


def noisy(total: Any, deviation: jax.Array | float, key: jax.Array) -> jax.Array:
    """A sum of any shape with noise of this standard deviation, as it may be released."""
    drawn = gaussian(key, jnp.size(total)).reshape(jnp.shape(total))
    return on_grid(total + deviation * drawn, deviation)


def on_grid(noisy: jax.Array, deviation: jax.Array | float) -> jax.Array:
    """A sum with noise of this standard deviation, rounded to the grid; unchanged if there is no noise."""
    spacing = deviation * GRID
    return jnp.where(spacing > 0, jnp.round(noisy / spacing) * spacing, noisy)
