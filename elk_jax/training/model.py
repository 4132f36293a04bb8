"""The functions of a model family that a training step needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax

Params = Any
"""A pytree of float32 arrays. Models keep no other state."""
Constants = Any
"""A pytree of arrays that a loss or a prediction reads and that are never trained."""
Batch = Mapping[str, jax.Array]
"""Arrays with the examples along the leading axis, [B, ...]."""
Metrics = dict[str, jax.Array]
"""Scalars by name."""
MapImages = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Maps a function of one image over a batch: `jax.vmap`, or `mesh.shard_map_images(mesh)`."""


@dataclass(frozen=True, eq=False)
class Model:
    """A model family as pure functions. The caller passes `constants` and chooses `map_images`.

    init:        rng -> params.
    loss:        (params, constants, batch, rng, map_images) -> (scalar, metrics). Means are over the GLOBAL batch.
    predict:     (params, constants, batch, map_images) -> dict of arrays with leading axis B.
    per_example: whether the loss of a batch is the sum or the mean of one term per valid example, where a term depends
                 only on its own example, params, constants and random numbers. Then the gradient is the sum or mean of
                 per-example gradients, and these can be clipped one by one, as in private training. False if examples
                 interact: a normaliser counted over the batch (a detector's sampled anchors and RoIs), statistics of
                 the batch, weights that depend on the other examples.
    frozen:      regular expressions (re.search on 'a/b/c' parameter paths) of parameters that are never trained,
                 whatever the configuration sets.
    statistics:  regular expressions of the parameters that are running statistics of batches. Their "gradient" from the
                 loss is a step that is subtracted unchanged, by any recipe: no optimiser, no rate, no part in norms
                 (see `backbones.norms.BatchNorm`). With statistics, examples interact, and privacy is refused.
    constants:   arrays that are read and never trained: a teacher, an autoencoder, the base of low-rank adapters. They
                 are not averaged, and are in neither checkpoints nor the training result.
    """

    init: Callable[[jax.Array], Params]
    loss: Callable[[Params, Constants, Batch, jax.Array, MapImages], tuple[jax.Array, Metrics]]
    predict: Callable[[Params, Constants, Batch, MapImages], dict[str, jax.Array]]
    per_example: bool
    frozen: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()
    constants: Constants = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Game:
    """Two players as pure functions: the counterpart of a `Model` for training with two losses.

    init:     rng -> {GENERATOR: params, DISCRIMINATOR: params}.
    draw:     (rng, batch) -> the generator's input besides its params: noise, classes.
    generate: (generator, constants, drawn) -> generated examples, an array or a tree of arrays.
    discriminator_loss: (discriminator, constants, batch, drawn, made, rng) -> (scalar, metrics).
    generator_loss:     (discriminator, constants, drawn, made, rng) -> (scalar, metrics).
    predict:  (generator, constants, batch, map_images) -> dict of arrays with leading axis B.

    Means are over the GLOBAL batch. constants: as in `Model`. per_example: as in `Model`: whether the loss of the
    discriminator is the mean over valid examples of one term each, which depends only on the example, the example
    generated alongside it, params, constants and random numbers.
    """

    init: Callable[[jax.Array], Params]
    draw: Callable[[jax.Array, Batch], Any]
    generate: Callable[[Params, Constants, Any], Any]
    discriminator_loss: Callable[[Params, Constants, Batch, Any, Any, jax.Array], tuple[jax.Array, Metrics]]
    generator_loss: Callable[[Params, Constants, Any, Any, jax.Array], tuple[jax.Array, Metrics]]
    predict: Callable[[Params, Constants, Batch, MapImages], dict[str, jax.Array]]
    constants: Constants = field(default_factory=dict)
    per_example: bool = False


class Predictor(Protocol):
    """Anything that predicts: a `Model`, a `Game`, or a predictor not trained in steps. Both fields as in `Model`."""

    @property
    def predict(self) -> Callable[[Params, Constants, Batch, MapImages], dict[str, jax.Array]]: ...
    @property
    def constants(self) -> Constants: ...


GENERATOR, DISCRIMINATOR = "generator", "discriminator"
