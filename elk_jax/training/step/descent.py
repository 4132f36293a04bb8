"""How a recipe applies a gradient: frozen parameters, optimiser, learning rate, averaged parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from elk_jax.training import optimizer as optimizers
from elk_jax.training import schedules
from elk_jax.training import state as states
from elk_jax.training.model import Metrics, Model, Params
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.schedules import Schedule
from elk_jax.training.state import TrainState

WATCHED = ("loss", "grad_norm", "param_norm")
"""Metrics of a step that must be finite. An update may overflow although loss and gradient are finite."""


@dataclass(frozen=True, eq=False)
class Descent:
    """trainable: tree of bools. changing: the same, including running statistics. rate: learning rate by step.
    ema_decay: of the averaged parameters; 0: none."""

    trainable: Any
    changing: Any
    optimizer: optax.GradientTransformation
    rate: optax.Schedule
    ema_decay: float

    def init(self, params: Params) -> TrainState:
        """The state before the first update."""
        return states.create(params, self.optimizer, ema=bool(self.ema_decay))

    def update(self, state: TrainState, grads: Params) -> tuple[TrainState, Metrics]:
        """The state after one step of descent, and `grad_norm`, `param_norm`, `update_norm`, `learning_rate`.

        The norms are over trained parameters; the gradient's is taken before the optimiser clips it. grads: 0 for
        frozen parameters; for running statistics, their step.
        """
        with jax.named_scope("optimizer"):
            updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if self.ema_decay:
            with jax.named_scope("ema"):
                ema_params = states.update_ema(ema_params, params, state.step, self.ema_decay)
        with jax.named_scope("optimizer"):  # the compiler computes the norms while it updates
            metrics = {
                "grad_norm": optax.tree.norm(select(grads, self.trainable)),
                "param_norm": optax.tree.norm(select(params, self.trainable)),
                "update_norm": optax.tree.norm(select(updates, self.trainable)),
                "learning_rate": jnp.asarray(self.rate(state.step)),
            }
        return TrainState(state.step + 1, params, opt_state, ema_params), metrics


def descent(model: Model, recipe: TrainingRecipe) -> Descent:
    """The descent of a recipe: its `optimizer`, `schedule` (over `steps`) and `ema_decay`.

    UserError for expressions of the recipe that do not fit the parameters.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    frozen, statistics = model.frozen, model.statistics
    schedule, ema_decay = recipe.schedule, recipe.ema_decay
    return descent_of(shapes, recipe.optimizer, schedule, recipe.steps, ema_decay, frozen, statistics)


def descent_of(
    shapes: Params,
    optimizer: OptimizerConfig,
    schedule: Schedule,
    steps: int,
    ema_decay: float,
    frozen: tuple[str, ...] = (),
    statistics: tuple[str, ...] = (),
) -> Descent:
    """The descent of params of these shapes over this number of updates. frozen, statistics: as in `Model`."""
    rate = schedules.build(schedule, steps)
    trainable = optimizers.trainable_mask(shapes, optimizer, frozen, statistics)
    followed = optimizers.followed_mask(shapes, optimizer, statistics)
    return Descent(
        trainable=trainable,
        changing=jax.tree.map(lambda t, f: t or f, trainable, followed),
        optimizer=optimizers.build(optimizer, rate, shapes, frozen, statistics),
        rate=rate,
        ema_decay=ema_decay,
    )


def select(params: Any, mask: Any) -> list[Any]:
    """The leaves where mask is True."""
    return [p for p, keep in zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True) if keep]


def all_finite(metrics: Metrics, names: Sequence[str]) -> jax.Array:
    """1 if these metrics are finite, else 0."""
    return jnp.isfinite(jnp.stack([metrics[name] for name in names])).all().astype(jnp.int32)
