"""The U-Net beside its outputs (tests/weights/test_diffusers_golden.py): sizes, precision, recomputation, bad input."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.diffusion import unet
from elk_jax.diffusion.attention import SpatialTransformer
from elk_jax.diffusion.layers import ResnetBlock
from elk_jax.diffusion.unet import UNet2DCondition, UNetConfig
from tests.refusals import refused

TINY = UNetConfig(
    in_channels=2,
    out_channels=1,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    block_out_channels=(4, 8),
    layers_per_block=1,
    attention_head_dim=2,
    cross_attention_dim=None,
    norm_num_groups=2,
)
SD2 = {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024, "use_linear_projection": True}


def shapes(config):
    return jax.eval_shape(lambda rng: unet.init(config, rng), jax.random.key(0))


def output(config, sample=(1, 8, 8, 2), text=None):
    """Shape and type of the output, without computing it."""
    make = lambda s, dtype=jnp.float32: None if s is None else jax.ShapeDtypeStruct(s, dtype)
    apply = lambda p, *inputs: UNet2DCondition(config).apply({"params": p}, *inputs)
    return jax.eval_shape(apply, shapes(config), make(sample), make(sample[:1], jnp.int32), make(text))


@pytest.mark.parametrize("settings, count", [({}, 859_535_364), (SD2, 865_925_124)], ids=["sd1", "sd2"])
def test_sizes_of_published_inpainters(settings, count):
    leaves = jax.tree.leaves(shapes(UNetConfig(in_channels=9, **settings)))
    assert len(leaves) == 686 and sum(math.prod(leaf.shape) for leaf in leaves) == count


def test_defaults_are_the_published_text_to_image_model():
    averaged = {"decay": 0.9999, "inv_gamma": 1.0, "optimization_step": 60000, "use_ema_warmup": False}
    for more in ({}, averaged):
        assert unet.unet_config({"_class_name": "UNet2DConditionModel", "sample_size": 64} | more) == UNetConfig()


@pytest.fixture(scope="module")
def small():
    """A network of one block with parameters away from their zeros, and inputs."""
    config = dataclasses.replace(TINY, down_block_types=("CrossAttnDownBlock2D",), block_out_channels=(4,))
    random = np.random.RandomState(0)
    params = jax.tree.map(lambda leaf: 0.3 * random.randn(*leaf.shape).astype("f4"), shapes(config))
    return config, params, (random.randn(2, 2, 4, 2).astype("f4"), np.array([3, 700]))


def loss(config, params, inputs):
    return jnp.mean(jnp.square(UNet2DCondition(config).apply({"params": params}, *inputs)))


def test_every_parameter_is_used_in_both_precisions(small):
    config, params, inputs = small
    value, gradient = jax.jit(jax.value_and_grad(lambda p: loss(config, p, inputs)))(params)
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    half = dataclasses.replace(config, dtype="bfloat16")
    assert abs(jax.jit(lambda p: loss(half, p, inputs))(params) / value - 1) < 0.05


def test_bfloat16_computes_with_float32_parameters(small):
    config = dataclasses.replace(small[0], dtype="bfloat16")
    gradient = jax.eval_shape(jax.grad(lambda p: loss(config, p, small[2])), shapes(config))
    for tree in (shapes(config), gradient):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype(jnp.float32)}
    assert output(config).dtype == jnp.float32


def test_every_residual_and_attention_block_is_recomputed(small):
    config, params, inputs = small
    programs = [
        str(jax.make_jaxpr(lambda p, c=c: loss(c, p, inputs))(params))
        for c in (config, dataclasses.replace(config, remat=True))
    ]
    counts = [program.count("= checkpoint[") + program.count("= remat2[") for program in programs]
    assert counts == [0, 5 + 4]  # residual blocks, attentions


def test_float64_stays_float64():
    with jax.enable_x64(True):
        config = dataclasses.replace(TINY, dtype="float64")
        assert output(config).dtype == jnp.float64
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes(config))} == {jnp.dtype(jnp.float64)}


def test_residual_branches_start_at_zero():
    x = jnp.ones((1, 2, 2, 4))
    block = ResnetBlock(4, 2, 1e-5, jnp.dtype("float32"))
    transformer = SpatialTransformer(2, 1, 2, False, "xla", jnp.dtype("float32"))
    for module, inputs, last in ((block, (x, jnp.ones((1, 3))), "conv2"), (transformer, (x, None), "proj_out")):
        params = jax.jit(lambda rng, m=module, i=inputs: m.init(rng, *i))(jax.random.key(0))["params"]
        zero = [name for name, layer in params.items() if "kernel" in layer and not np.any(layer["kernel"])]
        assert zero == [last]


def test_timestep_embedding():
    found = unet.timestep_embedding(jnp.array([0, 10, 999]), 8)
    rates = 10000.0 ** (-np.arange(4) / 4)
    angles = np.array([0, 10, 999])[:, None] * rates
    np.testing.assert_allclose(found, np.concatenate([np.cos(angles), np.sin(angles)], 1), atol=1e-4)


@pytest.mark.parametrize(
    "settings, shape, text, where, words",
    [
        ({}, (1, 8, 8, 3), None, "in_channels", (3, 2, 9)),
        ({}, (1, 9, 8, 2), None, "sample", (9, 8, 2)),
        ({}, (1, 8, 8, 2), (1, 3, 5), "cross_attention_dim", (5, "no text")),
        ({"cross_attention_dim": 6}, (1, 8, 8, 2), None, "cross_attention_dim", ("no text", 6)),
        ({"cross_attention_dim": 6}, (1, 8, 8, 2), (1, 3, 5), "cross_attention_dim", (5, 6)),
        ({"attention_head_dim": 3}, (1, 8, 8, 2), None, "attention_head_dim", (8, 3)),
        ({"norm_num_groups": 3}, (1, 8, 8, 2), None, "norm_num_groups", (4, 3)),
    ],
)
def test_bad_input(settings, shape, text, where, words):
    with refused(*words, where=where):
        output(dataclasses.replace(TINY, **settings), shape, text)


@pytest.mark.parametrize(
    "settings, where, words",
    [
        ({"down_block_types": ("DownBlock2D",)}, "down_block_types", (1, 2)),
        ({"down_block_types": (), "block_out_channels": ()}, "down_block_types", (0,)),
        ({"down_block_types": ("DownBlock2D", "ResBlock")}, "down_block_types", ("ResBlock",)),
        ({"attention_head_dim": (1, 2, 3)}, "attention_head_dim", (3, 2)),
        ({"attention": "flash"}, "attention", ("'flash'",)),
        ({"layers_per_block": 64, "transformer_layers_per_block": 64}, "layers_per_block", (8450,)),
        ({"norm_eps": 2**31}, "norm_eps", (2**31,)),
    ],
)
def test_bad_configuration(settings, where, words):
    with refused(*words, where=where):
        dataclasses.replace(TINY, **settings)
