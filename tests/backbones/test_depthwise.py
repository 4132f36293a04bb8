"""Depthwise convolutions: the sum of shifted maps is the grouped convolution, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.backbones import depthwise
from elk_jax.backbones.conv import convolve, margins

CASES = [
    (size, kernel_size, stride, padding)
    for size in ((6, 7), (1, 4))
    for kernel_size, stride in ((3, 1), (3, 2), (5, 2))
    for padding in ("symmetric", "same")
]


@pytest.mark.parametrize(("size", "kernel_size", "stride", "padding"), CASES)
def test_shifted_maps_are_the_grouped_convolution(size, kernel_size, stride, padding):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(2, *size, 3)))
        kernel = jnp.asarray(rng.normal(size=(kernel_size, kernel_size, 1, 3)))
        expected = depthwise.grouped(x, kernel, stride, padding)
        assert expected.shape == (2, -(-size[0] // stride), -(-size[1] // stride), 3)
        np.testing.assert_allclose(depthwise.shifted(x, kernel, stride, padding), expected, atol=1e-12)
        gradient = jnp.asarray(rng.normal(size=expected.shape))
        forms = (depthwise.shifted_gradients, depthwise.grouped_gradients)
        found, wanted = (form(x, kernel, gradient, stride, padding) for form in forms)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-12)


def test_gradients_per_example_sum_to_those_of_the_batch():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(3, 5, 4, 2)).astype("f4"), rng.normal(size=(3, 3, 1, 2)).astype("f4")

    def loss(kernel, x):
        return (depthwise.convolve_depthwise(x, kernel, 2, "same") ** 2).sum()

    whole = jax.grad(loss)(kernel, x)
    single = jax.vmap(jax.grad(loss), (None, 0))(kernel, x[:, None])
    np.testing.assert_allclose(single.sum(0), whole, rtol=1e-5)


def test_bfloat16_is_summed_in_float32():
    x = jnp.full((1, 5, 5, 1), 1.0, jnp.bfloat16)
    kernel = jnp.full((5, 5, 1, 1), 0.01, jnp.bfloat16).at[0, 0].set(256.0)
    y = depthwise.shifted(x, kernel, 1, "same")
    assert y.dtype == jnp.bfloat16
    assert float(y[0, 2, 2, 0]) == float(jnp.asarray(256 + 24 * 0.01, jnp.bfloat16))


@pytest.mark.parametrize("size", [6, 7])
def test_same_padding_is_that_of_xla(size):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(1, size, 9, 2)).astype("f4"), rng.normal(size=(3, 3, 2, 4)).astype("f4")

    def reference(kernel, x):
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    np.testing.assert_allclose(convolve(x, kernel, 2, "same"), reference(kernel, x), atol=1e-5)
    found, expected = (
        jax.grad(lambda kernel, f=f: (f(kernel, x) ** 2).sum())(kernel)
        for f in (lambda kernel, x: convolve(x, kernel, 2, "same"), reference)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("padding", "size", "kernel_size", "stride", "expected"),
    [
        ("same", 6, 3, 2, (0, 1)),
        ("same", 7, 3, 2, (1, 1)),
        ("same", 6, 5, 2, (1, 2)),
        ("same", 6, 5, 1, (2, 2)),
        ("same", 1, 3, 2, (1, 1)),
        ("symmetric", 6, 5, 2, (2, 2)),
    ],
)
def test_margins(padding, size, kernel_size, stride, expected):
    assert margins(padding, size, kernel_size, stride) == expected
