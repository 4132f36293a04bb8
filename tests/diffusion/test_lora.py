"""Low-rank adapters: what they add, what they leave alone, jit, grad and vmap."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.diffusion import lora
from tests.refusals import refused


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(6, name="to_out_0")(nn.Dense(4, use_bias=False, name="to_q")(x))


class Model(nn.Module):
    """Named as a U-Net's parts."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3), name="conv_in")(x)
        return Attention(name="attn1")(nn.LayerNorm(name="norm1")(x))


MODEL, X = Model(), jnp.asarray(np.random.RandomState(0).standard_normal((2, 4, 4, 3)), jnp.float32)


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(0), X)["params"]


@pytest.fixture(scope="module")
def adapters(params):
    made = lora.init_lora(jax.random.key(1), params, 2, "to_q|conv_in")
    return jax.tree.map(lambda leaf: leaf + 0.1, made)


def test_attention_is_adapted_by_default_and_starts_as_nothing(params):
    made = lora.init_lora(jax.random.key(1), params, 2)
    assert {k: (v["a"].shape, v["b"].shape) for k, v in made.items()} == {
        "attn1/to_out_0": ((4, 2), (2, 6)),
        "attn1/to_q": ((6, 2), (2, 4)),
    }
    jax.tree.map(np.testing.assert_array_equal, lora.apply_lora(params, made), params)
    assert all(0 < np.abs(factors["a"]).max() <= 1 / np.sqrt(len(factors["a"])) for factors in made.values())


def test_kernels_get_alpha_over_rank_times_the_product(params, adapters):
    made = lora.apply_lora(params, adapters, alpha=3.0)
    added = made["attn1"]["to_q"]["kernel"] - params["attn1"]["to_q"]["kernel"]
    np.testing.assert_allclose(added, 1.5 * adapters["attn1/to_q"]["a"] @ adapters["attn1/to_q"]["b"], atol=1e-6)
    np.testing.assert_array_equal(made["norm1"]["scale"], params["norm1"]["scale"])
    np.testing.assert_array_equal(made["attn1"]["to_out_0"]["kernel"], params["attn1"]["to_out_0"]["kernel"])


def test_a_convolution_is_adapted_as_two_convolutions(params, adapters):
    a, b = adapters["conv_in"]["a"], adapters["conv_in"]["b"]
    plain = nn.Conv(6, (3, 3)).apply({"params": params["conv_in"]}, X)
    down = nn.Conv(2, (3, 3), use_bias=False).apply({"params": {"kernel": a.reshape(3, 3, 3, 2)}}, X)
    adapted = nn.Conv(6, (3, 3)).apply({"params": lora.apply_lora(params, adapters)["conv_in"]}, X)
    np.testing.assert_allclose(adapted, plain + down @ b, atol=1e-5)


def test_merging_is_applying(params, adapters):
    merged, applied = (f(params, adapters, 0.7) for f in (lora.merge, lora.apply_lora))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merged, applied)
    assert isinstance(merged["conv_in"]["kernel"], np.ndarray)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    for f in (lora.merge, lora.apply_lora):
        assert f(half, adapters)["conv_in"]["kernel"].dtype == jnp.bfloat16


def test_gradients_reach_the_adapters_and_vmap_takes_many(params, adapters):
    def loss(small):
        return jnp.square(MODEL.apply({"params": lora.apply_lora(params, small)}, X)).mean()

    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 0 * leaf]), adapters)
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss)))(many)
    assert values[0] != values[1]
    assert float(values[1]) == pytest.approx(float(jnp.square(MODEL.apply({"params": params}, X)).mean()), rel=1e-5)
    for factors in gradients.values():
        assert np.abs(factors["a"][0]).max() > 0 and np.abs(factors["b"][0]).max() > 0


def test_adapters_can_be_planned_from_shapes_alone():
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), X)["params"]
    assert set(lora.init_lora(jax.random.key(0), shapes, 1)) == {"attn1/to_q", "attn1/to_out_0"}


def test_mistakes_are_named(params, adapters):
    with refused("'to_k'", "attn1/to_q", where="lora.targets"):
        lora.init_lora(jax.random.key(0), params, 2, "to_k")
    with pytest.raises(ValueError, match="attn2/to_q"):
        lora.apply_lora(params, {"attn2/to_q": adapters["attn1/to_q"]})
    with pytest.raises(ValueError, match=r"\(6, 4\)"):
        lora.apply_lora(params, {"attn1/to_q": adapters["conv_in"]})
