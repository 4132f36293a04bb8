"""From a task's loss to one jitted update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from elk_jax.errors import UserError
from elk_jax.training.state import TrainState, update_ema

Metrics = dict[str, jax.Array]
Loss = Callable[[Any, Mapping[str, jax.Array], jax.Array], tuple[jax.Array, Metrics]]
Step = Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, Metrics]]


def gradient_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    ema_decay: float | None = None,
    seed: int = 0,
    *,
    schedule: optax.Schedule | None = None,
    accumulate: int = 1,
    trainable: Any = None,
    out_shardings: Any = None,
) -> Any:
    """A jitted `step(state, batch) -> (state, metrics)`; the state passed in is donated. Nothing waits for
    the host.

    loss:        (params, batch, rng) -> (scalar, dict of scalars); rng is fold_in(key(seed), step), so that
                 a resumed run draws what the uninterrupted one would have drawn.
    accumulate:  the batch is cut into this many micro-batches, worked off one after the other, and the mean
                 of their gradients is applied. For a loss that is a plain mean over examples this equals the
                 whole batch. A detection loss that divides by a count of the batch (sampled anchors, RoIs)
                 divides within each micro-batch instead, as a run with that smaller batch would.
    trainable:   tree of bools like params; the gradient of the others is not even computed.
    out_shardings: (state, metrics) layouts; by default as the inputs lie.

    metrics: the loss's own, and `loss`, `grad_norm`, `param_norm`, `update_norm` (over trained parameters;
    the gradient before clipping), `learning_rate`, `finite` (1 where loss and gradient are finite, else 0).
    """

    def gradient(params, batch, rng):
        def objective(params):
            if trainable is not None:
                params = jax.tree.map(lambda p, t: p if t else jax.lax.stop_gradient(p), params, trainable)
            value, terms = loss(params, batch, rng)
            return value, {**terms, "loss": value}

        (_, terms), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return grads, terms

    def accumulated_gradient(params, batch, rng):
        micro_batches = jax.tree.map(lambda x: split_batch(x, accumulate), batch)
        shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], micro_batches), rng)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def body(total, inputs):
            micro_batch, index = inputs
            result = gradient(params, micro_batch, jax.random.fold_in(rng, index))
            return jax.tree.map(jnp.add, total, result), None

        total, _ = jax.lax.scan(body, zeros, (micro_batches, jnp.arange(accumulate)))
        return jax.tree.map(lambda x: x / accumulate, total)

    def step(state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        compute = gradient if accumulate == 1 else accumulated_gradient
        grads, metrics = compute(state.params, batch, rng)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if ema_decay is not None:
            ema_params = update_ema(ema_params, params, state.step, ema_decay)
        grad_norm = optax.tree.norm(grads)
        metrics = metrics | {
            "grad_norm": grad_norm,
            "param_norm": optax.tree.norm(select(params, trainable)),
            "update_norm": optax.tree.norm(updates),
            "finite": (jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)).astype(jnp.int32),
        }
        if schedule is not None:
            metrics["learning_rate"] = jnp.asarray(schedule(state.step))
        return TrainState(state.step + 1, params, opt_state, ema_params), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)


def split_batch(x: jax.Array, parts: int) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...]. Example i goes to part i % parts: on a batch that is sharded
    along B every device keeps its own examples."""
    if x.shape[0] % parts:
        raise UserError(
            f"a batch of {x.shape[0]} does not divide into {parts} micro-batches",
            where="accumulate",
            todo="choose a batch size that is a multiple of it",
        )
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)


def select(params: Any, mask: Any) -> Any:
    """The leaves where mask is True (all without a mask)."""
    if mask is None:
        return params
    return [p for p, keep in zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True) if keep]


def first_nonfinite(metrics: Mapping[str, float]) -> str | None:
    """The name of the first non-finite value of a step that is not `finite`: loss terms, then their sum,
    then the norms.

    metrics: one step's, on the host. None for a finite step.
    """
    if metrics["finite"]:
        return None
    last = ("loss", "grad_norm", "update_norm", "param_norm")
    order = [key for key in metrics if key not in last] + list(last)
    return next((key for key in order if not np.isfinite(metrics[key])), "loss")
