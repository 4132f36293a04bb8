"""The interface of a kind of training: one update per batch, and its layout on a mesh."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from elk_jax.privacy.mechanism import Mechanism
from elk_jax.privacy.secret import Secret
from elk_jax.training import mesh as meshes
from elk_jax.training.model import Batch, Constants, Metrics, Params
from elk_jax.training.state import TrainState


@dataclass(frozen=True)
class Protection:
    """How a step protects its training data.

    The loop makes at most `mechanism.steps` updates, and keeps the ledger and the secret in its checkpoints, which only
    their owner may read. It publishes the metrics, but no times, which would reveal the sizes of batches.
    """

    mechanism: Mechanism
    secret: Secret


@dataclass(frozen=True, eq=False)
class Step:
    """A kind of training as pure functions. It handles optimisers, averages, accumulation and random numbers itself.

    fresh:     rng -> untrained params, of all players if there are several.
    init:      params -> the state before the first update.
    update:    (state, constants, batch) -> (state with `step` one higher, metrics). The metrics have `loss`, which
               progress shows, and `finite`, 1 or 0: whether training may continue from the new state.
    evaluation_params: state -> the params that are evaluated and shipped. It reads only `params` and `ema_params`.
    constants: arrays for `update` that are not in the state, and therefore in no checkpoint or result.
    seed:      of `fresh` params.
    protection: of the training data; None without protection.
    """

    fresh: Callable[[jax.Array], Params]
    init: Callable[[Params], TrainState]
    update: Callable[[TrainState, Constants, Batch], tuple[TrainState, Metrics]]
    evaluation_params: Callable[[TrainState], Params]
    constants: Constants = field(default_factory=dict)
    seed: int = 0
    protection: Protection | None = None


class Program(NamedTuple):
    """A step on a mesh. state: shapes with shardings. init, update: jitted; both donate their first argument."""

    state: TrainState
    init: Any
    update: Any


def on_mesh(step: Step, mesh: Mesh) -> Program:
    """The jitted functions of a step whose state is placed on `mesh` by `mesh.tree_shardings`; computes nothing."""
    abstract = jax.eval_shape(step.init, fresh_shapes(step))
    layout = meshes.tree_shardings(abstract, mesh)
    return Program(
        state=jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, layout),
        init=jax.jit(step.init, donate_argnums=0, out_shardings=layout),
        update=jax.jit(
            meshes.traced_on(mesh, step.update), donate_argnums=0, out_shardings=(layout, meshes.replicated(mesh))
        ),
    )


def fresh_shapes(step: Step) -> Params:
    """The shapes of `step.fresh`; computes nothing."""
    return jax.eval_shape(step.fresh, jax.random.key(step.seed))


def fresh_params(step: Step, mesh: Mesh) -> Params:
    """Untrained params, placed on `mesh`."""
    return meshes.init_sharded(step.fresh, jax.random.key(step.seed), mesh=mesh)
