"""One kind of training: what happens between two batches, and how it is laid out on a mesh."""

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
    """How a step protects the data that it is trained on.

    The loop makes no more than `mechanism.steps` updates, and keeps the ledger and the secret in its checkpoints, which
    only their owner may read. It publishes what the metrics have, and no times, which follow the sizes of batches.
    """

    mechanism: Mechanism
    secret: Secret


@dataclass(frozen=True, eq=False)
class Step:
    """A training as pure functions. Optimisers, averages, accumulation and random numbers are its own business.

    fresh:     rng -> params that nothing has trained, of all players where there are several.
    init:      params -> the state before the first update.
    update:    (state, constants, batch) -> (state with `step` one higher, metrics). The metrics have `loss`, which
               progress shows, and `finite`, 1 or 0: whether training may continue from the new state.
    evaluation_params: state -> the params that are evaluated and shipped. It reads only `params` and `ema_params`.
    constants: arrays for `update` that no state holds, so no checkpoint and no result either.
    seed:      of `fresh` params.
    protection: of the training data; None where they are not protected.
    """

    fresh: Callable[[jax.Array], Params]
    init: Callable[[Params], TrainState]
    update: Callable[[TrainState, Constants, Batch], tuple[TrainState, Metrics]]
    evaluation_params: Callable[[TrainState], Params]
    constants: Constants = field(default_factory=dict)
    seed: int = 0
    protection: Protection | None = None


class Program(NamedTuple):
    """A step on a mesh. state: shapes with their layout. init, update: jitted; both donate their first argument."""

    state: TrainState
    init: Any
    update: Any


def on_mesh(step: Step, mesh: Mesh) -> Program:
    """The jitted functions of a step whose state lies on `mesh` as `mesh.tree_shardings` says; nothing is computed."""
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
    """The shapes of `step.fresh`; nothing is computed."""
    return jax.eval_shape(step.fresh, jax.random.key(step.seed))


def fresh_params(step: Step, mesh: Mesh) -> Params:
    """Params that nothing has trained, laid out on `mesh`."""
    return meshes.init_sharded(step.fresh, jax.random.key(step.seed), mesh=mesh)
