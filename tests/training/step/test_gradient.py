import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elk_jax.training import mesh as meshes
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.schedules import Constant
from elk_jax.training.step.gradient import gradient
from elk_jax.training.step.step import on_mesh
from elk_jax.training.window import first_nonfinite
from tests.refusals import refused
from tests.training import toy

PLAIN = OptimizerConfig(name="sgd", momentum=0.0, weight_decay=0.0)
MOMENTUM = OptimizerConfig(name="sgd", momentum=0.9, weight_decay=0.0)


def predicted(params, batch):
    return toy.model(params["head"]["bias"].dtype).predict(params, {}, batch, jax.vmap)["y"]


def plain_loss(params, constants, batch, rng, map_images):
    """A mean over examples that uses no randomness, so that micro-batches must add up exactly."""
    error = predicted(params, batch) - batch["y"]
    return jnp.mean(error**2), {"absolute": jnp.mean(jnp.abs(error))}


def drawing_loss(params, constants, batch, rng, map_images):
    return jnp.sum(params["head"]["bias"]), {"draw": jax.random.uniform(rng)}


def make(loss, optimizer=MOMENTUM, dtype=jnp.float32, **options):
    """(the state before the first update, (state, batch) -> (state, metrics))"""
    recipe = TrainingRecipe(optimizer=optimizer, schedule=Constant(base=0.1), **options)
    mesh, model = meshes.make_mesh(), dataclasses.replace(toy.model(dtype), loss=loss)
    program = on_mesh(gradient(model, recipe, mesh, seed=7), mesh)
    return program.init(model.init(jax.random.key(0))), lambda state, batch: program.update(state, {}, batch)


def gradients(params, batch):
    return jax.grad(lambda p: plain_loss(p, {}, batch, None, jax.vmap)[0])(params)


def test_a_step_is_gradient_descent_and_reports_its_norms():
    start, step = make(plain_loss, PLAIN)
    batch = next(toy.Batches())
    grads = gradients(start.params, batch)
    wanted = jax.tree.map(lambda p, g: p - 0.1 * g, start.params, grads)
    after, metrics = step(start, batch)
    chex.assert_trees_all_close(after.params, wanted, rtol=1e-5, atol=1e-6)
    assert int(after.step) == 1 and after.step.dtype == jnp.int32
    assert float(metrics["grad_norm"]) == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)
    assert float(metrics["update_norm"]) == pytest.approx(0.1 * float(optax.tree.norm(grads)), rel=1e-5)
    assert float(metrics["param_norm"]) == pytest.approx(float(optax.tree.norm(wanted)), rel=1e-5)
    assert float(metrics["learning_rate"]) == pytest.approx(0.1)
    assert int(metrics["finite"]) == 1
    assert {"loss", "absolute"} <= metrics.keys()


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_equals_the_big_batch(parts):
    with jax.enable_x64(True):
        batches = [next(toy.Batches(dtype=np.float64, seed=s)) for s in range(3)]
        whole, whole_step = make(plain_loss, dtype=jnp.float64)
        split, split_step = make(plain_loss, dtype=jnp.float64, accumulate=parts)
        for batch in batches:
            whole, a = whole_step(whole, batch)
            split, b = split_step(split, batch)
        chex.assert_trees_all_close(whole, split, rtol=1e-12)
        chex.assert_trees_all_close(a, b, rtol=1e-12)


def test_accumulation_draws_other_numbers_for_each_micro_batch():
    start, step = make(drawing_loss, accumulate=2)
    rng = jax.random.fold_in(jax.random.key(7), 0)
    wanted = np.mean([jax.random.uniform(jax.random.fold_in(rng, i)) for i in range(2)])
    assert float(step(start, next(toy.Batches()))[1]["draw"]) == pytest.approx(float(wanted))


def test_batch_that_does_not_divide_is_refused():
    start, step = make(plain_loss, accumulate=3)
    with refused(16, 3, where="accumulate"):
        step(start, next(toy.Batches(16)))


def test_randomness_follows_the_step_alone():
    start, step = make(drawing_loss)
    batch, draws = next(toy.Batches()), []
    for _ in range(3):
        start, metrics = step(start, batch)
        draws.append(float(metrics["draw"]))
    wanted = [float(jax.random.uniform(jax.random.fold_in(jax.random.key(7), t))) for t in range(3)]
    assert draws == pytest.approx(wanted) and len(set(draws)) == 3


def test_frozen_parameters_get_no_gradient():
    decaying = OptimizerConfig(name="sgd", weight_decay=0.1, frozen=("stem",))
    start, step = make(plain_loss, decaying, ema_decay=0.9)
    batch = next(toy.Batches())
    before = jax.tree.map(np.asarray, start.params)
    head = {"norm": before["norm"], "head": before["head"]}
    grads = jax.grad(lambda h: plain_loss(before | h, {}, batch, None, jax.vmap)[0])(head)
    after, metrics = step(start, batch)
    chex.assert_trees_all_equal(after.params["stem"], before["stem"])
    chex.assert_trees_all_equal(after.ema_params["stem"], before["stem"])
    assert float(metrics["grad_norm"]) == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)
    assert not np.array_equal(after.params["head"]["bias"], before["head"]["bias"])


def test_smoothed_parameters_follow_the_trained_ones():
    start, step = make(plain_loss, PLAIN, ema_decay=0.9)
    before = jax.tree.map(np.asarray, start.params)
    after, _ = step(start, next(toy.Batches()))
    # at step 0 the decay is 0.1
    wanted = jax.tree.map(lambda e, p: 0.1 * e + 0.9 * np.asarray(p), before, after.params)
    chex.assert_trees_all_close(after.ema_params, wanted, rtol=1e-5, atol=1e-7)


def test_the_state_is_donated_nothing_is_traced_twice_and_nothing_waits_for_the_host():
    counted = chex.assert_max_traces(plain_loss, n=1)
    start, step = make(counted, ema_decay=0.9)
    batches = [meshes.put_batch(next(toy.Batches(seed=s)), meshes.make_mesh()) for s in range(3)]
    first = start.params["head"]["kernel"]
    with jax.transfer_guard("disallow"):
        for batch in batches:
            start, _ = step(start, batch)
    assert first.is_deleted()


def test_per_image_functions_are_mapped_shard_by_shard():
    """The step chooses how: a model that maps by itself would gather its batch on every device."""
    names = []

    def loss(params, constants, batch, rng, map_images):
        names.append(str(jax.make_jaxpr(map_images(lambda row: row + 1))(batch["x"])))
        return plain_loss(params, constants, batch, rng, map_images)

    start, step = make(loss)
    step(start, next(toy.Batches()))
    assert all("shard_map" in name for name in names) and names


def test_nonfinite_gradient_is_flagged_on_the_device():
    # the loss is finite, its gradient is not: d sqrt(x) / dx at 0
    start, step = make(lambda params, *_: (jnp.sqrt(jnp.sum(params["head"]["bias"])), {}))
    _, metrics = step(start, next(toy.Batches()))
    assert np.isfinite(metrics["loss"]) and int(metrics["finite"]) == 0
    assert first_nonfinite({k: float(v) for k, v in metrics.items()}) == "grad_norm"


def test_an_update_that_overflows_is_flagged():
    # loss and gradient (1e3) are finite, but 0.1 times 1e38 times the gradient is not
    start, step = make(
        lambda params, *_: (1e3 * jnp.sum(params["head"]["bias"]), {}),
        dataclasses.replace(PLAIN, multipliers=((".", 1e38),)),
    )
    after, metrics = step(start, next(toy.Batches()))
    assert not np.isfinite(after.params["head"]["bias"]).all()
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"]) and int(metrics["finite"]) == 0
