"""Noise schedules of diffusion training: the share of the image that remains at every time step.

Shapes: T time steps of training, B batch; images and latents are [B, ...], t is [B] int32 or a scalar.

    x_t = signal(t) x0 + noise_rate(t) epsilon,   signal^2 = alphas_cumprod[t],   noise_rate^2 = 1 - alphas_cumprod[t]

A model predicts one of "epsilon" (the noise), "v" = signal epsilon - noise_rate x0, and "x0" (the clean image).

References: Ho et al. 2020, arXiv 2006.11239 (linear); Rombach et al. 2022, arXiv 2112.10752 (scaled linear); Nichol and
Dhariwal 2021, arXiv 2102.09672, eq. 17 (cosine); Salimans and Ho 2022, arXiv 2202.00512 (v); Lin et al. 2024,
arXiv 2305.08891, algorithm 1 (zero terminal SNR).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.errors import UserError
from elk_jax.precision import at_least_float32

NAMES = ("linear", "scaled_linear", "cosine")
PREDICTIONS = ("epsilon", "v", "x0")
MOST_STEPS = 100_000
"""Time steps of the longest schedule."""
MAX_BETA = 0.999
"""Upper limit of the betas of a cosine schedule (Nichol and Dhariwal, section 3.2)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """alphas_cumprod: float32 [T], descending. The other fields record how it was made, for files and reports.

    name "betas": made from a list of betas. Jitted functions close over a schedule; it is not an argument.
    """

    alphas_cumprod: np.ndarray
    prediction: str = "epsilon"
    name: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    zero_terminal_snr: bool = False

    @property
    def steps(self) -> int:
        return len(self.alphas_cumprod)


def make_schedule(
    name: str = "scaled_linear",
    steps: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    *,
    prediction: str = "epsilon",
    zero_terminal_snr: bool = False,
    betas: Sequence[float] | None = None,
) -> Schedule:
    """A noise schedule; the default is Stable Diffusion's (Ho et al.: "linear", 1e-4, 0.02).

    beta_start, beta_end: ends of linear and scaled_linear; cosine ignores them. betas: explicit values instead of a
    name. zero_terminal_snr: the schedule is shifted and scaled so that the last step is pure noise; since x0 cannot be
    recovered from that noise, the prediction must be "v" or "x0". Raises UserError for unknown names, for betas
    outside (0, 1), and for another number of them than `steps`.
    """
    _check(name in NAMES, "name", f"unknown noise schedule '{name}'", f"one of {', '.join(NAMES)}")
    known = ", ".join(PREDICTIONS)
    _check(prediction in PREDICTIONS, "prediction", f"unknown prediction '{prediction}'", f"one of {known}")
    _check(2 <= steps <= MOST_STEPS, "steps", f"a noise schedule of {steps} steps", f"2 to {MOST_STEPS}")
    if zero_terminal_snr and prediction == "epsilon":
        raise UserError(
            "zero terminal SNR with epsilon prediction: the last step is pure noise and carries no information on x0",
            where="zero_terminal_snr",
            todo="use prediction='v' (or 'x0'), or zero_terminal_snr=False",
        )
    if betas is not None:
        _check(len(betas) == steps, "betas", f"{len(betas)} betas for {steps} steps", "one for each step")
        name, values = "betas", np.asarray(betas, np.float64)
    elif name == "linear":
        values = np.linspace(beta_start, beta_end, steps)
    elif name == "scaled_linear":
        least = min(beta_start, beta_end)
        _check(least > 0, "beta_start", f"betas from {beta_start} to {beta_end}", "numbers between 0 and 1")
        values = np.linspace(beta_start**0.5, beta_end**0.5, steps) ** 2
    else:
        values = _cosine_betas(steps)
    inside = values.ndim == 1 and bool(((values > 0) & (values < 1)).all())
    given = f"betas from {values.min():g} to {values.max():g}"
    _check(inside, "beta_end" if betas is None else "betas", given, "numbers between 0 and 1")
    alphas_cumprod = np.cumprod(1 - values)
    if zero_terminal_snr:
        alphas_cumprod = _to_zero_terminal_snr(alphas_cumprod)
    return Schedule(alphas_cumprod.astype(np.float32), prediction, name, beta_start, beta_end, zero_terminal_snr)


def rates(schedule: Schedule, t: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(signal, noise rate) at t, with the number of dimensions of `like`; float32, or float64 if `like` is."""
    dtype = jnp.promote_types(like.dtype, jnp.float32)
    left = schedule.alphas_cumprod.astype(np.float64)
    return (
        spread_over(jnp.asarray(np.sqrt(left), dtype)[t], like),
        spread_over(jnp.asarray(np.sqrt(1 - left), dtype)[t], like),
    )


def add_noise(schedule: Schedule, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """x_t [B, ...] from clean x0 and standard normal noise, both [B, ...], at t [B]; float32 or wider."""
    signal, noise_rate = rates(schedule, t, x0)
    return signal * at_least_float32(x0) + noise_rate * at_least_float32(noise)


def target(schedule: Schedule, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """What the model should predict from x_t: the noise, v or x0 [B, ...], by `schedule.prediction`."""
    if schedule.prediction == "epsilon":
        return at_least_float32(noise)
    if schedule.prediction == "x0":
        return at_least_float32(x0)
    signal, noise_rate = rates(schedule, t, x0)
    return signal * at_least_float32(noise) - noise_rate * at_least_float32(x0)


def x0_of(prediction: str, output: jax.Array, x_t: jax.Array, signal: jax.Array, noise_rate: jax.Array) -> jax.Array:
    """The clean image [B, ...] that corresponds to a model's output at these rates (see `rates`)."""
    output, x_t = at_least_float32(output), at_least_float32(x_t)
    if prediction == "epsilon":
        return (x_t - noise_rate * output) / signal
    return output if prediction == "x0" else signal * x_t - noise_rate * output


def epsilon_of(
    prediction: str, output: jax.Array, x_t: jax.Array, signal: jax.Array, noise_rate: jax.Array
) -> jax.Array:
    """The noise [B, ...] that corresponds to a model's output at these rates."""
    output, x_t = at_least_float32(output), at_least_float32(x_t)
    if prediction == "x0":
        return (x_t - signal * output) / noise_rate
    return output if prediction == "epsilon" else signal * output + noise_rate * x_t


def snr(schedule: Schedule, t: jax.Array) -> jax.Array:
    """Signal-to-noise ratio alphas_cumprod / (1 - alphas_cumprod) at t; 0 at the last step of a zero terminal SNR."""
    left = schedule.alphas_cumprod.astype(np.float64)
    return jnp.asarray(left / (1 - left), jnp.float32)[t]


def spread_over(values: jax.Array, like: jax.Array) -> jax.Array:
    """[B] -> [B, 1, 1, 1] for an image batch; scalars are unchanged."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim)) if values.ndim else values


def _cosine_betas(steps: int) -> np.ndarray:
    """1 - f((i + 1) / T) / f(i / T) with f(s) = cos^2((s + 0.008) / 1.008 * pi / 2)."""
    left = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - left[1:] / left[:-1], MAX_BETA)


def _to_zero_terminal_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Shift the signal rate to end at 0, and scale it to keep its first value."""
    signal = np.sqrt(alphas_cumprod)
    return ((signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))) ** 2


def _check(good: bool, key: str, what: str, todo: str) -> None:
    if not good:
        raise UserError(what, where=key, todo=f"give {todo}")
