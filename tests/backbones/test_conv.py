"""The convolution against plain loops, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.backbones.conv import ConvNorm


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
