"""The players' objectives: losses of scores.

Shapes: B patches; scores are [B], each of a real or a generated patch. A loss is a mean over patches, or over those
that are `valid` [B] and the generated ones at the same positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from elk_jax.errors import UserError
from elk_jax.fields import AtLeast, Checked

MOST_TARGET = 2.0


@dataclass(frozen=True)
class NonSaturating(Checked):
    """The published objective (Goodfellow et al. 2014): scores are log odds, and the generator maximises being taken
    for real.

    real: bounds of the uniform targets for real patches, whose mean below 1 keeps the discriminator from certainty
    (one-sided label smoothing, Salimans et al. 2016); targets for generated patches are 0. Targets above 1 are as
    published.
    """

    name: Literal["non_saturating"] = "non_saturating"
    real: tuple[Annotated[float, AtLeast(0)], Annotated[float, AtLeast(0)]] = (0.7, 1.2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.real[0] <= self.real[1] <= MOST_TARGET:
            todo = f"give a lower and an upper bound, at most {MOST_TARGET:g}"
            raise UserError(f"real is {self.real}", where="real", todo=todo)


@dataclass(frozen=True)
class LeastSquares(Checked):
    """Squared distances of scores from 1 (real) and 0 (generated), halved (LSGAN, Mao et al. 2017)."""

    name: Literal["least_squares"] = "least_squares"


@dataclass(frozen=True)
class Wasserstein(Checked):
    """Scores of real patches minus those of generated ones, for a function of slope 1 (WGAN-GP, Gulrajani et al. 2017).

    penalty: weight of squared deviations of the slope from 1, between real and generated patches.
    """

    name: Literal["wasserstein"] = "wasserstein"
    penalty: Annotated[float, AtLeast(0)] = 10.0


Objective = NonSaturating | LeastSquares | Wasserstein


def cross_entropy(log_odds: jax.Array, target: jax.Array | float) -> jax.Array:
    """-t log p - (1 - t) log(1 - p) of each, p = 1 / (1 + exp(-log odds)). t may exceed 1."""
    return jax.nn.softplus(log_odds) - target * log_odds


def discriminator_loss(
    objective: Objective, real: jax.Array, made: jax.Array, key: jax.Array, valid: jax.Array | None = None
) -> jax.Array:
    """The loss for scores of real and generated patches, without a penalty. key: draws targets."""
    mean = partial(_mean, valid)
    if isinstance(objective, NonSaturating):
        targets = jax.random.uniform(key, real.shape, real.dtype, *objective.real)
        return mean(cross_entropy(real, targets)) + mean(cross_entropy(made, 0.0))
    if isinstance(objective, LeastSquares):
        return mean(jnp.square(real - 1)) / 2 + mean(jnp.square(made)) / 2
    return mean(made) - mean(real)


def generator_loss(objective: Objective, made: jax.Array) -> jax.Array:
    """The loss for scores of generated patches."""
    if isinstance(objective, NonSaturating):
        return cross_entropy(made, 1.0).mean()
    if isinstance(objective, LeastSquares):
        return jnp.square(made - 1).mean() / 2
    return -made.mean()


def slope_penalty(
    score: Callable[[jax.Array], jax.Array],
    real: jax.Array,
    made: jax.Array,
    key: jax.Array,
    valid: jax.Array | None = None,
) -> jax.Array:
    """Mean of (|gradient of the score| - 1)^2 at random points between real and generated patches [B, S, S, 1].

    score: patches [B, S, S, 1] -> [B]; a score depends only on its own patch.
    """
    share = jax.random.uniform(key, (len(real), 1, 1, 1), real.dtype)
    slopes = jax.grad(lambda x: score(x).sum())(made + share * (real - made))
    norms = jnp.sqrt(jnp.square(slopes).sum(axis=(1, 2, 3)) + 1e-12)
    return _mean(valid, jnp.square(norms - 1))


def _mean(valid: jax.Array | None, values: jax.Array) -> jax.Array:
    """The mean over valid values; 0 if there are none."""
    if valid is None:
        return values.mean()
    return jnp.where(valid, values, 0).sum() / jnp.maximum(valid.sum(), 1)
