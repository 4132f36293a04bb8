"""Gradient descent that protects its training data (DP-SGD, Abadi et al. 2016, arXiv:1607.00133).

Shapes: R rows of a batch, each a unit (a patient or an image) or padding; K examples of a unit.

The gradient of a unit is that of the model's loss on its own examples: their views and images are averaged before
clipping. The clipped gradients are summed on each device and then over all devices, noise is added once to the sum, and
the result is divided by the expected number of units, since the true number is secret. All later steps (optimiser,
averaged parameters, clipping by the optimiser) see only this result, and cost no privacy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from elk_jax.errors import UserError
from elk_jax.privacy import noise
from elk_jax.privacy.secret import NOISE_GENERATOR
from elk_jax.privacy.settings import Adaptive
from elk_jax.training import mesh as meshes
from elk_jax.training import state as states
from elk_jax.training.mesh import BATCH_AXES
from elk_jax.training.model import Batch, Constants, Metrics, Model, Params
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.state import TrainState
from elk_jax.training.step import ghost, per_example
from elk_jax.training.step.descent import descent
from elk_jax.training.step.separable import check_model
from elk_jax.training.step.step import Protection, Step
from elk_jax.turns import expected_turns

CLIPPED_SUMS = {"per_example": per_example.clipped_sum, "ghost": ghost.clipped_sum}
"""Two ways to compute the same sum, by the name of the setting."""


def private(model: Model, recipe: TrainingRecipe, protection: Protection, mesh: Mesh, seed: int = 0) -> Step:
    """A step that descends the noisy mean of the clipped gradients of units.

    Batches come from `data.batches.poisson`: `examples` [R, K, ...] with `valid` [R, K], and `unit` [R], -1 for
    padding, which adds nothing, whatever it contains. With `public_weight` they also have `public`, a batch of the
    model whose gradient is added with this weight, without clipping and noise.

    protection: its secret determines the noise, the random draws of the loss (by step and unit) and, in the data, the
    batches. It is a constant of the step, so that no compiled program contains it. seed: of fresh parameters.

    Metrics: only of what is published anyway: `grad_norm` of the noisy gradient and the other norms, the learning rate,
    an adaptive `clip_norm`, and `public_loss`. The loss on private examples is not reported: `finite` is 1 if the new
    parameters are finite. Non-finite entries in the gradient of a unit count as 0; with ghost norms, the whole gradient
    does.

    With parameters split over "fsdp", every device gathers all of them for its units.

    UserError for a model whose examples interact, and for unsuitable settings of the recipe; `update` raises one,
    during tracing, for batches that cannot be divided among devices and micro-batches.
    """
    check_model(model)
    mechanism, privacy = protection.mechanism, protection.mechanism.privacy
    clipping, micro_batch, summed = privacy.clipping, privacy.micro_batch, CLIPPED_SUMS[privacy.gradients]
    adaptive = clipping if isinstance(clipping, Adaptive) else None
    down = descent(model, recipe)

    def init(params: Params) -> TrainState:
        state = down.init(params)
        if adaptive is None:
            return state
        return state._replace(opt_state={"descent": state.opt_state, "clip_norm": jnp.float32(adaptive.bound)})

    def clipped_sum(params: Params, constants: Constants, batch: Batch, key: jax.Array, clip_norm: Any):
        """(the sum of the clipped gradients of trained parameters, None for others; half the number of units whose
        gradient is not clipped, minus half the number of the others), over all devices."""

        def loss(trained: Params, examples: Mapping[str, jax.Array], key: jax.Array) -> jax.Array:
            return model.loss(merged(trained, params), constants, filled(examples), key, jax.vmap)[0]

        unit = batch["unit"]
        keys = jax.vmap(lambda unit: jax.random.fold_in(key, unit))(unit)
        ordered = jax.tree.map(lambda x: by_micro_batches(x, micro_batch), (batch["examples"], keys, unit < 0))
        with expected_turns(-(-mechanism.batch_size // (mesh.size * micro_batch))):
            total, norms = summed(loss, clipping, clip_norm, micro_batch, only(params, down.trainable), *ordered)
        votes = jnp.where(ordered[-1], 0.0, jnp.where(norms <= clip_norm, 0.5, -0.5))
        return jax.lax.psum((total, votes.sum()), BATCH_AXES)

    on_devices = jax.shard_map(
        clipped_sum, mesh=mesh, in_specs=(P(), P(), P(BATCH_AXES), P(), P()), out_specs=P(), check_vma=False
    )

    def public_gradient(params: Params, constants: Constants, batch: Batch, key: jax.Array):
        def loss(trained: Params) -> jax.Array:
            return model.loss(merged(trained, params), constants, batch, key, meshes.shard_map_images(mesh))[0]

        return jax.value_and_grad(loss)(only(params, down.trainable))

    def update(state: TrainState, constants: Constants, batch: Mapping[str, Any]) -> tuple[TrainState, Metrics]:
        check_rows(len(batch["unit"]), mesh.size, micro_batch)
        noise_key, loss_key = (
            jax.random.fold_in(jax.random.wrap_key_data(data, impl=NOISE_GENERATOR), state.step)
            for data in constants["secret"]
        )
        gradient_key, count_key = jax.random.split(noise_key)
        unit_key, public_key = jax.random.split(loss_key)
        clip_norm = state.opt_state["clip_norm"] if adaptive else clipping.bound
        units = {name: batch[name] for name in ("examples", "unit")}
        total, votes = on_devices(state.params, constants["model"], units, unit_key, clip_norm)
        with jax.named_scope("noise"):
            noisy = with_noise(total, gradient_key, mechanism.gradient_noise * clip_norm)
            grads = jax.tree.map(lambda x: x / mechanism.batch_size, noisy)
        published: dict[str, Any] = {}
        if privacy.public_weight:
            published["public_loss"], public = public_gradient(
                state.params, constants["model"], batch["public"], public_key
            )
            grads = jax.tree.map(lambda x, y: x + privacy.public_weight * y, grads, public)
        whole = jax.tree.map(lambda p, g: jnp.zeros_like(p) if g is None else g.astype(p.dtype), state.params, grads,
                             is_leaf=lambda x: x is None)  # fmt: skip
        inner = state._replace(opt_state=state.opt_state["descent"]) if adaptive else state
        after, norms = down.update(inner, whole)
        if adaptive:
            count = noise.noisy(votes, mechanism.count_noise, count_key)
            share = 0.5 + count / mechanism.batch_size
            following = clip_norm * jnp.exp(-adaptive.rate * (share - adaptive.quantile))
            after = after._replace(opt_state={"descent": after.opt_state, "clip_norm": following.astype(jnp.float32)})
            published["clip_norm"] = clip_norm
        finite = jnp.isfinite(norms["param_norm"]) & jnp.isfinite(norms["grad_norm"])
        return after, published | norms | {"finite": finite.astype(jnp.int32)}

    return Step(
        fresh=model.init,
        init=init,
        update=update,
        evaluation_params=states.evaluation_params,
        constants={"model": model.constants, "secret": protection.secret.keys()},
        seed=seed,
        protection=protection,
    )


def with_noise(tree: Any, key: jax.Array, deviation: Any) -> Any:
    """`noise.noisy` for a tree. All leaves use parts of one draw, which compiles in a fraction of the time of separate
    draws."""
    leaves, structure = jax.tree.flatten(tree)
    ends = np.cumsum([leaf.size for leaf in leaves])
    drawn = deviation * noise.gaussian(key, int(ends[-1]))
    parts = [
        drawn[end - leaf.size : end].reshape(leaf.shape).astype(leaf.dtype) for leaf, end in zip(leaves, ends.tolist())
    ]
    return jax.tree.unflatten(structure, [noise.on_grid(leaf + part, deviation) for leaf, part in zip(leaves, parts)])


def filled(examples: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The examples [K, ...] of a unit, with missing ones replaced by copies of the first valid one.

    The loss of the copies does not count, but it is computed: arbitrary values in their place could make the gradient
    of the unit infinite.
    """
    rows = jnp.where(examples["valid"], jnp.arange(len(examples["valid"])), jnp.argmax(examples["valid"]))
    return {name: x if name == "valid" else jax.tree.map(lambda x: x[rows], x) for name, x in examples.items()}


def by_micro_batches(x: jax.Array, size: int) -> jax.Array:
    """[R, ...] reordered so that row r is in micro-batch r // size.

    With n micro-batches, optax puts row r into number r % n, and skips the last ones if they are all padding.
    """
    if size == 1:
        return x
    return jnp.swapaxes(x.reshape(-1, size, *x.shape[1:]), 0, 1).reshape(x.shape)


def only(params: Params, mask: Any) -> Params:
    """The leaves where mask is True, and None for the others."""
    return jax.tree.map(lambda p, keep: p if keep else None, params, mask)


def merged(trained: Params, params: Params) -> Params:
    """`trained`, with the leaves of `params` where it has None."""
    return jax.tree.map(lambda t, p: p if t is None else t, trained, params, is_leaf=lambda x: x is None)


def check_rows(rows: int, devices: int, micro_batch: int) -> None:
    """UserError if a batch does not give every device whole micro-batches."""
    if rows % (devices * micro_batch):
        raise UserError(
            f"{rows} rows cannot be divided among {devices} devices in micro-batches of {micro_batch}",
            where="privacy.micro_batch",
            todo=f"pad the batches to a multiple of {devices * micro_batch} rows",
        )
