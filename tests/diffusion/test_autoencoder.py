"""The autoencoder beside its outputs (tests/weights/test_diffusers_golden.py): sizes, scaling, bad input."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.diffusion import autoencoder
from elk_jax.diffusion.autoencoder import AutoencoderConfig, AutoencoderKL
from tests.refusals import refused

TINY = AutoencoderConfig(in_channels=1, out_channels=1, latent_channels=2, block_out_channels=(4, 4), norm_num_groups=2)


def shapes(config):
    return jax.eval_shape(lambda rng: autoencoder.init(config, rng), jax.random.key(0))


def apply(config, shape, method, dtype=jnp.float32):
    model = AutoencoderKL(config)
    run = lambda params, x: model.apply({"params": params}, x, method=method)
    return jax.eval_shape(run, shapes(config), jax.ShapeDtypeStruct(shape, dtype))


def test_size_of_the_published_autoencoder():
    leaves = jax.tree.leaves(shapes(AutoencoderConfig()))
    assert len(leaves) == 248 and sum(math.prod(leaf.shape) for leaf in leaves) == 83_653_863


def test_shapes_and_types():
    for dtype in ("float32", "bfloat16"):
        config = dataclasses.replace(TINY, dtype=dtype)
        mean, logvar = apply(config, (2, 6, 10, 1), "encode")
        assert mean.shape == logvar.shape == (2, 3, 5, 2) and mean.dtype == logvar.dtype == jnp.float32
        image = apply(config, (2, 3, 5, 2), "decode")
        assert image.shape == (2, 6, 10, 1) and image.dtype == jnp.float32
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes(config))} == {jnp.dtype(jnp.float32)}
    assert AutoencoderConfig().factor == 8 and TINY.factor == 2


def test_recomputing_activations_keeps_the_parameters():
    assert shapes(dataclasses.replace(TINY, remat=True)) == shapes(TINY)


def test_an_autoencoder_without_attention():
    names = shapes(dataclasses.replace(TINY, mid_block_add_attention=False))["encoder"]["mid_block"]
    assert set(names) == {"resnets_0", "resnets_1"}


def test_scaling():
    mean, logvar = jnp.full((2, 3, 3, 2), 4.0), jnp.full((2, 3, 3, 2), 2 * math.log(0.5))
    latents = autoencoder.to_latents(mean, logvar, TINY)
    np.testing.assert_allclose(latents, 4 * 0.18215, rtol=1e-6)
    np.testing.assert_allclose(autoencoder.from_latents(latents, TINY), mean, rtol=1e-6)
    many = jnp.full((1, 100, 100, 2), 4.0)
    drawn = autoencoder.to_latents(many, jnp.full_like(many, 2 * math.log(0.5)), TINY, jax.random.key(0))
    drawn = np.asarray(autoencoder.from_latents(drawn, TINY))
    assert abs(drawn.mean() - 4) < 0.02 and abs(drawn.std() - 0.5) < 0.02


@pytest.mark.parametrize(
    "shape, where, words",
    [((1, 8, 8, 3), "in_channels", (3, 1)), ((1, 7, 8, 1), "image", (7, 8, 2))],
)
def test_bad_images(shape, where, words):
    with refused(*words, where=where):
        apply(TINY, shape, "encode")


@pytest.mark.parametrize(
    "content, where, words",
    [
        ({"block_out_channels": []}, "vae", ("block_out_channels",)),
        ({"attention": "fast"}, "vae", ("attention", "'fast'")),
        ({"act_fn": "relu"}, "vae", ("act_fn", "'relu'")),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 4}, "vae", ("down_block_types", "AttnDown")),
        ({"use_post_quant_conv": False}, "vae", ("use_post_quant_conv", "False")),
        ({"shift_factor": 0.1}, "vae", ("shift_factor", 0.1)),
        ({"scaling_factor": "large"}, "vae", ("scaling_factor", "'large'", "float")),
        ({"layers_per_block": 64, "block_out_channels": [32] * 9}, "layers_per_block", (585,)),
    ],
)
def test_bad_configuration(content, where, words):
    with refused(*words, where=where):
        autoencoder.autoencoder_config(content, "vae")
