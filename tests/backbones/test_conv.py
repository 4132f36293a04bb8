"""The convolution against plain loops, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.backbones.conv import BAND, BANDS, ConvNorm, convolve, matrix_product, weight_gradient


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


@pytest.mark.parametrize(("kernel_size", "stride", "rows"), [(3, 1, 2), (3, 1, 9), (3, 2, 2), (7, 2, 3)])
def test_weight_gradient_in_bands_is_that_of_the_whole(kernel_size, stride, rows):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 9, 8, 3)), rng.normal(size=(kernel_size, kernel_size, 3, 4))
    with jax.enable_x64(True):
        y, pull = jax.vjp(lambda kernel: convolve(jnp.asarray(x), kernel, stride), jnp.asarray(kernel))
        gradient = jnp.asarray(rng.normal(size=y.shape))
        like = jax.ShapeDtypeStruct(kernel.shape, kernel.dtype)
        banded = weight_gradient(jnp.asarray(x), gradient, like=like, stride=stride, rows=rows)
        np.testing.assert_allclose(banded, pull(gradient)[0], rtol=1e-10, atol=1e-10)
        # The convolution is linear in its kernel: <gradient, y(kernel)> = <gradient of the kernel, kernel>.
        np.testing.assert_allclose((gradient * y).sum(), (banded * kernel).sum(), rtol=1e-10)


def test_a_large_map_has_a_limited_number_of_bands():
    """Each of them is a convolution to compile."""
    rows, columns = 3 * BANDS + 1, BAND // 4
    x, kernel = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((1, rows, columns, 4), (3, 3, 4, 4)))
    text = str(jax.make_jaxpr(lambda x, kernel, gradient: jax.vjp(convolve, x, kernel)[1](gradient))(x, kernel, x))
    # Bands of 4 rows; the convolution itself, the gradient of the map, and that of the kernel for other platforms.
    assert text.count("conv_general_dilated[") == -(-rows // 4) + 3


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
