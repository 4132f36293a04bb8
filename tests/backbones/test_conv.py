"""The convolution against plain loops, values and gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.backbones.conv import (
    BAND,
    BANDS,
    ConvNorm,
    convolve,
    convolve_within,
    gradients_in_plain_layout,
    matrix_product,
    transposed_gradients,
    weight_gradient,
)


def plain(x, kernel, stride):
    """Plain loops with k // 2 zeros on every side: [H, W, C_in] and [k, k, C_in, C_out]."""
    k = kernel.shape[0]
    padded = np.pad(x, ((k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    rows = range(0, padded.shape[0] - k + 1, stride)
    columns = range(0, padded.shape[1] - k + 1, stride)
    return np.array([[np.tensordot(padded[y : y + k, x : x + k], kernel, 3) for x in columns] for y in rows])


@pytest.mark.parametrize("size", [(8, 7), (9, 12)])
@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_convolution_pads_like_torch(size, kernel_size, stride):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, *size, 2)).astype(np.float32)
    layer = ConvNorm(3, kernel_size, stride)
    params = layer.init(jax.random.key(0), x)["params"]
    params["bias"] = jnp.array([1.0, -2.0, 0.5])
    expected = plain(x[0], np.asarray(params["kernel"]), stride) + np.array([1.0, -2.0, 0.5])
    np.testing.assert_allclose(layer.apply({"params": params}, x)[0], expected, atol=1e-5)


@pytest.mark.parametrize("size", [(9, 8), (8, 9)])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "edges"),
    [
        (3, 1, ((1, 1), (1, 1))),
        (3, 2, ((1, 1), (1, 1))),
        (3, 2, ((0, 1), (0, 1))),  # as TensorFlow pads even sizes
        (7, 2, ((3, 3), (3, 3))),
        (2, 1, ((0, 0), (0, 0))),
        (5, 3, ((2, 1), (0, 2))),  # the last pixels are not read
    ],
)
@pytest.mark.parametrize("rows", [2, 9])
def test_gradients_in_plain_layout_are_those_that_jax_derives(size, kernel_size, stride, edges, rows):
    """Also those of the kernel that are summed over bands of some rows."""
    rng = np.random.default_rng(0)
    settings = {"stride": stride, "edges": edges}
    with jax.enable_x64(True):
        x, kernel = (
            jnp.asarray(rng.normal(size=(2, *size, 3))),
            jnp.asarray(rng.normal(size=(kernel_size,) * 2 + (3, 4))),
        )
        gradient = jnp.asarray(rng.normal(size=convolve_within(x, kernel, stride, edges).shape))
        of_x, of_kernel = transposed_gradients(x, kernel, gradient, **settings)
        found = gradients_in_plain_layout(x, kernel, gradient, **settings)
        banded = weight_gradient(x, gradient, kernel_size, rows=rows, **settings)
    np.testing.assert_allclose(found[0], of_x, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found[1], of_kernel, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(banded, of_kernel, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_in_a_loop_have_the_fast_layout(stride):
    """XLA's CPU compiler does not change the layout of convolutions there."""
    x, kernel = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((4, 2, 8, 8, 3), (3, 3, 3, 5)))
    loss = lambda kernel, x: jnp.sin(convolve(x, kernel, stride)).sum()
    each = jax.jit(lambda kernel, x: jax.lax.map(lambda one: jax.grad(loss, (0, 1))(kernel, one), x))
    text = each.lower(kernel, x).as_text()
    layouts = re.findall(r"stablehlo.convolution.*dim_numbers = (.*?), window", text)
    assert len(layouts) == 3 and set(layouts) == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}


def test_a_large_map_has_a_limited_number_of_bands():
    """Each of them is a convolution to compile."""
    rows, columns = 3 * BANDS + 1, BAND // 4
    x, kernel = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((1, rows, columns, 4), (3, 3, 4, 4)))
    text = str(jax.make_jaxpr(lambda x, kernel, gradient: jax.vjp(convolve, x, kernel)[1](gradient))(x, kernel, x))
    # Bands of 4 rows; the convolution itself, the gradient of the map, and both gradients for other platforms.
    assert text.count("conv_general_dilated[") == -(-rows // 4) + 4


def test_gradients_of_large_maps_under_jit_and_per_example():
    """Large enough to go in bands; per-example gradients by vmap sum to those of the batch."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 40, 128, 128)).astype(np.float32)
    assert x[0].size > BAND
    kernel = (rng.normal(size=(3, 3, 128, 2)) * 0.1).astype(np.float32)

    def loss(kernel, x):
        return (convolve(x, kernel) ** 2).sum()

    def reference(kernel, x):
        layer = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        return (jax.lax.conv_general_dilated(x, kernel, **layer) ** 2).sum()

    expected = jax.jit(jax.grad(reference, (0, 1)))(kernel, x)
    found = jax.jit(jax.grad(loss, (0, 1)))(kernel, x)
    each = jax.jit(jax.vmap(lambda x: jax.grad(loss)(kernel, x[None])))(x)
    scale = np.abs(expected[0]).max()
    np.testing.assert_allclose(found[0] / scale, expected[0] / scale, atol=1e-4)
    np.testing.assert_allclose(each.sum(0) / scale, expected[0] / scale, atol=1e-4)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("axes", [(), (5,), (2, 5), (2, 3, 5), (0, 5)])
def test_a_matrix_product_is_over_the_last_axis_in_value_and_gradients(axes):
    rng = np.random.default_rng(0)
    x, kernel, pulled = rng.normal(size=(*axes, 4)), rng.normal(size=(4, 3)), rng.normal(size=(*axes, 3))
    with jax.enable_x64(True):
        y, pull = jax.vjp(matrix_product, jnp.asarray(x), jnp.asarray(kernel))
        of_x, of_kernel = pull(jnp.asarray(pulled))
    np.testing.assert_allclose(y, x @ kernel, atol=1e-12)
    np.testing.assert_allclose(of_x, pulled @ kernel.T, atol=1e-12)
    np.testing.assert_allclose(of_kernel, np.einsum("nc,nd->cd", x.reshape(-1, 4), pulled.reshape(-1, 3)), atol=1e-12)
