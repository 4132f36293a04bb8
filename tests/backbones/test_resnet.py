"""ResNets: parameter counts of the published networks, strides, blocks by identities."""

import dataclasses
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax import fields
from elk_jax.backbones import resnet
from elk_jax.backbones.norms import NORMS, norm_from_name, zero_residual_norm
from elk_jax.backbones.resnet import (
    BasicBlock,
    Bottleneck,
    ResNet,
    ResNetConfig,
    max_pool,
    rectified_sum,
)
from elk_jax.errors import UserError

CHECKPOINT = jax.make_jaxpr(jax.checkpoint(lambda x: x * 2))(1.0).eqns[0].primitive.name
GROUPS = norm_from_name("gn", groups=2)

EXPANSION = {BasicBlock: 1, Bottleneck: 4}
"""Channels that a block gives, in widths."""


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).normal(size=(1, 32, 48, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("depth", "published"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160)]
)
@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_parameter_counts_are_those_of_torchvision(depth, published, stride_in_1x1):
    config = ResNetConfig(depth=depth, stride_in_1x1=stride_in_1x1)
    shapes = jax.eval_shape(lambda key: resnet.init(config, key), jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    assert sum(leaf.size for path, leaf in leaves if path[-1].key not in ("mean", "var")) == published
    assert all(leaf.dtype == jnp.float32 for _, leaf in leaves)


@pytest.mark.parametrize("size", [(64, 96), (65, 33)])
@pytest.mark.parametrize("depth", [18, 50])
def test_stages_have_strides_4_to_32_rounded_up(depth, size):
    network = ResNet(ResNetConfig(depth=depth, width=4, norm="gn", norm_groups=2))
    image = jnp.zeros((2, *size, 1))
    stages = jax.eval_shape(lambda key: network.init_with_output(key, image)[0], jax.random.key(0))
    expansion = 1 if depth == 18 else 4
    for level, stage in enumerate(stages, start=2):
        assert stage.shape[:3] == (2, -(-size[0] // 2**level), -(-size[1] // 2**level))
        assert stage.shape[3] == expansion * 2**level


@pytest.mark.parametrize("depth", [18, 50])
def test_a_stem_of_another_width_changes_the_stem_and_what_reads_it_alone(depth):
    def shapes(**widths):
        network = ResNet(ResNetConfig(depth=depth, norm="gn", norm_groups=2, **widths))
        params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
        leaves = jax.tree_util.tree_leaves_with_path(params)
        return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}

    narrow, whole_stem, stated = shapes(width=4), shapes(width=4, stem_width=8), shapes(width=4, stem_width=4)
    assert narrow == stated
    assert whole_stem["stem/conv/kernel"] == (7, 7, 3, 8)
    differing = {name.rsplit("/", 1)[0] for name in whole_stem if narrow.get(name) != whole_stem[name]}
    assert {name for name in differing if not name.startswith("stem/")} <= {
        "res2_0/conv1", "res2_0/shortcut", "res2_0/shortcut/norm"
    }  # fmt: skip


@pytest.mark.parametrize("size", [(6, 9), (1, 2), (7, 3)])
def test_max_pool_is_the_windowed_maximum_of_its_values_and_gradients(size):
    x = np.random.default_rng(0).permutation(2 * size[0] * size[1] * 3).astype(np.float32) - 50
    x = x.reshape(2, *size, 3)  # no two equal, some windows all negative

    def windowed(x):
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    np.testing.assert_array_equal(max_pool(x), windowed(x))
    found, expected = (jax.jit(jax.grad(lambda x, f=f: (f(x) ** 2).sum()))(x) for f in (max_pool, windowed))
    np.testing.assert_array_equal(found, expected)


def block(kind, **options):
    settings = {"width": 4, "stride": 1, "norm": GROUPS, "last_norm": GROUPS, "stride_in_1x1": False}
    return kind(**{**settings, "dtype": jnp.float32, **options})


def test_a_stride_in_the_1x1_is_a_smaller_input(image):
    """A strided 1x1 convolution reads every second pixel: the block does the same on that smaller image."""
    in_1x1 = block(Bottleneck, stride=2, stride_in_1x1=True)
    variables = jax.jit(in_1x1.init)(jax.random.key(0), image)
    found = jax.jit(in_1x1.apply)(variables, image)
    expected = jax.jit(block(Bottleneck).apply)(variables, image[:, ::2, ::2])
    in_3x3 = jax.jit(block(Bottleneck, stride=2).apply)(variables, image)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.shape == in_3x3.shape == (1, 16, 24, 16)
    assert not np.allclose(found, in_3x3, atol=1e-2)


@pytest.mark.parametrize("kind", [BasicBlock, Bottleneck])
def test_a_residual_branch_that_ends_at_zero_leaves_the_shortcut(kind):
    x = np.random.default_rng(0).normal(size=(1, 6, 6, 4 * EXPANSION[kind])).astype(np.float32)
    silent = block(kind, last_norm=zero_residual_norm(GROUPS))
    variables = jax.jit(silent.init)(jax.random.key(0), x)
    np.testing.assert_array_equal(jax.jit(silent.apply)(variables, x), np.maximum(x, 0))
    speaking = jax.tree.map(lambda leaf: leaf + (leaf == 0), variables)
    assert not np.allclose(jax.jit(silent.apply)(speaking, x), np.maximum(x, 0))


def test_remat_is_of_the_named_stages_and_keeps_the_names():
    image = jnp.zeros((1, 32, 32, 3))

    def trace(stages):
        network = ResNet(ResNetConfig(depth=18, width=2, norm="gn", norm_groups=2, remat=stages))
        variables = jax.eval_shape(network.init, jax.random.key(0), image)
        jaxpr = jax.make_jaxpr(lambda v: network.apply(v, image))(variables)
        return jax.tree.structure(variables), [e.primitive.name for e in jaxpr.eqns].count(CHECKPOINT)

    plain, none = trace(())
    saving, two_blocks_each = trace((3, 5))
    assert plain == saving
    assert (none, two_blocks_each) == (0, 4)


def test_the_rectified_sum_and_its_gradient_are_those_of_relu():
    a, b = np.random.default_rng(0).normal(size=(2, 3, 40)).astype(np.float32)
    b[0, :3] = -a[0, :3]  # sums of zero
    a[1, 0] = np.nan
    np.testing.assert_array_equal(rectified_sum(a, b), nn.relu(a + b))
    cotangent = np.linspace(-1, 1, a.size, dtype=np.float32).reshape(a.shape)
    found, expected = (jax.vjp(f, a, b)[1](cotangent) for f in (rectified_sum, lambda a, b: nn.relu(a + b)))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what XLA's CPU compiler fuses")
@pytest.mark.parametrize("block_type", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("differentiated", [False, True])
def test_no_block_works_out_the_blocks_before_it_again(block_type, differentiated):
    """The longest computation of a program of eight blocks is hardly longer than that of a program of four."""
    norm = norm_from_name("frozen_bn")
    block = block_type(4, 1, norm, norm, False, jnp.float32)
    x = jnp.ones((1, 8, 8, 4 * EXPANSION[block_type]))
    params = block.init(jax.random.key(0), x)

    def longest_computation(blocks):
        def total(all_params, x):
            for one in all_params:
                x = block.apply(one, x)
            return x.sum()

        program = jax.grad(total) if differentiated else total
        text = jax.jit(program).lower([params] * blocks, x).compile().as_text()
        computations = text[: text.index("\nENTRY")].split("\n\n")
        return max(computation.count("\n") for computation in computations)

    assert longest_computation(8) <= 1.2 * longest_computation(4)


# ---- As a network that classifies ------------------------------------------------------------------------------------


def test_input_features_and_logits():
    """Logits are a dense layer on the means of C5. Twice the image at half the scale is the same, and what is outside
    of its size does not matter."""
    config = ResNetConfig(
        depth=18, width=2, norm="none", num_classes=3, pixel_scale=255.0, pixel_mean=(60.0,) * 3, pixel_std=(57.0,) * 3
    )
    params = resnet.init(config, jax.random.key(0))
    image, outside = np.random.default_rng(0).uniform(0, 0.5, size=(2, 1, 32, 32, 1)).astype(np.float32)

    @jax.jit
    def run(params, image, outside):
        cut, size = image.at[:, :, 20:].set(outside[:, :, 20:]), np.array([[32.0, 20.0]])
        half = dataclasses.replace(config, pixel_scale=127.5)
        found = [resnet.features(c, params, x, image_size=size)[3] for c, x in ((config, image), (half, 2 * cut))]
        return found, resnet.features(config, params, image)[3], resnet.logits(config, params, image)

    (found, other), last, logits = run(params, image, outside)
    np.testing.assert_allclose(found, other, rtol=1e-5, atol=1e-5)
    assert last.shape == (1, 1, 1, 16) and np.abs(found - last).max() > 1e-4
    dense = params["classifier"]
    np.testing.assert_allclose(logits, last.mean((1, 2)) @ dense["kernel"] + dense["bias"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "field, value",
    [
        ("name", "swin"),
        ("depth", 77),
        ("norm", "batch"),
        ("dtype", "float16"),
        ("stride_in_1x1", 1),
        ("width", -8),
        ("width", 10**9),
        ("num_classes", -1),
        ("norm_eps", -1e-5),
        ("pixel_scale", 0.0),
        ("pixel_mean", ()),
        ("pixel_std", (1.0,)),
        ("pixel_std", (1.0, 1.0, 0.0)),
        ("remat", (1, 2)),
    ],
)
def test_an_impossible_value_is_refused_with_its_field(field, value):
    with pytest.raises(UserError) as built:
        fields.build(ResNetConfig, {field: value}, "config.detector.model.backbone")
    with pytest.raises(UserError) as by_hand:
        ResNetConfig(**{field: value})
    assert built.value.where == f"config.detector.model.backbone.{field}"
    assert by_hand.value.where == field
    assert field in built.value.what and built.value.todo


def test_groups_divide_every_width_that_a_group_norm_splits():
    for settings, width in (({"width": 20}, "width = 20"), ({"stem_width": 20}, "stem_width = 20")):
        with pytest.raises(UserError) as error:
            ResNetConfig(norm="gn", **settings)
        assert error.value.where == "norm_groups" and width in error.value.todo
    ResNetConfig(norm="none", width=20)


CONSTANTS = {"frozen_bn": {"scale", "bias", "mean", "var"}, "affine_bn": {"mean", "var"}}


@pytest.mark.parametrize("norm", NORMS)
def test_exactly_the_constants_of_a_norm_are_frozen(norm):
    config = ResNetConfig(depth=18, width=2, norm=norm, norm_groups=2)
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(partial(resnet.init, config), jax.random.key(0)))
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    found = {name for name in names if any(re.search(pattern, name) for pattern in resnet.frozen(config))}
    constants = CONSTANTS.get(norm, set())
    assert found == {name for name in names if "/norm/" in name and name.rsplit("/", 1)[1] in constants}
    assert len(found) == 20 * len(constants)  # stem, two in each of eight blocks, three shortcuts
