"""Which attention runs where, and that it attends."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.diffusion import attention, flash
from elk_jax.training import mesh as meshes


class Device:
    def __init__(self, capability):
        self.compute_capability = capability


@pytest.mark.parametrize(
    "backend, capability, dtype, size, expected",
    [
        ("cpu", "", "bfloat16", 64, False),
        ("gpu", "8.0", "bfloat16", 64, True),
        ("gpu", "8.0", "float16", 40, True),
        ("gpu", "8.0", "float32", 64, False),
        ("gpu", "8.0", "bfloat16", 160, False),
        ("gpu", "9.0", "bfloat16", 160, True),
        ("gpu", "9.0", "bfloat16", 512, False),
        ("gpu", "9.0", "bfloat16", 20, False),
        ("gpu", "gfx90a", "bfloat16", 64, False),
    ],
)
def test_where_cudnn_computes(monkeypatch, backend, capability, dtype, size, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "devices", lambda: [Device(capability)])
    assert attention.uses_cudnn("auto", dtype, size) == expected
    assert not attention.uses_cudnn("xla", dtype, size)
    assert attention.uses_cudnn("cudnn", dtype, size)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_by_hand(causal):
    random = np.random.RandomState(0)
    q, k, v = (random.randn(2, 5, 3, 4) for _ in range(3))
    scores = np.einsum("btnh,bsnh->bnts", q, k) / 2
    if causal:
        scores = np.where(np.tri(5, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v)
    found = attention.attend(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), causal=causal)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "heads, rows, scores, expected",
    [
        (4, 64, 64, (1, 1)),  # all at once
        (4, 1024, 64, (1, 1)),  # just
        (8, 1024, 64, (2, 1)),  # four heads at a time
        (3, 1024, 200, (3, 1)),  # no two of three
        (4, 1024, 1024, (4, 4)),
        (1, 4096, 4096, (1, 64)),
        (8, 4096, 8192, (8, 64)),  # twice as large, so that no block has fewer than 64 rows
        (8, 77, 4096, (8, 1)),  # the keys of a text, in the gradient: 11 rows would be too few
        (2, 4099, 4099, (2, 1)),  # a prime number
    ],
)
def test_blocks_are_as_large_as_allowed(heads, rows, scores, expected):
    assert attention.plan_blocks(heads, rows, scores, largest=2**18) == expected


@pytest.mark.parametrize(
    "heads, queries, keys, loops",
    [
        (2, 12, 12, ["2", "2"]),
        (2, 15, 12, ["2", "3"]),
        (2, 12, 5, ["2"]),
        (2, 12, 3, []),
        (4, 12, 3, ["2"]),  # two heads at a time
        (1, 12, 12, ["2"]),  # as in the attention of maps
    ],
)
def test_heads_and_queries_in_blocks_attend_as_all_at_once(monkeypatch, heads, queries, keys, loops):
    random = np.random.RandomState(1)
    q, k, v = (jnp.asarray(random.randn(2, length, heads, 4), jnp.float32) for length in (queries, keys, keys))

    def both():
        attended = lambda q, k, v: attention.attend(q, k, v)
        value, back = jax.vjp(attended, q, k, v)
        return jax.tree.leaves((value, back(jnp.cos(value)))), str(jax.make_jaxpr(attended)(q, k, v))

    whole, program = both()
    monkeypatch.setattr(attention, "LARGEST_OF_CPU", 72)
    monkeypatch.setattr(attention, "LEAST_ROWS", 1)
    in_blocks, blocked_program = both()
    assert re.findall(r"length=(\d+)", program) == []
    assert sorted(re.findall(r"length=(\d+)", blocked_program)) == loops
    for one, other in zip(in_blocks, whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def by_definition(q, k, v):
    weights = jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", q, k) / math.sqrt(q.shape[-1]), axis=-1)
    return jnp.einsum("bnts,bsnh->btnh", weights, v)


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 2e-6), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("keys", [64, 7])
def test_values_and_gradients_are_those_of_the_definition(dtype, tolerance, keys):
    random = np.random.RandomState(2)
    with jax.enable_x64(True):
        shapes = (2, 64, 3, 8), (2, keys, 3, 8), (2, keys, 3, 8), (2, 64, 3, 8)
        q, k, v, pulled = (jnp.asarray(3 * random.randn(*shape), dtype) for shape in shapes)
        found, back = jax.vjp(attention.attend, q, k, v)
        expected, plain_back = jax.vjp(by_definition, *(x.astype("float64") for x in (q, k, v)))
        assert found.dtype == jnp.dtype(dtype)
        for ours, theirs in zip((found, *back(pulled)), (expected, *plain_back(pulled.astype("float64")))):
            scale = np.abs(theirs).max()
            np.testing.assert_allclose(ours.astype("float64") / scale, theirs / scale, atol=tolerance)


@pytest.fixture
def kernel_on_cpu(monkeypatch):
    """The kernel is interpreted, in blocks that divide no length below."""
    monkeypatch.setattr(flash.pl, "pallas_call", partial(flash.pl.pallas_call, interpret=True))
    monkeypatch.setattr(flash, "BLOCK", 16)
    monkeypatch.setattr(flash, "CHUNK", 16)


@pytest.mark.parametrize("form", ["default", "tpu"])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 5e-6), ("bfloat16", 3e-2)])
def test_forms_of_accelerators_have_the_values_of_the_definition(monkeypatch, kernel_on_cpu, form, dtype, tolerance):
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arrays, **forms: forms[form](*arrays))
    monkeypatch.setattr(attention, "LARGEST", 150)
    monkeypatch.setattr(attention, "LEAST_ROWS", 1)
    random = np.random.RandomState(3)
    shapes = (1, 37, 2, 5), (1, 21, 2, 5), (1, 21, 2, 5), (1, 37, 2, 5)
    *inputs, pulled = (jnp.asarray(3 * random.randn(*shape), dtype) for shape in shapes)

    def both(function, *arrays):
        value, back = jax.vjp(function, *arrays[:-1])
        return value, *back(arrays[-1])

    one = meshes.make_mesh(devices=jax.devices()[:1])
    found = jax.jit(meshes.traced_on(one, partial(both, attention.attend)))(*inputs, pulled)
    with jax.enable_x64(True):
        expected = both(by_definition, *(x.astype("float64") for x in (*inputs, pulled)))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == jnp.dtype(dtype)
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(np.asarray(ours, np.float64) / scale, theirs / scale, atol=tolerance)


def test_a_kernel_is_used_where_each_device_has_its_own_images(monkeypatch):
    offered = []
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *_, cpu, **forms: offered.append(set(forms)) or cpu(*_))
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    long = flash.VECTOR_MEMORY // 4
    for batch, length, dtype, implementation, on_mesh, expected in [
        (2, 8, "bfloat16", "auto", True, True),
        (2, 8, "float32", "auto", True, True),
        (2, 8, "float16", "auto", True, False),
        (2, 8, "bfloat16", "xla", True, False),
        (2, 8, "bfloat16", "auto", False, False),
        (2, long, "bfloat16", "auto", True, False),
    ]:
        x = jax.ShapeDtypeStruct((batch, length, 1, 8), dtype)
        attend = lambda x, implementation=implementation: attention.attend(x, x, x, implementation)
        jax.eval_shape(meshes.traced_on(mesh, attend) if on_mesh else attend, x)
        assert ("tpu" in offered.pop()) == expected


def test_gelu_is_exact():
    x = np.linspace(-4, 4, 33)
    expected = [value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x]
    np.testing.assert_allclose(attention.gelu(jnp.asarray(x, jnp.float32)), expected, atol=1e-6)
