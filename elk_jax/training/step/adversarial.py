"""Two players, each with its own loss and optimiser: a generator, and a discriminator of generated and real examples.

Goodfellow et al. 2014.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from elk_jax.training import mesh as meshes
from elk_jax.training.model import DISCRIMINATOR, GENERATOR, Batch, Constants, Game, Metrics, Params
from elk_jax.training.recipe import AdversarialRecipe
from elk_jax.training.state import TrainState
from elk_jax.training.step.descent import WATCHED, Descent, all_finite, descent_of
from elk_jax.training.step.gradient import split_batch
from elk_jax.training.step.step import Step


def adversarial(game: Game, recipe: AdversarialRecipe, mesh: Mesh, seed: int = 0) -> Step:
    """A step of `recipe.ratio` updates of the discriminator, each on its part of the batch, and one of the generator.

    The examples generated for the last discriminator update are scored again by the updated discriminator for the
    generator's own update, as is usual; they are generated once. Only the generator is averaged, evaluated and shipped.

    seed: a step draws from fold_in(key(seed), step), so that a resumed run draws the same as an uninterrupted one.

    Metrics: those of both losses (for the discriminator, means over its updates), and `loss` (the generator's),
    `discriminator_loss`, `learning_rate`, norms (`grad_norm`, ... of the generator, `discriminator_grad_norm`, ...) and
    `finite`, 1 if losses, gradients and new parameters of both are finite. `update` raises UserError, during tracing,
    for a batch that cannot be divided among the updates and devices.
    """
    shapes = jax.eval_shape(game.init, jax.random.key(0))
    ratio, maker = recipe.ratio, generator_descent(shapes, recipe)
    judging = descent_of(
        shapes[DISCRIMINATOR],
        recipe.discriminator_optimizer,
        recipe.discriminator_schedule,
        recipe.steps * ratio,
        ema_decay=0.0,
    )

    def init(params: Params) -> TrainState:
        return joined(maker.init(params[GENERATOR]), judging.init(params[DISCRIMINATOR]))

    def update(state: TrainState, constants: Constants, batch: Batch) -> tuple[TrainState, Metrics]:
        meshes.check_micro_batches(len(jax.tree.leaves(batch)[0]), ratio, mesh)
        parts = jax.tree.map(lambda x: split_batch(x, ratio), batch)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step), ratio)
        own, judge = apart(state, ratio)
        found: list[Metrics] = []
        for number in range(ratio):
            part = jax.tree.map(lambda x, number=number: x[number], parts)
            draw_key, judge_key, last_key = jax.random.split(keys[number], 3)
            drawn = game.draw(draw_key, part)
            make = lambda params, drawn=drawn: game.generate(params, constants, drawn)
            made, pull_back = jax.vjp(make, own.params)

            def discriminator_loss(params: Params, seen: Any = (part, drawn, made, judge_key)):
                value, terms = game.discriminator_loss(params, constants, *seen)
                return value, {**terms, "discriminator_loss": value}

            grads, terms = jax.grad(discriminator_loss, has_aux=True)(judge.params)
            judge, norms = judging.update(judge, grads)
            found.append(terms | {f"{DISCRIMINATOR}_{name}": value for name, value in norms.items()})

        loss = partial(game.generator_loss, judge.params, constants, drawn)
        own, terms = generator_update(maker, own, loss, made, pull_back, last_key)
        metrics = jax.tree.map(lambda *values: sum(values) / ratio, *found) | terms
        watched = (*WATCHED, *(f"{DISCRIMINATOR}_{name}" for name in WATCHED))
        return joined(own, judge), metrics | {"finite": all_finite(metrics, watched)}

    return Step(
        fresh=game.init,
        init=init,
        update=update,
        evaluation_params=evaluation_params,
        constants=game.constants,
        seed=seed,
    )


# ---- Shared with the private step of two players ---------------------------------------------------------------------


def generator_descent(shapes: Params, recipe: AdversarialRecipe) -> Descent:
    """The descent of the generator. shapes: of the params of both players."""
    return descent_of(shapes[GENERATOR], recipe.optimizer, recipe.schedule, recipe.steps, recipe.ema_decay)


def joined(own: TrainState, judge: TrainState) -> TrainState:
    """The state of both players, from the states of the generator and the discriminator."""
    params = {GENERATOR: own.params, DISCRIMINATOR: judge.params}
    return TrainState(own.step, params, {GENERATOR: own.opt_state, DISCRIMINATOR: judge.opt_state}, own.ema_params)


def apart(state: TrainState, ratio: int) -> tuple[TrainState, TrainState]:
    """The states of the generator and of the discriminator, which makes `ratio` updates per update of the generator."""
    own = TrainState(state.step, state.params[GENERATOR], state.opt_state[GENERATOR], state.ema_params)
    return own, TrainState(state.step * ratio, state.params[DISCRIMINATOR], state.opt_state[DISCRIMINATOR], None)


def evaluation_params(state: TrainState) -> Params:
    """The evaluation parameters of the generator."""
    return state.params[GENERATOR] if state.ema_params is None else state.ema_params


def generator_update(
    down: Descent,
    own: TrainState,
    loss: Callable[[Any, jax.Array], tuple[jax.Array, Metrics]],
    made: Any,
    pull_back: Callable[[Any], tuple[Params]],
    key: jax.Array,
) -> tuple[TrainState, Metrics]:
    """The generator after one more update, and its metrics. loss: of its generated examples. pull_back: to the gradient
    of its params."""

    def with_terms(made: Any) -> tuple[jax.Array, Metrics]:
        value, terms = loss(made, key)
        return value, {**terms, "loss": value}

    of_made, terms = jax.grad(with_terms, has_aux=True)(made)
    own, norms = down.update(own, *pull_back(of_made))
    return own, terms | norms
