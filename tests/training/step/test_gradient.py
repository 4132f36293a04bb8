import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elk_jax.errors import UserError
from elk_jax.training import optimizer, state
from elk_jax.training.step import gradient as steps
from tests.training import toy


def plain_loss(params, batch, rng):
    """A mean over examples that uses no randomness, so that micro-batches must add up exactly."""
    error = toy.task(params["head"]["bias"].dtype).predict(params, batch)["y"] - batch["y"]
    return jnp.mean(error**2), {"absolute": jnp.mean(jnp.abs(error))}


def make(loss, tx=None, ema=False, dtype=jnp.float32, **options):
    tx = tx or optax.sgd(0.1, momentum=0.9)
    made = state.create(toy.task(dtype).init(jax.random.key(0)), tx, ema)
    return made, steps.gradient_step(loss, tx, 0.9 if ema else None, 7, **options)


def test_a_step_is_gradient_descent_and_reports_its_norms():
    start, step = make(plain_loss, optax.sgd(0.1), schedule=lambda t: 0.1 + 0.0 * t)
    batch = next(toy.Batches())
    grads = jax.grad(lambda p: plain_loss(p, batch, None)[0])(start.params)
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
    def loss(params, batch, rng):
        return jnp.sum(params["head"]["bias"]), {"draw": jax.random.uniform(rng)}

    start, step = make(loss, accumulate=2)
    rng = jax.random.fold_in(jax.random.key(7), 0)
    wanted = np.mean([jax.random.uniform(jax.random.fold_in(rng, i)) for i in range(2)])
    assert float(step(start, next(toy.Batches()))[1]["draw"]) == pytest.approx(float(wanted))


def test_batch_that_does_not_divide_is_refused():
    start, step = make(plain_loss, accumulate=3)
    with pytest.raises(UserError, match="16 does not divide into 3"):
        step(start, next(toy.Batches(16)))


def test_randomness_follows_the_step_alone():
    def loss(params, batch, rng):
        return jnp.sum(params["head"]["bias"]), {"draw": jax.random.uniform(rng)}

    start, step = make(loss)
    batch, draws = next(toy.Batches()), []
    for _ in range(3):
        start, metrics = step(start, batch)
        draws.append(float(metrics["draw"]))
    wanted = [float(jax.random.uniform(jax.random.fold_in(jax.random.key(7), t))) for t in range(3)]
    assert draws == pytest.approx(wanted) and len(set(draws)) == 3


def test_frozen_parameters_get_no_gradient():
    params = toy.task().init(jax.random.key(0))
    config = {"frozen": ("stem",), "weight_decay": 0.1}
    tx = optimizer.build(config, optax.constant_schedule(0.1), params)
    mask = optimizer.trainable_mask(params, config)
    step = steps.gradient_step(plain_loss, tx, 0.9, 0, trainable=mask)
    batch = next(toy.Batches())
    head = {"norm": params["norm"], "head": params["head"]}
    grads = jax.grad(lambda h: plain_loss(params | h, batch, None)[0])(head)
    before = jax.tree.map(np.asarray, params)
    after, metrics = step(state.create(params, tx, True), batch)
    chex.assert_trees_all_equal(after.params["stem"], before["stem"])
    chex.assert_trees_all_equal(after.ema_params["stem"], before["stem"])
    assert float(metrics["grad_norm"]) == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)
    assert not np.array_equal(after.params["head"]["bias"], before["head"]["bias"])


def test_smoothed_parameters_follow_the_trained_ones():
    start, step = make(plain_loss, optax.sgd(0.1), ema=True)
    before = jax.tree.map(np.asarray, start.params)
    after, _ = step(start, next(toy.Batches()))
    # at step 0 the decay is 0.1
    wanted = jax.tree.map(lambda e, p: 0.1 * e + 0.9 * np.asarray(p), before, after.params)
    chex.assert_trees_all_close(after.ema_params, wanted, rtol=1e-5, atol=1e-7)


def test_the_state_is_donated_nothing_is_traced_twice_and_nothing_waits_for_the_host():
    counted = chex.assert_max_traces(plain_loss, n=1)
    start, step = make(counted, ema=True)
    batches = [jax.device_put(next(toy.Batches(seed=s))) for s in range(3)]
    start = jax.device_put(start)
    first = start.params["head"]["kernel"]
    with jax.transfer_guard("disallow"):
        for batch in batches:
            start, _ = step(start, batch)
    assert first.is_deleted()


@pytest.mark.parametrize(
    "terms, loss, grad, found",
    [
        ({"box": 1.0, "class": 2.0}, 3.0, 1.0, None),
        ({"box": 1.0, "class": float("nan")}, float("nan"), float("nan"), "class"),
        ({"box": float("inf"), "class": float("nan")}, float("nan"), 1.0, "box"),
        ({"box": 1.0, "class": 2.0}, float("inf"), 1.0, "loss"),
        ({"box": 1.0, "class": 2.0}, 3.0, float("nan"), "grad_norm"),
    ],
)
def test_first_nonfinite_term_is_named(terms, loss, grad, found):
    finite = int(np.isfinite(loss) and np.isfinite(grad))
    metrics = {"finite": finite, "grad_norm": grad, "loss": loss, "update_norm": grad, "param_norm": grad} | terms
    assert steps.first_nonfinite(metrics) == found


def test_a_term_that_may_be_undefined_does_not_stop_a_finite_step():
    metrics = {"finite": 1, "loss": 1.0, "grad_norm": 1.0, "accuracy": float("nan")}
    assert steps.first_nonfinite(metrics) is None


def test_nonfinite_gradient_is_flagged_on_the_device():
    # the loss is finite, its gradient is not: d sqrt(x) / dx at 0
    start, step = make(lambda params, batch, rng: (jnp.sqrt(jnp.sum(params["head"]["bias"])), {}))
    _, metrics = step(start, next(toy.Batches()))
    assert np.isfinite(metrics["loss"]) and int(metrics["finite"]) == 0
    assert steps.first_nonfinite({k: float(v) for k, v in metrics.items()}) == "grad_norm"
