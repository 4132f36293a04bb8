import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elk_jax.training import state


def test_smoothing_warms_up_then_holds_its_decay():
    ema, params = {"w": jnp.array(0.0)}, {"w": jnp.array(1.0)}
    # at t = 0 the decay is 1/10; far on it is the given one
    assert float(state.update_ema(ema, params, jnp.array(0), 0.99)["w"]) == pytest.approx(0.9)
    assert float(state.update_ema(ema, params, jnp.array(8), 0.99)["w"]) == pytest.approx(0.5)
    assert float(state.update_ema(ema, params, jnp.array(10**6), 0.99)["w"]) == pytest.approx(0.01, rel=1e-4)


def test_a_constant_parameter_keeps_its_value_to_the_bit():
    params = {"w": jax.random.normal(jax.random.key(0), (1000,))}
    ema = params
    for step in range(20):
        ema = state.update_ema(ema, params, jnp.array(step), 0.997)
    np.testing.assert_array_equal(ema["w"], params["w"])


def test_float64_stays_float64():
    with jax.enable_x64(True):
        params = {"w": jnp.ones(3, jnp.float64)}
        assert state.update_ema(params, params, jnp.array(3, jnp.int32), 0.9)["w"].dtype == jnp.float64


def test_smoothed_copy_has_its_own_buffer():
    params = {"w": jnp.ones(3)}
    made = state.create(params, optax.sgd(0.1), ema=True)
    assert made.ema_params["w"].unsafe_buffer_pointer() != params["w"].unsafe_buffer_pointer()
    assert state.evaluation_params(made) is made.ema_params
    assert state.evaluation_params(state.create(params, optax.sgd(0.1), ema=False)) is params
