"""Brownian bridge diffusion: from an image y of one kind (low energy) to its counterpart x0 of another (subtracted).

Shapes: B batch, T time steps, N sampling steps; images or latents [B, H, W, C]; t [B] int32 in 0..T.

The bridge starts at x0 (t = 0) and ends exactly at y (t = T), with m_t = t / T and variance d_t = 2 s (m_t - m_t^2):

    x_t = (1 - m_t) x0 + m_t y + sqrt(d_t) epsilon,   and the model predicts x_t - x0.

Reference: Li et al., "BBDM: Image-to-image translation with Brownian bridge diffusion models", CVPR 2023,
arXiv 2205.07680: eq. 4 (bridge), 12 (loss), algorithm 2 (sampling).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.diffusion.samplers import Denoise, normal
from elk_jax.diffusion.schedule import MOST_STEPS, spread_over
from elk_jax.errors import UserError
from elk_jax.fields import AtLeast, Between, Checked
from elk_jax.precision import at_least_float32


@dataclasses.dataclass(frozen=True)
class Bridge(Checked):
    """steps: T. max_variance: s, twice the variance at the midpoint (the diversity of the samples)."""

    steps: Annotated[int, Between(2, MOST_STEPS)] = 1000
    max_variance: Annotated[float, AtLeast(0)] = 1.0

    def mean_share(self) -> np.ndarray:
        """m_t float64 [T + 1]: share of y, from 0 to 1."""
        return np.arange(self.steps + 1) / self.steps

    def variance(self) -> np.ndarray:
        """d_t float64 [T + 1]: 0 at both ends."""
        share = self.mean_share()
        return 2 * self.max_variance * (share - share**2)


def add_noise(bridge: Bridge, x0: jax.Array, y: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """x_t [B, ...] at t [B] in 0..T (train with 1..T); at least float32."""
    return at_least_float32(x0) + target(bridge, x0, y, noise, t)


def target(bridge: Bridge, x0: jax.Array, y: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """What the model should predict from x_t: m_t (y - x0) + sqrt(d_t) epsilon = x_t - x0."""
    x0, y, noise = at_least_float32(x0), at_least_float32(y), at_least_float32(noise)
    share = spread_over(jnp.asarray(bridge.mean_share(), x0.dtype)[t], x0)
    deviation = spread_over(jnp.asarray(np.sqrt(bridge.variance()), x0.dtype)[t], x0)
    return share * (y - x0) + deviation * noise


class BridgePlan(NamedTuple):
    """One row per sampling step: the time step, and the coefficients of the terms of the next image."""

    t: Any
    keep: Any
    clean: Any
    end: Any
    fresh: Any


def plan(bridge: Bridge, steps: int = 200, eta: float = 1.0) -> BridgePlan:
    """The table of the sampler, float64 [N], from t = T to 0 in even steps.

    The next image has mean (1 - m') x0 + m' y + sqrt((d' - f^2) / d) (x - (1 - m) x0 - m y) and fresh noise of
    deviation f = eta sqrt(posterior variance). eta = 1 is the paper's sampler, 0 a deterministic one; the marginals d'
    are the same for every eta.
    """
    if not 1 <= steps <= bridge.steps:
        raise UserError(
            f"{steps} sampling steps on a bridge with {bridge.steps}", where="steps", todo=f"give 1 to {bridge.steps}"
        )
    if not 0 <= eta <= 1:
        raise UserError(f"eta is {eta}", where="eta", todo="give 0 to 1")
    visited = np.linspace(bridge.steps, 0, steps + 1).round().astype(np.int32)
    shares, variances = bridge.mean_share()[visited], bridge.variance()[visited]
    m, m_next, d, d_next = shares[:-1], shares[1:], variances[:-1], variances[1:]
    inside = d > 0  # not at the start, where x equals y and carries no information about the noise
    safe = np.where(inside, d, 1)
    posterior = np.where(inside, d_next / safe * (d - d_next * (1 - m) ** 2 / (1 - m_next) ** 2), d_next)
    fresh = np.where(inside, eta, 1) * np.sqrt(np.maximum(posterior, 0))
    rest = np.where(inside, np.sqrt(np.maximum(d_next - fresh**2, 0) / safe), 0)
    return BridgePlan(visited[:-1], rest, (1 - m_next) - rest * (1 - m), m_next - rest * m, fresh)


def sample(
    denoise: Denoise, bridge: Bridge, y: jax.Array, rng: jax.Array, steps: int = 200, eta: float = 1.0
) -> jax.Array:
    """x0 [B, ...] for y [B, ...], as one scan. denoise(x_t, t [B]) -> x_t - x0; rng: one key, or one for each image."""
    table = plan(bridge, steps, eta)
    start = at_least_float32(y)
    fold = jax.vmap(jax.random.fold_in, (0, None)) if rng.ndim else jax.random.fold_in
    rows = BridgePlan(jnp.asarray(table.t), *(jnp.asarray(column, start.dtype) for column in table[1:]))

    def body(x: jax.Array, numbered: tuple[jax.Array, BridgePlan]) -> tuple[jax.Array, None]:
        index, row = numbered
        x0 = x - at_least_float32(denoise(x, jnp.full(x.shape[:1], row.t)))
        fresh = row.fresh * normal(fold(rng, index), x.shape, x.dtype)
        return row.keep * x + row.clean * x0 + row.end * start + fresh, None

    return jax.lax.scan(body, start, (jnp.arange(steps), rows))[0]
