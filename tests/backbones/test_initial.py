import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.backbones.initial import draw_params

MODEL = nn.Dense(300)


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg"])
def test_the_model_s_own_shapes_and_spreads(kind):
    params = draw_params(MODEL, jax.random.key(0, impl=kind), jnp.zeros((1, 200)))
    expected = MODEL.init(jax.random.key(0), jnp.zeros((1, 200)))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    np.testing.assert_allclose(params["kernel"].std(), expected["kernel"].std(), rtol=0.02)
    assert not params["bias"].any()


def test_numbers_follow_from_the_key_also_inside_another_program():
    one, same, other = (draw_params(MODEL, jax.random.key(seed), jnp.zeros((1, 200))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one["kernel"], same["kernel"])
    assert (one["kernel"] != other["kernel"]).mean() > 0.99
    inside = jax.jit(lambda rng: draw_params(MODEL, rng, jnp.zeros((1, 200))))(jax.random.key(0))
    np.testing.assert_array_equal(one["kernel"], inside["kernel"])
    shapes = jax.eval_shape(lambda: draw_params(MODEL, jax.random.key(0), jnp.zeros((1, 200))))
    assert shapes["kernel"].shape == (200, 300)
