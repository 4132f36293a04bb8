"""Losses of diffusion training: squared error, weighted by time step, by pixel and by example.

Shapes: B batch; images and latents [B, H, W, C]; masks [B, H, W, 1]; t [B] int32.

References: Ho et al. 2020, arXiv 2006.11239, eq. 14; Hang et al. 2023, arXiv 2303.09556 (min-SNR-gamma); Ruiz et al.
2023, arXiv 2208.12242, eq. 2 (prior preservation); Guttenberg 2023, "Diffusion with offset noise".
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from elk_jax.diffusion.samplers import normal
from elk_jax.diffusion.schedule import Schedule, snr
from elk_jax.precision import at_least_float32


def denoising_loss(
    prediction: jax.Array,
    target: jax.Array,
    *,
    weight: jax.Array | None = None,
    pixel_weight: jax.Array | None = None,
    valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(loss, squared error of every example [B]): the mean over examples of weight times mean squared error.

    prediction, target: [B, H, W, C]. weight [B]: products of `min_snr_weight` and `prior_weight`. pixel_weight
    [B, H, W, 1]: see `mask_weight`; the mean over pixels is weighted with it, so an example counts the same whatever
    its mask's size. valid [B] bool: padded examples do not count, not even as NaN. At least float32.
    """
    errors = jnp.square(at_least_float32(prediction) - at_least_float32(target))
    pixels = tuple(range(1, errors.ndim))
    if pixel_weight is None:
        per_example = errors.mean(pixels)
    else:
        shares = jnp.broadcast_to(at_least_float32(pixel_weight), errors.shape)
        total = shares.sum(pixels)
        per_example = jnp.where(total > 0, (errors * shares).sum(pixels) / jnp.where(total > 0, total, 1), 0)
    weighted = per_example if weight is None else per_example * weight
    if valid is None:
        return weighted.mean(), per_example
    per_example = jnp.where(valid, per_example, 0)
    return jnp.where(valid, weighted, 0).sum() / jnp.maximum(valid.sum(), 1), per_example


def min_snr_weight(schedule: Schedule, t: jax.Array, gamma: float = 5.0) -> jax.Array:
    """Weight [B] of the squared error of `schedule.prediction`, so that an error of x0 counts min(SNR, gamma).

    epsilon: min(SNR, gamma) / SNR; v: min(SNR, gamma) / (SNR + 1); x0: min(SNR, gamma).
    """
    if not gamma > 0:
        raise ValueError(f"min-SNR gamma is {gamma}: give a number above 0 (5 in the paper)")
    ratio = snr(schedule, t)
    capped = jnp.minimum(ratio, gamma)
    if schedule.prediction == "epsilon":
        return capped / ratio
    return capped if schedule.prediction == "x0" else capped / (ratio + 1)


def mask_weight(mask: jax.Array, outside: float = 0.0) -> jax.Array:
    """Pixel weights [B, H, W, 1]: 1 inside the mask, `outside` elsewhere (1: all pixels count alike)."""
    if not outside >= 0:
        raise ValueError(f"the weight outside the mask is {outside}: give 0 or more")
    inside = at_least_float32(mask)
    return inside + outside * (1 - inside)


def prior_weight(is_prior: jax.Array, weight: float = 1.0, valid: jax.Array | None = None) -> jax.Array:
    """Example weights [B] for which `denoising_loss` is mean(loss of own examples) + weight mean(loss of the prior's).

    is_prior [B] bool: the examples of prior preservation (images of the class that the model made itself). valid [B]
    bool: as in `denoising_loss`.
    """
    valid = jnp.ones(is_prior.shape, bool) if valid is None else valid
    own, prior = (~is_prior & valid).sum(), (is_prior & valid).sum()
    return valid.sum() * jnp.where(is_prior, weight / jnp.maximum(prior, 1), 1 / jnp.maximum(own, 1))


def draw_noise(rng: jax.Array, shape: tuple[int, ...], offset: float = 0.0, dtype: type = jnp.float32) -> jax.Array:
    """Standard normal noise [B, H, W, C]; offset (0.05 to 0.1): plus so much of one draw per example and channel.

    With it a model learns to move the mean of an image. rng: one key, or one for each example.
    """
    noise = normal(rng, shape, dtype)
    if not offset:
        return noise
    folded = jax.vmap(jax.random.fold_in, (0, None))(rng, 1) if _many(rng) else jax.random.fold_in(rng, 1)
    return noise + offset * normal(folded, (shape[0], *(1,) * (len(shape) - 2), shape[-1]), dtype)


def _many(rng: jax.Array) -> bool:
    return rng.ndim > (0 if jnp.issubdtype(rng.dtype, jax.dtypes.prng_key) else 1)
