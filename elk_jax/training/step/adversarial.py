"""Two players, each with its own loss and optimiser: a generator, and a discriminator that tells made from real.

Goodfellow et al. 2014.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from elk_jax.training import mesh as meshes
from elk_jax.training.model import DISCRIMINATOR, GENERATOR, PLAYERS, Batch, Constants, Game, Metrics, Params
from elk_jax.training.recipe import AdversarialRecipe
from elk_jax.training.state import TrainState
from elk_jax.training.step.descent import descent_of
from elk_jax.training.step.gradient import split_batch
from elk_jax.training.step.step import Step


def adversarial(game: Game, recipe: AdversarialRecipe, mesh: Mesh, seed: int = 0) -> Step:
    """A step of `recipe.ratio` updates of the discriminator, each on its part of the batch, and one of the generator.

    What the generator makes for the last of them is scored again by the discriminator behind it, for its own update, as
    is usual; it is made once. Only the generator is averaged, evaluated and shipped.

    seed: a step draws from fold_in(key(seed), step), so that a resumed run draws what the uninterrupted one would have.

    Metrics: those of both losses, of the discriminator their means over its updates, and `loss` (the generator's),
    `discriminator_loss`, `learning_rate`, norms (`grad_norm`, ... of the generator, `discriminator_grad_norm`, ...) and
    `finite`, 1 where both losses and gradients are finite. `update` raises UserError, while it is traced, for a batch
    that does not divide over the updates and devices.
    """
    shapes = jax.eval_shape(game.init, jax.random.key(0))
    ratio = recipe.ratio
    down = {
        GENERATOR: descent_of(shapes[GENERATOR], recipe.optimizer, recipe.schedule, recipe.steps, recipe.ema_decay),
        DISCRIMINATOR: descent_of(
            shapes[DISCRIMINATOR],
            recipe.discriminator_optimizer,
            recipe.discriminator_schedule,
            recipe.steps * ratio,
            ema_decay=0.0,
        ),
    }

    def init(params: Params) -> TrainState:
        states = {player: down[player].init(params[player]) for player in PLAYERS}
        opt_state = {player: states[player].opt_state for player in PLAYERS}
        return TrainState(jnp.zeros((), jnp.int32), params, opt_state, states[GENERATOR].ema_params)

    def evaluation_params(state: TrainState) -> Params:
        return state.params[GENERATOR] if state.ema_params is None else state.ema_params

    def update(state: TrainState, constants: Constants, batch: Batch) -> tuple[TrainState, Metrics]:
        meshes.check_micro_batches(len(jax.tree.leaves(batch)[0]), ratio, mesh)
        parts = jax.tree.map(lambda x: split_batch(x, ratio), batch)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step), ratio)
        generator = state.params[GENERATOR]
        judge = TrainState(state.step * ratio, state.params[DISCRIMINATOR], state.opt_state[DISCRIMINATOR], None)
        found: list[Metrics] = []
        for number in range(ratio):
            part = jax.tree.map(lambda x, number=number: x[number], parts)
            draw_key, judge_key, last_key = jax.random.split(keys[number], 3)
            drawn = game.draw(draw_key, part)
            make = lambda params, drawn=drawn: game.generate(params, constants, drawn)
            made, pull_back = jax.vjp(make, generator)

            def discriminator_loss(params: Params, seen: Any = (part, drawn, made, judge_key)):
                value, terms = game.discriminator_loss(params, constants, *seen)
                return value, {**terms, "discriminator_loss": value}

            grads, terms = jax.grad(discriminator_loss, has_aux=True)(judge.params)
            judge, norms = down[DISCRIMINATOR].update(judge, grads)
            found.append(terms | {f"{DISCRIMINATOR}_{name}": value for name, value in norms.items()})

        def generator_loss(made: Any):
            value, terms = game.generator_loss(judge.params, constants, drawn, made, last_key)
            return value, {**terms, "loss": value}

        of_made, terms = jax.grad(generator_loss, has_aux=True)(made)
        own = TrainState(state.step, generator, state.opt_state[GENERATOR], state.ema_params)
        own, norms = down[GENERATOR].update(own, *pull_back(of_made))
        metrics = jax.tree.map(lambda *values: sum(values) / ratio, *found) | terms | norms
        watched = ("loss", "grad_norm", "discriminator_loss", "discriminator_grad_norm")
        finite = jnp.isfinite(jnp.stack([metrics[name] for name in watched])).all()
        params = {GENERATOR: own.params, DISCRIMINATOR: judge.params}
        opt_state = {GENERATOR: own.opt_state, DISCRIMINATOR: judge.opt_state}
        state = TrainState(state.step + 1, params, opt_state, own.ema_params)
        return state, metrics | {"finite": finite.astype(jnp.int32)}

    return Step(
        fresh=game.init,
        init=init,
        update=update,
        evaluation_params=evaluation_params,
        constants=game.constants,
        seed=seed,
    )
