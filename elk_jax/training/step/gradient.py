"""Gradient descent on the loss of a model, by a recipe."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from elk_jax.training import mesh as meshes
from elk_jax.training import optimizer as optimizers
from elk_jax.training import schedules
from elk_jax.training import state as states
from elk_jax.training.model import Batch, Constants, Metrics, Model, Params
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.state import TrainState
from elk_jax.training.step.step import Step


def gradient(model: Model, recipe: TrainingRecipe, mesh: Mesh, seed: int = 0) -> Step:
    """A step that descends the gradient of `model.loss`.

    recipe:  of it `optimizer`, `schedule` (over `steps`), `ema_decay` and `accumulate`: the batch is cut into so many
             micro-batches, processed one after another, and the mean of their gradients is applied. For a loss that
             is a plain mean over examples this equals the whole batch. A detection loss that divides by a count of the
             batch (sampled anchors, RoIs) divides within each micro-batch instead, as a run with that smaller batch
             would.
    seed:    a loss draws from fold_in(key(seed), step), so that a resumed run draws what the uninterrupted one would
             have drawn.

    The gradient of frozen parameters is not even computed. Metrics: the loss's own, and `loss`, `grad_norm`,
    `param_norm`, `update_norm` (over trained parameters; the gradient before clipping), `learning_rate`, `finite` (1
    where loss and gradient are finite, else 0). Raises UserError for expressions of the recipe that do not fit the
    parameters; `update` raises one, while it is traced, for a batch that does not divide over micro-batches and
    devices.
    """
    abstract_params = jax.eval_shape(model.init, jax.random.key(seed))
    rate = schedules.build(recipe.schedule, recipe.steps)
    trainable = optimizers.trainable_mask(abstract_params, recipe.optimizer, model.frozen)
    tx = optimizers.build(recipe.optimizer, rate, abstract_params, model.frozen)
    map_images = meshes.shard_map_images(mesh)

    def gradient(params: Params, constants: Constants, batch: Batch, rng: jax.Array):
        def objective(params):
            params = jax.tree.map(lambda p, t: p if t else jax.lax.stop_gradient(p), params, trainable)
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
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if recipe.ema_decay:
            with jax.named_scope("ema"):
                ema_params = states.update_ema(ema_params, params, state.step, recipe.ema_decay)
        with jax.named_scope("optimizer"):  # the compiler computes the norms while it updates
            grad_norm = optax.tree.norm(grads)
            metrics = metrics | {
                "grad_norm": grad_norm,
                "param_norm": optax.tree.norm(select(params, trainable)),
                "update_norm": optax.tree.norm(updates),
                "finite": (jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)).astype(jnp.int32),
                "learning_rate": jnp.asarray(rate(state.step)),
            }
        return TrainState(state.step + 1, params, opt_state, ema_params), metrics

    return Step(
        fresh=model.init,
        init=lambda params: states.create(params, tx, ema=bool(recipe.ema_decay)),
        update=update,
        evaluation_params=states.evaluation_params,
        constants=model.constants,
        seed=seed,
    )


def split_batch(x: jax.Array, parts: int) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...]. Example i goes to part i % parts: on a batch that is sharded along B every
    device keeps its own examples."""
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)


def select(params: Any, mask: Any) -> list[Any]:
    """The leaves where mask is True."""
    return [p for p, keep in zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True) if keep]
