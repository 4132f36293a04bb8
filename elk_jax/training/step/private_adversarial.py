"""Two players; only the discriminator sees the training data, and its descent is private.

Shapes: R rows of a batch, each a unit or padding; K examples of a unit.

The gradient of a unit is clipped: that of the loss on its real examples together with one generated example for each,
as in Osuala et al. 2024. Generated examples reveal nothing about the data and would need no clipping, but would then
outweigh the real ones, whose gradients are clipped. The generator sees the data only through the discriminator, so its
updates, averages and images cost no privacy (Xie et al. 2018, arXiv:1802.06739).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from elk_jax.training import mesh as meshes
from elk_jax.training.model import DISCRIMINATOR, GENERATOR, Batch, Constants, Game, Metrics, Model, Params
from elk_jax.training.recipe import AdversarialRecipe, TrainingRecipe
from elk_jax.training.state import TrainState
from elk_jax.training.step import adversarial
from elk_jax.training.step.adversarial import apart, generator_descent, generator_update, joined
from elk_jax.training.step.descent import WATCHED, all_finite
from elk_jax.training.step.gradient import split_batch
from elk_jax.training.step.private import private
from elk_jax.training.step.step import Protection, Step


def judge(game: Game, generator: Params = None) -> Model:
    """The discriminator as a separate model that a private step can train.

    Its constants are those of the game and the params of the generator, which generates an example for each real one.
    """

    def loss(params: Params, constants: Constants, batch: Batch, rng: jax.Array, map_images: Any):
        draw_key, judge_key = jax.random.split(rng)
        drawn = game.draw(draw_key, batch)
        made = game.generate(constants["generator"], constants["game"], drawn)
        return game.discriminator_loss(params, constants["game"], batch, drawn, made, judge_key)

    return Model(
        init=lambda rng: game.init(rng)[DISCRIMINATOR],
        loss=loss,
        predict=lambda *_: {},
        per_example=game.per_example,
        constants={"game": game.constants, "generator": generator},
    )


def judge_recipe(recipe: AdversarialRecipe) -> TrainingRecipe:
    """How the discriminator is trained."""
    return TrainingRecipe(
        steps=recipe.steps * recipe.ratio,
        optimizer=recipe.discriminator_optimizer,
        schedule=recipe.discriminator_schedule,
        privacy=recipe.privacy,
    )


def private_adversarial(
    game: Game, recipe: AdversarialRecipe, protection: Protection, mesh: Mesh, seed: int = 0
) -> Step:
    """A step of `recipe.ratio` private updates of the discriminator (`step.private`), each on the units of its own
    Poisson sample, and one update of the generator, with as many generated examples as a sample's expected units.

    Batches come from `data.batches.poisson` with `releases` equal to the ratio. seed: of fresh parameters, and of the
    generator's input for its own update, which need not be secret.

    Metrics: those of the generator, including `loss`, which follow from noisy gradients; for the discriminator, what a
    private step publishes, as means over its updates. UserError for a game whose examples interact.
    """
    judging = private(judge(game), judge_recipe(recipe), protection, mesh)
    shapes = jax.eval_shape(game.init, jax.random.key(0))
    ratio, maker = recipe.ratio, generator_descent(shapes, recipe)
    count = protection.mechanism.batch_size

    def init(params: Params) -> TrainState:
        return joined(maker.init(params[GENERATOR]), judging.init(params[DISCRIMINATOR]))

    def update(state: TrainState, constants: Constants, batch: Any) -> tuple[TrainState, Metrics]:
        own, judged = apart(state, ratio)
        known = {"model": {"game": constants["game"], "generator": own.params}, "secret": constants["secret"]}
        parts = jax.tree.map(lambda x: split_batch(x, ratio), batch)
        judged, found = jax.lax.scan(lambda judged, part: judging.update(judged, known, part), judged, parts)

        draw_key, last_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
        blank = {name: jnp.zeros((count, *x.shape[2:]), x.dtype) for name, x in batch["examples"].items()}
        drawn = game.draw(draw_key, blank)
        if count % mesh.size == 0:
            drawn = jax.lax.with_sharding_constraint(drawn, meshes.batch_sharding(mesh))
        made, pull_back = jax.vjp(lambda params: game.generate(params, constants["game"], drawn), own.params)
        loss = partial(game.generator_loss, judged.params, constants["game"], drawn)
        own, metrics = generator_update(maker, own, loss, made, pull_back, last_key)
        finite = found.pop("finite").min() * all_finite(metrics, WATCHED)
        metrics |= {f"{DISCRIMINATOR}_{name}": value.mean() for name, value in found.items()}
        return joined(own, judged), metrics | {"finite": finite}

    return Step(
        fresh=game.init,
        init=init,
        update=update,
        evaluation_params=adversarial.evaluation_params,
        constants={"game": game.constants, "secret": protection.secret.keys()},
        seed=seed,
        protection=protection,
    )
