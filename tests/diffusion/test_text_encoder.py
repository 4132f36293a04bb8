"""The text encoder beside its outputs (tests/weights/test_diffusers_golden.py)."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.diffusion import text_encoder
from elk_jax.diffusion.text_encoder import CLIPTextEncoder, TextConfig
from tests.refusals import refused

TINY = TextConfig(
    vocab_size=9,
    max_position_embeddings=6,
    hidden_size=4,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
)
SD2 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}


def shapes(config):
    return jax.eval_shape(lambda rng: text_encoder.init(config, rng), jax.random.key(0))


@pytest.mark.parametrize("settings, count", [({}, 123_060_480), (SD2, 340_387_840)], ids=["sd1", "sd2"])
def test_sizes_of_published_encoders(settings, count):
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(TextConfig(**settings)))) == count


def test_a_token_sees_those_before_it_alone():
    random = np.random.RandomState(0)
    params = jax.tree.map(lambda leaf: random.randn(*leaf.shape).astype("f4"), shapes(TINY))
    ids = np.array([[1, 2, 3, 4, 5, 6], [1, 2, 3, 7, 5, 6]])
    found = np.asarray(jax.jit(CLIPTextEncoder(TINY).apply)({"params": params}, ids))
    np.testing.assert_array_equal(found[0, :3], found[1, :3])
    assert (np.abs(found[0, 3:] - found[1, 3:]).max(-1) > 1e-4).all()


def test_precision_and_recomputation():
    config = dataclasses.replace(TINY, dtype="bfloat16", remat=True)
    assert shapes(config) == shapes(TINY)
    run = lambda p, ids: CLIPTextEncoder(config).apply({"params": p}, ids)
    found = jax.eval_shape(run, shapes(config), jax.ShapeDtypeStruct((2, 6), jnp.int32))
    assert found.shape == (2, 6, 4) and found.dtype == jnp.float32


def test_quick_gelu():
    x = np.array([-2.0, 0.0, 1.0])
    np.testing.assert_allclose(text_encoder.quick_gelu(jnp.asarray(x)), x / (1 + np.exp(-1.702 * x)), rtol=1e-6)


def test_bad_input():
    with refused(7, 6, where="max_position_embeddings"):
        text = lambda p: CLIPTextEncoder(TINY).apply({"params": p}, jnp.zeros((1, 7), jnp.int32))
        jax.eval_shape(text, shapes(TINY))
    with refused("'t5'"):
        text_encoder.text_config({"model_type": "t5"})
    with refused("'relu'", "hidden_act"):
        text_encoder.text_config({"hidden_act": "relu"})
    with refused(4, 3, where="num_attention_heads"):
        dataclasses.replace(TINY, num_attention_heads=3)
