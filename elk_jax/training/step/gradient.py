"""Gradient descent on the loss of a model, by a recipe."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from elk_jax.training import mesh as meshes
from elk_jax.training import state as states
from elk_jax.training.model import Batch, Constants, Metrics, Model, Params
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.state import TrainState
from elk_jax.training.step.descent import WATCHED, all_finite, descent
from elk_jax.training.step.step import Step


def gradient(model: Model, recipe: TrainingRecipe, mesh: Mesh, seed: int = 0) -> Step:
    """A step that descends the gradient of `model.loss`.

    recipe:  its `optimizer`, `schedule` (over `steps`), `ema_decay` and `accumulate` are used. The batch is divided
             into `accumulate` micro-batches, processed one after another, and the mean of their gradients is applied.
             For a loss that is a plain mean over examples this equals the whole batch. A detection loss that divides by
             a count over the batch (sampled anchors, RoIs) divides within each micro-batch instead, as a run with that
             smaller batch would.
    seed:    a loss draws from fold_in(key(seed), step), so that a resumed run draws the same as an uninterrupted one.

    The gradient of frozen parameters is not computed. Metrics: the loss's own, and `loss`, `grad_norm`, `param_norm`,
    `update_norm` (over trained parameters; the gradient before clipping), `learning_rate`, `finite` (1 if loss,
    gradient and new parameters are finite, else 0). Raises UserError for expressions of the recipe that do not match
    the parameters; `update` raises one, during tracing, for a batch that cannot be divided among micro-batches and
    devices.
    """
    down = descent(model, recipe)
    map_images = meshes.shard_map_images(mesh)

    def gradient(params: Params, constants: Constants, batch: Batch, rng: jax.Array):
        def objective(params):
            params = jax.tree.map(lambda p, t: p if t else jax.lax.stop_gradient(p), params, down.changing)
            value, terms = model.loss(params, constants, batch, rng, map_images)
            return value, {**terms, "loss": value}

        (_, terms), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return grads, terms

    def accumulated_gradient(params: Params, constants: Constants, batch: Batch, rng: jax.Array):
        parts = recipe.accumulate
        micro_batches = jax.tree.map(lambda x: split_batch(x, parts), batch)
        first = jax.tree.map(lambda x: x[0], micro_batches)
        shapes = jax.eval_shape(gradient, params, constants, first, rng)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def body(total, inputs):
            micro_batch, index = inputs
            result = gradient(params, constants, micro_batch, jax.random.fold_in(rng, index))
            return jax.tree.map(jnp.add, total, result), None

        total, _ = jax.lax.scan(body, zeros, (micro_batches, jnp.arange(parts)))
        return jax.tree.map(lambda x: x / parts, total)

    def update(state: TrainState, constants: Constants, batch: Batch) -> tuple[TrainState, Metrics]:
        meshes.check_micro_batches(len(jax.tree.leaves(batch)[0]), recipe.accumulate, mesh)
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        compute = gradient if recipe.accumulate == 1 else accumulated_gradient
        grads, metrics = compute(state.params, constants, batch, rng)
        state, norms = down.update(state, grads)
        metrics |= norms
        return state, metrics | {"finite": all_finite(metrics, WATCHED)}

    return Step(
        fresh=model.init,
        init=down.init,
        update=update,
        evaluation_params=states.evaluation_params,
        constants=model.constants,
        seed=seed,
    )


def split_batch(x: jax.Array, parts: int) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...]. Example i goes to part i % parts, so that with a batch sharded along B every
    device keeps its own examples."""
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)
