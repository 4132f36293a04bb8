"""From noise to an image: DDIM and multistep DPM-Solver++ as one `lax.scan`, and classifier-free guidance.

Shapes: B batch, N sampling steps, T time steps of training. Images and latents are [B, ...].

Every step of both samplers is linear in the known quantities. A sampler is therefore a table of numbers (`plan`, NumPy,
float64), and the scan only multiplies and adds:

    x0    <- model output, x, signal, noise_rate
    x     <- keep x + clean x0 + before x0_of_the_step_before + earlier x0_of_the_one_before_that
             + epsilon eps + fresh noise

References: Song et al. 2021, arXiv 2010.02502 (DDIM, eq. 12 and 16); Lu et al. 2022, arXiv 2211.01095, algorithm 2
(DPM-Solver++ 2M), and its third order as in their code and in diffusers; Karras et al. 2022, arXiv 2206.00364, eq. 5
(noise levels); Ho and Salimans 2022, arXiv 2207.12598 (guidance); Lin et al. 2024, arXiv 2305.08891 (spacing). Time
steps and the order of the last step follow the schedulers of diffusers, so that a Stable Diffusion folder gives the
same images here.
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

ORDERS = {"dpmpp_1m": 1, "dpmpp_2m": 2, "dpmpp_3m": 3}
"""Orders of the multistep DPM-Solver++."""
KARRAS_RHO = 7.0
FEW_STEPS = 15
"""Below this number of steps the last step of DPM-Solver++ is of first order, and the one before at most of second
(`lower_order_final`)."""
LEAST_LEFT = 2.0**-24
"""Squared signal for DPM-Solver++ at a zero terminal SNR, where the log-SNR would be infinite."""


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How to sample. eta: DDIM's share of fresh noise (0: none, 1: as much as DDPM).

    spacing, steps_offset: which time steps of training are visited. karras: noise levels of Karras et al. (dpmpp).
    solver: how dpmpp's steps of second order end. euler_final: its last step is of first order, however many there are.
    final_sigma: the last step ends at the clean image ("zero"), or at the noise of the first training step
    ("sigma_min"; set_alpha_to_one=False of DDIM in diffusers). lambda_min: lowest half log-SNR at which dpmpp starts
    (-5.1 for cosine schedules). clip: predicted images are clipped to [-clip, clip] (in pixel space, not for latents).
    """

    name: Literal["dpmpp_1m", "dpmpp_2m", "dpmpp_3m", "ddim"] = "dpmpp_2m"
    steps: Annotated[int, AtLeast(1)] = 50
    spacing: Literal["linspace", "leading", "trailing"] = "linspace"
    steps_offset: int = 0
    karras: bool = False
    eta: Annotated[float, SHARE] = 0.0
    final_sigma: Literal["zero", "sigma_min"] = "zero"
    lower_order_final: bool = True
    lambda_min: float | None = None
    clip: Annotated[float, ABOVE_ZERO] | None = None
    solver: Literal["midpoint", "heun"] = "midpoint"
    euler_final: bool = False

    def __post_init__(self) -> None:
        check(self)
        if self.name == "ddim" and self.karras:
            raise UserError("DDIM has no Karras noise levels", where="karras", todo="use dpmpp_2m, or karras=False")
        if self.name == "ddim" and (self.solver != "midpoint" or self.euler_final):
            key = "euler_final" if self.euler_final else "solver"
            raise UserError(f"{key} does not apply to DDIM", where=key, todo="use dpmpp_2m, or leave it out")
        if self.name != "ddim" and self.eta:
            raise UserError("DPM-Solver++ adds no noise", where="eta", todo="use ddim, or eta=0")


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
    earlier: Any


def plan(schedule: Schedule, config: SamplerConfig) -> Plan:
    """The table of the sampler, float64 [N] (t int32). UserError for a sampler that does not fit the schedule."""
    most = schedule.steps if config.name == "ddim" else schedule.steps - 1
    if config.steps > most:
        what = f"{config.steps} sampling steps on a schedule with {schedule.steps}"
        raise UserError(what, where="steps", todo=f"give 1 to {most}")
    table = _plan_ddim(schedule, config) if config.name == "ddim" else _plan_dpmpp(schedule, config)
    if table.t.min() < 0 or table.t.max() >= schedule.steps:
        raise UserError(
            f"sampling would visit step {table.t.max()} of a schedule with {schedule.steps}",
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
    """The image x0 [B, ...] that the model generates from noise; float32 or wider, whatever the model computes in.

    shape_or_noise: starting noise [B, ...], or its shape to draw it. rng: one key, or B keys, so that an image depends
    only on its own key; not needed if the noise is given and eta is 0. Works under jit, vmap and grad; under jit the N
    steps are one program.
    """
    table = plan(schedule, config)
    draws, third_order = bool(np.any(table.fresh)), bool(np.any(table.earlier))
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

    def body(carry: tuple[jax.Array, ...], numbered: Any) -> tuple[tuple[jax.Array, ...], None]:
        x, x0_before, *x0_earlier = carry
        index, row = numbered
        t = jnp.full(x.shape[:1], row.t)
        output = denoise(x, t)
        fresh = normal(fold(keys, index), x.shape, x.dtype) if draws else None
        x, x0 = step(schedule.prediction, row, x, output, x0_before, fresh, *x0_earlier, clip=config.clip)
        return (x, x0, x0_before) if third_order else (x, x0), None

    start: tuple[jax.Array, ...] = (x,) + (jnp.zeros_like(x),) * (2 if third_order else 1)
    end, _ = jax.lax.scan(body, start, (jnp.arange(len(table.t)), rows))
    return end[0]


def step(
    prediction: str,
    row: Plan,
    x: jax.Array,
    output: jax.Array,
    x0_before: jax.Array,
    fresh: jax.Array | None = None,
    x0_earlier: jax.Array | None = None,
    *,
    clip: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(x of the next step, predicted x0), from a row of the plan (scalars) and the model's output for x.

    x0_before, x0_earlier: predicted at the step before, and at the one before that, which only the third order uses.
    Clipping x0 does not change the predicted noise.
    """
    x0 = x0_of(prediction, output, x, row.signal, row.noise_rate)
    if clip is not None:
        x0 = jnp.clip(x0, -clip, clip)
    noise = epsilon_of(prediction, output, x, row.signal, row.noise_rate)
    x = row.keep * x + row.clean * x0 + row.before * x0_before + row.epsilon * noise
    if x0_earlier is not None:
        x = x + row.earlier * x0_earlier
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
    return Plan(t, np.sqrt(now), np.sqrt(1 - now), none, np.sqrt(then), none, epsilon, fresh, none)


def _plan_dpmpp(schedule: Schedule, config: SamplerConfig) -> Plan:
    """Lu et al., algorithm 2 and its third order, in noise levels s = noise_rate / signal = exp(-lambda)."""
    left = schedule.alphas_cumprod.astype(np.float64)
    left = np.where(left == 0, LEAST_LEFT, left)
    levels = np.sqrt((1 - left) / left)
    t, s = _dpmpp_levels(levels, schedule, config)
    s = np.append(s, 0.0 if config.final_sigma == "zero" else levels[0])
    signal = 1 / np.sqrt(s**2 + 1)
    now, then = s[:-1], s[1:]
    ratio = then / now  # exp(-h)
    clean = signal[1:] * (1 - ratio)
    before, earlier, none = (np.zeros(len(t)) for _ in range(3))
    order = np.minimum(ORDERS[config.name], 1 + np.arange(len(t)))  # as many predictions as there are
    few = config.lower_order_final and len(t) < FEW_STEPS
    if few:
        order[-2:] = np.minimum(order[-2:], 2)
    if config.final_sigma == "zero" or config.euler_final or few:
        order[-1] = 1
    for i in np.flatnonzero(order > 1):
        h, h_before = np.log(now[i] / then[i]), np.log(now[i - 1] / now[i])
        per_slope = signal[i + 1] * (1 - (1 - ratio[i]) / h)  # of the derivative by lambda times h
        r = h_before / h
        if order[i] == 2:
            before[i] = -(clean[i] / 2 if config.solver == "midpoint" else per_slope) / r
        else:
            r_earlier = np.log(now[i - 2] / now[i - 1]) / h
            per_bend = signal[i + 1] * (0.5 - (h - (1 - ratio[i])) / h**2)
            near, far = per_slope * (1 + r / (r + r_earlier)), -per_slope * r / (r + r_earlier)
            near, far = near + per_bend / (r + r_earlier), far - per_bend / (r + r_earlier)
            before[i], earlier[i] = -near / r + far / r_earlier, -far / r_earlier
        clean[i] -= before[i] + earlier[i]
    keep = ratio * signal[1:] / signal[:-1]
    return Plan(t, signal[:-1], now * signal[:-1], keep, clean, before, none, none, earlier)


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
