"""From noise to an image: DDIM and DPM-Solver++ (2M) as one `lax.scan`, and classifier-free guidance.

Shapes: B batch, N sampling steps, T time steps of training. Images and latents are [B, ...].

Every step of both samplers is linear in the known quantities. So a sampler is a table of numbers (`plan`, NumPy,
float64), and the scan only multiplies and adds:

    x0    <- model output, x, signal, noise_rate
    x     <- keep x + clean x0 + before x0_of_the_step_before + epsilon eps + fresh noise

References: Song et al. 2021, arXiv 2010.02502 (DDIM, eq. 12 and 16); Lu et al. 2022, arXiv 2211.01095, algorithm 2
(DPM-Solver++ 2M, midpoint); Karras et al. 2022, arXiv 2206.00364, eq. 5 (noise levels); Ho and Salimans 2022,
arXiv 2207.12598 (guidance); Lin et al. 2024, arXiv 2305.08891 (spacing). Time steps and the order
of the last step follow the schedulers of diffusers, so that a Stable Diffusion folder gives the same images here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.diffusion.schedule import Schedule, epsilon_of, x0_of
from elk_jax.errors import UserError
from elk_jax.fields import ABOVE_ZERO, SHARE, AtLeast, check
from elk_jax.precision import at_least_float32

Denoise = Callable[[jax.Array, jax.Array], jax.Array]
"""(x_t [B, ...], t int32 [B]) -> the model's output [B, ...]; closes over parameters and conditions."""

KARRAS_RHO = 7.0
FEW_STEPS = 15
"""Below this number of steps the last step of DPM-Solver++ is of first order (`lower_order_final`)."""
LEAST_LEFT = 2.0**-24
"""Squared signal for DPM-Solver++ at a zero terminal SNR, where the log-SNR would be infinite."""


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How to sample. eta: DDIM's share of fresh noise (0: none, 1: as much as DDPM).

    spacing, steps_offset: which time steps of training are visited. karras: noise levels of Karras et al. (dpmpp_2m).
    final_sigma: the last step ends at the clean image ("zero"), or at the noise of the first training step
    ("sigma_min"; set_alpha_to_one=False of DDIM in diffusers). lambda_min: lowest half log-SNR at which dpmpp_2m starts
    (-5.1 for cosine schedules). clip: predicted images are clipped to [-clip, clip] (in pixel space, not for latents).
    """

    name: Literal["dpmpp_2m", "ddim"] = "dpmpp_2m"
    steps: Annotated[int, AtLeast(1)] = 50
    spacing: Literal["linspace", "leading", "trailing"] = "linspace"
    steps_offset: int = 0
    karras: bool = False
    eta: Annotated[float, SHARE] = 0.0
    final_sigma: Literal["zero", "sigma_min"] = "zero"
    lower_order_final: bool = True
    lambda_min: float | None = None
    clip: Annotated[float, ABOVE_ZERO] | None = None

    def __post_init__(self) -> None:
        check(self)
        if self.name == "ddim" and self.karras:
            raise UserError("DDIM has no Karras noise levels", where="karras", todo="use dpmpp_2m, or karras=False")
        if self.name != "ddim" and self.eta:
            raise UserError("DPM-Solver++ 2M adds no noise", where="eta", todo="use ddim, or eta=0")


class Plan(NamedTuple):
    """One row per step: time step, rates of the image before it, coefficients of the terms of the next image.

    Columns are NumPy arrays [N] in `plan` and scalars on the device in `step`.
    """

    t: Any
    signal: Any
    noise_rate: Any
    keep: Any
    clean: Any
    before: Any
    epsilon: Any
    fresh: Any


def plan(schedule: Schedule, config: SamplerConfig) -> Plan:
    """The table of the sampler, float64 [N] (t int32). UserError for a sampler that does not fit the schedule."""
    most = schedule.steps if config.name == "ddim" else schedule.steps - 1
    if config.steps > most:
        what = f"{config.steps} sampling steps on a schedule of {schedule.steps}"
        raise UserError(what, where="steps", todo=f"give 1 to {most}")
    table = _plan_ddim(schedule, config) if config.name == "ddim" else _plan_dpmpp_2m(schedule, config)
    if table.t.min() < 0 or table.t.max() >= schedule.steps:
        raise UserError(
            f"sampling would visit step {table.t.max()} of a schedule of {schedule.steps}",
            where="steps_offset",
            todo="use fewer steps or a smaller offset",
        )
    return table


def sample(
    denoise: Denoise,
    schedule: Schedule,
    config: SamplerConfig,
    shape_or_noise: Sequence[int] | jax.Array,
    rng: jax.Array | None = None,
) -> jax.Array:
    """The image x0 [B, ...] that the model makes from noise; float32 or wider, whatever the model computes in.

    shape_or_noise: starting noise [B, ...], or its shape to draw it. rng: one key, or B keys, so that an image depends
    only on its own key; not needed if the noise is given and eta is 0. Works under jit, vmap and grad; under jit the N
    steps are one program.
    """
    table = plan(schedule, config)
    draws = bool(np.any(table.fresh))
    if rng is None and (draws or not hasattr(shape_or_noise, "dtype")):
        raise ValueError("sampling draws noise: give rng")
    start_keys: Any = None
    keys: Any = None
    if rng is not None:
        split = jax.vmap(jax.random.split)(rng) if rng.ndim else jax.random.split(rng)
        start_keys, keys = split[..., 0], split[..., 1]
    drawn = shape_or_noise if hasattr(shape_or_noise, "dtype") else normal(start_keys, shape_or_noise)
    x = at_least_float32(jnp.asarray(drawn))
    rows = Plan(jnp.asarray(table.t), *(jnp.asarray(column, x.dtype) for column in table[1:]))
    fold = jax.vmap(jax.random.fold_in, (0, None)) if keys is not None and keys.ndim else jax.random.fold_in

    def body(carry, numbered):
        x, x0_before = carry
        index, row = numbered
        t = jnp.full(x.shape[:1], row.t)
        output = denoise(x, t)
        fresh = normal(fold(keys, index), x.shape, x.dtype) if draws else None
        return step(schedule.prediction, row, x, output, x0_before, fresh, clip=config.clip), None

    (x, _), _ = jax.lax.scan(body, (x, jnp.zeros_like(x)), (jnp.arange(len(table.t)), rows))
    return x


def step(
    prediction: str,
    row: Plan,
    x: jax.Array,
    output: jax.Array,
    x0_before: jax.Array,
    fresh: jax.Array | None = None,
    *,
    clip: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(x of the next step, predicted x0), from a row of the plan (scalars) and the model's output for x.

    Clipping x0 does not change the predicted noise.
    """
    x0 = x0_of(prediction, output, x, row.signal, row.noise_rate)
    if clip is not None:
        x0 = jnp.clip(x0, -clip, clip)
    noise = epsilon_of(prediction, output, x, row.signal, row.noise_rate)
    x = row.keep * x + row.clean * x0 + row.before * x0_before + row.epsilon * noise
    return (x if fresh is None else x + row.fresh * fresh), x0


def classifier_free(
    denoise: Callable[[jax.Array, jax.Array, Any], jax.Array],
    condition: Any,
    negative: Any,
    scale: float,
) -> Denoise:
    """A denoiser guided towards `condition` and away from `negative`, both in one batch of 2 B.

    denoise(x, t, condition); condition, negative: pytrees of arrays [B, ...] of equal shapes (embeddings of the prompt,
    and of the empty or a negative prompt). output = negative + scale (condition - negative); a scale of 1 runs only the
    condition.
    """
    if scale == 1:
        return lambda x, t: denoise(x, t, condition)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), negative, condition)

    def guided(x: jax.Array, t: jax.Array) -> jax.Array:
        output = at_least_float32(denoise(jnp.concatenate([x, x]), jnp.concatenate([t, t]), both))
        without, wanted = jnp.split(output, 2)
        return without + scale * (wanted - without)

    return guided


def normal(rng: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Standard normal noise [B, ...] from one key, or from B keys, one per image."""
    if not rng.ndim:
        return jax.random.normal(rng, tuple(shape), dtype)
    if rng.shape != (shape[0],):
        raise ValueError(f"{rng.shape} random keys for a batch of {shape[0]}")
    return jax.vmap(lambda key: jax.random.normal(key, tuple(shape[1:]), dtype))(rng)


def _plan_ddim(schedule: Schedule, config: SamplerConfig) -> Plan:
    """Song et al., eq. 12, with sigma = eta times eq. 16."""
    left, total, count = schedule.alphas_cumprod.astype(np.float64), schedule.steps, config.steps
    t: np.ndarray
    if config.spacing == "linspace":
        t = np.linspace(0, total - 1, count).round()[::-1]
    elif config.spacing == "leading":
        t = np.arange(count)[::-1] * (total // count) + config.steps_offset
    else:
        t = np.round(np.arange(total, 0, -total / count)) - 1
    t = t.astype(np.int32)
    now = left[np.minimum(t, total - 1)]
    then_t = t - total // count  # as in diffusers; for uneven spacings not exactly the next t
    then = np.where(then_t >= 0, left[np.maximum(then_t, 0)], 1.0 if config.final_sigma == "zero" else left[0])
    fresh = config.eta * np.sqrt((1 - then) / (1 - now) * (1 - now / then))
    none = np.zeros(len(t))
    epsilon = np.sqrt(np.maximum(1 - then - fresh**2, 0))
    return Plan(t, np.sqrt(now), np.sqrt(1 - now), none, np.sqrt(then), none, epsilon, fresh)


def _plan_dpmpp_2m(schedule: Schedule, config: SamplerConfig) -> Plan:
    """Lu et al., algorithm 2, in noise levels s = noise_rate / signal = exp(-lambda)."""
    left = schedule.alphas_cumprod.astype(np.float64)
    left = np.where(left == 0, LEAST_LEFT, left)
    levels = np.sqrt((1 - left) / left)
    t, s = _dpmpp_levels(levels, schedule, config)
    s = np.append(s, 0.0 if config.final_sigma == "zero" else levels[0])
    signal = 1 / np.sqrt(s**2 + 1)
    now, then = s[:-1], s[1:]
    ratio = then / now  # exp(-h)
    clean = signal[1:] * (1 - ratio)
    before = np.zeros(len(t))
    second = np.ones(len(t), bool)  # second order from the second step on, except the last
    second[0] = False
    if config.final_sigma == "zero" or (config.lower_order_final and len(t) < FEW_STEPS):
        second[-1] = False
    for i in np.flatnonzero(second):
        slope = np.log(now[i] / then[i]) / np.log(now[i - 1] / now[i])  # h over h of the previous step
        before[i] = -0.5 * slope * clean[i]
        clean[i] -= before[i]
    keep = ratio * signal[1:] / signal[:-1]
    none = np.zeros(len(t))
    return Plan(t, signal[:-1], now * signal[:-1], keep, clean, before, none, none)


def _dpmpp_levels(levels: np.ndarray, schedule: Schedule, config: SamplerConfig) -> tuple[np.ndarray, np.ndarray]:
    """Visited time steps int32 [N] and noise levels [N], descending."""
    total, count = schedule.steps, config.steps
    if config.karras:
        ends = levels[-1] ** (1 / KARRAS_RHO), levels[0] ** (1 / KARRAS_RHO)
        s = np.linspace(*ends, count) ** KARRAS_RHO
        exact = np.interp(np.log(s), np.log(levels), np.arange(total))
        return (exact if schedule.name == "cosine" else exact.round()).astype(np.int32), s
    last = total
    if config.lambda_min is not None:
        last -= int(np.searchsorted(-np.log(levels)[::-1], config.lambda_min))
    t: np.ndarray
    if config.spacing == "linspace":
        t = np.linspace(0, last - 1, count + 1).round()[:0:-1]
    elif config.spacing == "leading":
        t = np.arange(count, 0, -1) * (last // (count + 1)) + config.steps_offset
    else:
        t = np.arange(last, 0, -total / count).round() - 1
    t = t.astype(np.int32)
    return t, levels[np.clip(t, 0, total - 1)]
