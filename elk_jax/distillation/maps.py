"""Losses between two feature maps of the same images, cell by cell.

Shape legend: B images, h w cells, C channels. teacher and student [B, h, w, C]; weights [B, h, w] >= 0 of the cells: 0
where nothing should be learned, such as outside the breast, in padding, and in images that do not count. All means are
weighted means over the cells of the whole batch; without any weight a loss is 0 and has no gradient. No gradient flows
into the teacher.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from elk_jax.precision import at_least_float32

EPSILON = 1e-6
"""Added to a standard deviation."""
TINY = 1e-12
"""Variance below which a channel counts as constant."""


def normalised_mse(teacher: jax.Array, student: jax.Array, weights: jax.Array, tolerance: int = 0) -> jax.Array:
    """Mean of (s - t)^2 / 2, with the channels of both standardised over the batch (Cao et al. 2022); without
    tolerance this is 1 - Pearson's r.

    The similarity loss of paired regimes, and PKD, which multiplies it by 6 (two stages) or 10 (one). tolerance: cells
    by which the images may be displaced (`least_of_shifts`).
    """
    teacher, student = (standardised(x, weights) for x in _pair(teacher, student))
    return least_of_shifts(teacher, student, weights, tolerance) / 2


def sigmoid_l2(teacher: jax.Array, student: jax.Array, weights: jax.Array, tolerance: int = 0) -> jax.Array:
    """Mean of (sigmoid(s) - sigmoid(t))^2: large activations do not dominate (Hoffman et al. 2016, hallucination).

    tolerance: cells by which the images may be displaced (`least_of_shifts`).
    """
    teacher, student = (jax.nn.sigmoid(x) for x in _pair(teacher, student))
    return least_of_shifts(teacher, student, weights, tolerance)


def least_of_shifts(teacher: jax.Array, student: jax.Array, weights: jax.Array, tolerance: int) -> jax.Array:
    """The weighted mean over cells of the squared distance per channel between the student's cell and the nearest of
    the teacher's cells that have a weight and are up to `tolerance` cells away in each direction; for images that are
    not registered."""
    if not tolerance:
        return weighted_mean((student - teacher) ** 2, weights)
    r = tolerance
    around = ((0, 0), (r, r), (r, r))
    there, cells = jnp.pad(weights, around) > 0, jnp.pad(teacher, (*around, (0, 0)))
    h, w = weights.shape[1:]
    least = jnp.full(weights.shape, jnp.inf)
    for y in range(2 * r + 1):
        for x in range(2 * r + 1):
            distance = ((student - cells[:, y : y + h, x : x + w]) ** 2).mean(-1)
            least = jnp.minimum(least, jnp.where(there[:, y : y + h, x : x + w], distance, jnp.inf))
    return weighted_mean(jnp.where(weights > 0, least, 0)[..., None], weights)


def contrastive(
    teacher: jax.Array, student: jax.Array, weights: jax.Array, projections: dict[str, jax.Array], temperature: float
) -> jax.Array:
    """Cross-entropy of finding the teacher's view of each image among those of the batch (Tian et al. 2020, CRD).

    Maps are averaged over the cells of an image by their weights and projected ({teacher, student} [C, D]); similarity
    is the cosine divided by a temperature. Images without any weight are left out; for a single image the loss is 0.
    Images need not be registered.
    """
    teacher, student = _pair(teacher, student)
    total = weights.sum((1, 2))
    there = total > 0

    def directions(x: jax.Array, projection: jax.Array) -> jax.Array:
        pooled = (x * weights[..., None]).sum((1, 2)) / jnp.where(there, total, 1)[:, None]
        y = pooled @ projection
        square = (y**2).sum(-1, keepdims=True)
        some = there[:, None] & (square > 0)
        return jnp.where(some, y / jnp.sqrt(jnp.where(some, square, 1)), 0)

    own, other = directions(student, projections["student"]), directions(teacher, projections["teacher"])
    logits = jnp.where(there, own @ other.T / temperature, -jnp.inf)
    logits = jnp.where(there[:, None], logits, 0.0)
    losses = -jnp.diagonal(jax.nn.log_softmax(logits))
    return jnp.where(there, losses, 0).sum() / jnp.maximum(there.sum(), 1)


def init_projections(rng: jax.Array, channels: int, size: int = 128) -> dict[str, jax.Array]:
    """Fresh {teacher, student} [C, D], normal with variance 1 / C. D: the smaller of `size` and C."""
    # More directions than channels would add nothing to a cosine.
    size = min(size, channels)
    keys = dict(zip(("teacher", "student"), jax.random.split(rng)))
    return {name: jax.random.normal(key, (channels, size)) / channels**0.5 for name, key in keys.items()}


def hint(teacher: jax.Array, student: jax.Array, weights: jax.Array, regressor: dict[str, jax.Array]) -> jax.Array:
    """Mean of (r(s) - t)^2 / 2, with r a learned 1x1 convolution, {kernel [C_s, C_t], bias [C_t]} (Romero et al. 2015,
    FitNets): it measures how well the student's map predicts the teacher's, not their similarity.

    The channels of t are standardised over the batch, so that levels and networks have equal weight.
    """
    teacher, student = _pair(teacher, student)
    return weighted_mean((regressed(student, regressor) - standardised(teacher, weights)) ** 2, weights) / 2


def regressed(student: jax.Array, regressor: dict[str, jax.Array]) -> jax.Array:
    """r(s) [B, h, w, C_t]."""
    return at_least_float32(student) @ regressor["kernel"] + regressor["bias"]


def init_regressor(rng: jax.Array, channels: int, taught: int) -> dict[str, jax.Array]:
    """Fresh {kernel, bias}, from `channels` to `taught`; the kernel normal with variance 1 / channels."""
    return {"kernel": jax.random.normal(rng, (channels, taught)) / channels**0.5, "bias": jnp.zeros(taught)}


def cwd(teacher: jax.Array, student: jax.Array, weights: jax.Array, temperature: float = 1.0) -> jax.Array:
    """Channel-wise distillation (Shu et al. 2021): T^2 times the mean over images and channels of the KL divergence
    between softmaxes over the cells of an image with weights above 0."""
    teacher, student = _pair(teacher, student)
    there = (weights > 0)[..., None]
    images = there.any((1, 2, 3))

    def logs(x: jax.Array) -> jax.Array:
        x = jnp.where(there, x / temperature, -jnp.inf)
        x = jnp.where(images[:, None, None, None], x, 0)
        return x - jax.nn.logsumexp(x, axis=(1, 2), keepdims=True)

    wanted, found = (jnp.where(there, logs(x), 0) for x in (teacher, student))
    divergence = jnp.where(there, jnp.exp(wanted) * (wanted - found), 0).sum((1, 2)).mean(-1)
    return temperature**2 * jnp.where(images, divergence, 0).sum() / jnp.maximum(images.sum(), 1)


def standardised(x: jax.Array, weights: jax.Array) -> jax.Array:
    """x [B, h, w, C] with mean 0 and standard deviation 1 of every channel over the batch, by the weights."""
    total = jnp.maximum(weights.sum(), TINY)
    mean = (x * weights[..., None]).sum((0, 1, 2)) / total
    centred = x - mean
    variance = (centred**2 * weights[..., None]).sum((0, 1, 2)) / total
    varies = variance > TINY
    return jnp.where(varies, centred / (jnp.sqrt(jnp.where(varies, variance, 1)) + EPSILON), 0)


def correlation(teacher: jax.Array, student: jax.Array, weights: jax.Array) -> jax.Array:
    """Pearson's r between the two, averaged over channels, for the log; 1 if the student has learned everything."""
    teacher, student = (standardised(x, weights) for x in _pair(teacher, student))
    return weighted_mean(student * teacher, weights)


def weighted_mean(x: jax.Array, weights: jax.Array) -> jax.Array:
    """The mean of x [B, h, w, C] over cells, weighted, and over channels."""
    found = jnp.where(weights[..., None] > 0, x * weights[..., None], 0).sum()
    return found / (jnp.maximum(weights.sum(), TINY) * x.shape[-1])


def _pair(teacher: jax.Array, student: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.lax.stop_gradient(at_least_float32(teacher)), at_least_float32(student)
