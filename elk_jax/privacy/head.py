"""A private classifier on frozen features: logistic regression by full batches, clipped per unit, with Gaussian noise.

Shapes: N examples, D features, U units of privacy (images, or patients with all their images), S settings, K keys,
T steps.

Every step sums the gradients of a unit, clips the sum to `clip_norm`, adds the sums of all units, and adds noise with
deviation `noise_multiplier * clip_norm` once. The number of units is public; the examples of a unit are private: a unit
whose examples are removed adds nothing (zero-out adjacency), so the sum changes by at most `clip_norm`. Since every
step reads all units, T steps have exactly the epsilon of `accounting.gaussian_epsilon`; a private mean of the features
may come first.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from elk_jax.privacy.noise import noisy


class Descent(NamedTuple):
    """Settings of the descent. Each is a number, or an array [S] for S training runs at once (`train_many`).

    learning_rate: for the mean gradient of a unit. steps: number of the T steps that are taken; the noise must be
    accounted for this number. clip_norm: largest norm of a unit's gradient. noise_multiplier: deviation of the noise
    over clip_norm; 0 is not private. l2: weight decay in the loss, l2 / 2 |w|^2. averaged: share of the last iterates
    whose mean is the result; 0: only the last one.
    """

    learning_rate: jax.Array | float
    steps: jax.Array | int
    clip_norm: jax.Array | float
    noise_multiplier: jax.Array | float
    l2: jax.Array | float = 0.0
    averaged: jax.Array | float = 0.0


def clipped_sum(
    weights: jax.Array,
    features: jax.Array,
    labels: jax.Array,
    units: jax.Array,
    clip_norm: jax.Array | float,
    num_units: int,
) -> jax.Array:
    """Sum over units of the clipped gradient of their logistic losses: weights [D], features [N, D] -> [D].

    labels: [N], 1 for the class whose log odds are features @ weights, and 0. units: [N] in 0..U-1; an example of
    another number (-1) is padding. The examples of a unit give one gradient, which is clipped once. A unit whose
    gradient is not finite adds nothing, like one without examples.
    """
    errors = jax.nn.sigmoid(features @ weights) - labels
    belongs = (units >= 0) & (units < num_units)
    terms = jnp.where(belongs[:, None], errors[:, None] * features, 0.0)
    gradients = jax.ops.segment_sum(terms, jnp.where(belongs, units, 0), num_units)
    return _sum_of_clipped(gradients, clip_norm)


@partial(jax.jit, static_argnames="num_units")
def private_mean(
    features: jax.Array,
    units: jax.Array,
    clip_norm: jax.Array | float,
    noise_multiplier: jax.Array | float,
    key: jax.Array,
    *,
    num_units: int,
) -> jax.Array:
    """Mean [D] over units of the mean features of a unit, each clipped, with noise of a SECRET key.

    Public images centre the features only roughly. The remainder is one large direction common to all examples, in
    which a head learns nothing but which uses up a unit's norm: subtract this mean. It counts as one more full batch:
    `split_noise` gives its noise. A unit whose features are not finite adds nothing.
    """
    belongs = (units >= 0) & (units < num_units)
    of_units = jnp.where(belongs, units, 0)
    totals = jax.ops.segment_sum(jnp.where(belongs[:, None], features, 0.0), of_units, num_units)
    counts = jax.ops.segment_sum(belongs.astype(features.dtype), of_units, num_units)
    total = _sum_of_clipped(totals / jnp.maximum(counts, 1)[:, None], clip_norm)
    return noisy(total, noise_multiplier * clip_norm, key) / num_units


def _sum_of_clipped(vectors: jax.Array, clip_norm: jax.Array | float) -> jax.Array:
    """[U, D] -> [D]; non-finite vectors add nothing."""
    norms = jnp.linalg.norm(vectors, axis=1)
    scales = jnp.where(norms > clip_norm, clip_norm / norms, 1.0)
    return jnp.where(jnp.isfinite(norms)[:, None], vectors * scales[:, None], 0.0).sum(0)


def split_noise(noise_multiplier: float, mean_share: float, steps: int) -> tuple[float, float]:
    """Noise multipliers of a private mean and of each step that together cost as much as one batch with the given one.

    mean_share: share of the budget 1 / noise_multiplier^2 for the mean, above 0 and below 1. Gaussian mechanisms
    compose exactly: 1 / noise_multiplier^2 = 1 / mean^2 + steps / step^2 (Dong, Roth and Su 2022, corollary 3.3).
    """
    return noise_multiplier / mean_share**0.5, noise_multiplier * (steps / (1 - mean_share)) ** 0.5


@partial(jax.jit, static_argnames=("num_units", "most_steps"))
def train(
    features: jax.Array,
    labels: jax.Array,
    units: jax.Array,
    descent: Descent,
    key: jax.Array,
    *,
    num_units: int,
    most_steps: int,
) -> jax.Array:
    """Weights [D] of a head trained on features [N, D]; labels and units as in `clipped_sum`.

    key: a SECRET JAX key. Anyone who knows it can subtract the noise: take it from `os.urandom`, and keep it out of
    configurations, reports and models. most_steps: T, at least `descent.steps`; only its compilation costs time.
    """
    size = features.shape[1]

    def step(state: tuple[jax.Array, jax.Array], index: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        weights, mean = state
        total = clipped_sum(weights, features, labels, units, descent.clip_norm, num_units)
        total = noisy(total, descent.noise_multiplier * descent.clip_norm, jax.random.fold_in(key, index))
        moved = weights - descent.learning_rate * (total / num_units + descent.l2 * weights)
        first = jnp.minimum(jnp.floor(descent.steps * (1 - descent.averaged)), descent.steps - 1)
        share = 1 / jnp.maximum(index - first + 1, 1)
        taken = index < descent.steps
        return (jnp.where(taken, moved, weights), jnp.where(taken, mean + share * (moved - mean), mean)), None

    start = jnp.zeros(size, jnp.float32)
    return jax.lax.scan(step, (start, start), jnp.arange(most_steps))[0][1]


@partial(jax.jit, static_argnames=("num_units", "most_steps"))
def train_many(
    features: jax.Array,
    labels: jax.Array,
    units: jax.Array,
    descents: Descent,
    keys: jax.Array,
    *,
    num_units: int,
    most_steps: int,
) -> jax.Array:
    """Weights [S, K, D] of `train` for S settings (every field of `descents` is [S]) with K keys each.

    Together they are far more than one release: use this for choosing settings and for measuring the effect of the
    noise, never for publishing more than was accounted for.
    """
    one = partial(train, num_units=num_units, most_steps=most_steps)
    over_keys = jax.vmap(one, in_axes=(None, None, None, None, 0))
    return jax.vmap(over_keys, in_axes=(None, None, None, 0, None))(features, labels, units, descents, keys)
