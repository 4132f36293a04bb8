"""Norms against plain NumPy, and what must not be trained."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.backbones.norms import (
    BatchNorm,
    FrozenBatchNorm,
    GroupNorm,
    frozen_patterns,
    norm_from_name,
    statistics_patterns,
    zero_residual_norm,
)
from tests.refusals import refused


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_frozen_batch_norm_is_the_formula(rng):
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    params = {name: rng.uniform(0.5, 2, 5).astype(np.float32) for name in ("scale", "bias", "mean", "var")}
    found = FrozenBatchNorm(eps=1e-3).apply({"params": params}, x)
    expected = (x - params["mean"]) / np.sqrt(params["var"] + 1e-3) * params["scale"] + params["bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("train_affine", "trained"), [(False, set()), (True, {"scale", "bias"})])
def test_gradients_of_a_batch_norm_reach_only_what_is_trained(rng, train_affine, trained):
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    layer = FrozenBatchNorm(train_affine=train_affine)
    params = layer.init(jax.random.key(0), x)["params"]
    gradients, of_input = jax.grad(lambda p, x: (layer.apply({"params": p}, x) ** 2).sum(), (0, 1))(params, x)
    assert {name for name, g in gradients.items() if np.any(g != 0)} == trained
    assert np.all(of_input != 0)


def test_a_batch_norm_reads_the_batch_in_training_and_running_statistics_otherwise(rng):
    x = rng.normal(3, 2, size=(2, 3, 4, 5)).astype(np.float32)
    params = {name: rng.uniform(0.5, 2, 5).astype(np.float32) for name in ("scale", "bias", "mean", "var")}
    found = BatchNorm(eps=1e-3, training=True).apply({"params": params}, x)
    normal = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-3)
    np.testing.assert_allclose(found, normal * params["scale"] + params["bias"], rtol=1e-4, atol=1e-5)
    constant = FrozenBatchNorm(eps=1e-3).apply({"params": params}, x)
    np.testing.assert_allclose(BatchNorm(eps=1e-3).apply({"params": params}, x), constant, rtol=1e-5, atol=1e-5)


def test_running_statistics_take_the_step_of_pytorch_whatever_the_loss(rng):
    """0.9 running + 0.1 of the batch, whose variance is the unbiased one."""
    x = rng.normal(3, 2, size=(2, 3, 4, 5)).astype(np.float32)
    params = {name: rng.uniform(0.5, 2, 5).astype(np.float32) for name in ("scale", "bias", "mean", "var")}
    layer = BatchNorm(training=True)
    for factor in (1.0, -1e3):
        step = jax.grad(lambda p, f=factor: f * (layer.apply({"params": p}, x) ** 3).sum())(params)
        found = {name: params[name] - step[name] for name in ("mean", "var")}
        np.testing.assert_allclose(found["mean"], 0.9 * params["mean"] + 0.1 * x.mean((0, 1, 2)), rtol=1e-5)
        np.testing.assert_allclose(found["var"], 0.9 * params["var"] + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-5)


def test_gradients_flow_through_the_statistics_of_the_batch(rng):
    """Whatever is added to a channel, or multiplies it, leaves its normalised values: no gradient along either."""
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    layer, weights = BatchNorm(eps=0.0, training=True), rng.normal(size=x.shape).astype(np.float32)
    params = layer.init(jax.random.key(0), x)["params"]
    gradient = jax.grad(lambda x: (layer.apply({"params": params}, x) * weights).sum())(x)
    assert np.abs(gradient).max() > 0.1
    np.testing.assert_allclose(gradient.sum((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose((gradient * x).sum((0, 1, 2)), 0, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_is_the_formula(rng, groups):
    x = rng.normal(3, 2, size=(2, 4, 5, 6)).astype(np.float32)
    scale, bias = rng.normal(size=(2, 6)).astype(np.float32)
    found = GroupNorm(groups).apply({"params": {"scale": scale, "bias": bias}}, x)
    split = x.reshape(2, 4, 5, groups, 6 // groups)
    mean, var = split.mean((1, 2, 4), keepdims=True), split.var((1, 2, 4), keepdims=True)
    expected = ((split - mean) / np.sqrt(var + 1e-5)).reshape(x.shape) * scale + bias
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_group_norm_of_bfloat16_has_float32_statistics(rng):
    # A mean of bfloat16 numbers around 100, summed in bfloat16, would be off by whole units.
    x = jnp.asarray(rng.normal(100, 1, size=(1, 32, 32, 8)), jnp.bfloat16)
    found = GroupNorm(2, dtype=jnp.bfloat16)
    params = found.init(jax.random.key(0), x)["params"]
    y = found.apply({"params": params}, x)
    assert y.dtype == jnp.bfloat16
    assert params["scale"].dtype == jnp.float32
    assert abs(float(y.astype(jnp.float32).mean())) < 1e-2


def test_a_constant_image_is_finite_with_finite_gradients():
    x = jnp.full((1, 4, 4, 4), 7.0)
    layer = GroupNorm(2)
    params = layer.init(jax.random.key(0), x)["params"]
    value, gradient = jax.value_and_grad(lambda x: layer.apply({"params": params}, x).sum())(x)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_groups_that_do_not_divide_the_channels_are_refused():
    with refused(6, 4):
        GroupNorm(4).init(jax.random.key(0), jnp.zeros((1, 2, 2, 6)))


def test_only_a_trained_norm_ends_a_residual_branch_at_zero():
    x = jnp.ones((1, 2, 2, 4))

    def first_scale(name):
        layer = zero_residual_norm(norm_from_name(name, groups=2))()
        return layer.init(jax.random.key(0), x)["params"]["scale"]

    assert np.all(first_scale("gn") == 0)
    assert np.all(first_scale("frozen_bn") == 1)
    assert zero_residual_norm(None) is None


@pytest.mark.parametrize(
    ("name", "never_trained"),
    [
        ("frozen_bn", {"scale", "bias", "mean", "var"}),
        ("affine_bn", {"mean", "var"}),
        ("gn", set()),
        ("none", set()),
    ],
)
def test_frozen_patterns(name, never_trained):
    patterns = frozen_patterns(name, ("backbone/",))
    paths = [f"backbone/res2_0/conv1/norm/{leaf}" for leaf in ("scale", "bias", "mean", "var")]
    paths += ["backbone/res2_0/conv1/kernel", "backbone/stem/conv/bias", "fpn/lateral2/norm/mean"]
    matched = {path for path in paths if any(re.search(pattern, path) for pattern in patterns)}
    assert matched == {f"backbone/res2_0/conv1/norm/{leaf}" for leaf in never_trained}


def test_only_a_live_norm_has_running_statistics():
    (pattern,) = statistics_patterns("batch_bn", ("backbone/",))
    names = [f"backbone/res2_0/conv1/norm/{leaf}" for leaf in ("scale", "bias", "mean", "var")] + ["fpn/p2/norm/mean"]
    assert [bool(re.search(pattern, name)) for name in names] == [False, False, True, True, False]
    assert frozen_patterns("batch_bn") == statistics_patterns("affine_bn") == ()
