"""The state of a training run between steps: one plain pytree."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from elk_jax.training.model import Params


class TrainState(NamedTuple):
    """State of any kind of training; with several players, trees by player.

    step: int32 scalar, updates so far. params, opt_state: any trees. ema_params: averaged parameters, possibly of a
    part only; None without averaging.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    ema_params: Params | None


def evaluation_params(state: TrainState) -> Params:
    """The parameters to evaluate and to ship: the averaged ones if they exist."""
    return state.params if state.ema_params is None else state.ema_params


def create(params: Params, tx: optax.GradientTransformation, ema: bool) -> TrainState:
    """A state at step 0. The averaged parameters start as a copy (with their own buffers: the step donates all)."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
    )


def update_ema(ema_params: Params, params: Params, step: jax.Array, decay: float) -> Params:
    """Exponential moving average with warm-up: the decay at step t (from 0) is min(decay, (1 + t) / (10 + t)).

    Written so that a parameter that never changes (frozen) keeps its exact value.
    """
    rate = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda e, p: (e + rate.astype(p.dtype) * (p - e)).astype(e.dtype), ema_params, params)
