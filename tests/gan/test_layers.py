"""Halving and doubling convolutions against plain ones, and what normalising and smoothing do to known maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from elk_jax.gan.layers import (
    doubled,
    halved,
    halved_by_strides,
    instance_norm,
    pixel_norm,
    resized,
    smoothed,
    space_to_depth,
)

NUMBERS = ("NHWC", "HWIO", "NHWC")


def maps(*shape):
    return jax.random.normal(jax.random.key(len(shape)), shape)


@pytest.mark.parametrize("k", [4, 6])
def test_halving_is_a_convolution_of_stride_two(k):
    x, kernel = maps(2, 8, 12, 3), maps(k, k, 3, 5)
    plain = lax.conv_general_dilated(x, kernel, (2, 2), [(k // 2 - 1,) * 2] * 2, dimension_numbers=NUMBERS)
    for form in (halved, halved_by_strides):
        np.testing.assert_allclose(form(x, kernel), plain, atol=1e-4)


def test_doubling_is_the_transpose_of_halving():
    """<halved(y), x> = <y, doubled(x)> with input and output channels of the kernel exchanged."""
    x, y, kernel = maps(2, 4, 6, 5), maps(2, 8, 12, 3), maps(4, 4, 3, 5)
    transposed = jnp.swapaxes(kernel, 2, 3)
    np.testing.assert_allclose((halved(y, kernel) * x).sum(), (y * doubled(x, transposed)).sum(), rtol=1e-4)


def test_the_gradients_are_those_of_the_plain_convolution():
    given = maps(2, 8, 8, 3), maps(6, 6, 3, 5)
    plain = lambda x, k: lax.conv_general_dilated(x, k, (2, 2), [(2, 2)] * 2, dimension_numbers=NUMBERS)
    loss = lambda call: jax.grad(lambda *given: jnp.sin(call(*given)).sum(), (0, 1))(*given)
    for found, wanted in zip(loss(halved), loss(plain), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_resizing_repeats_pixels_and_convolves():
    x, kernel = maps(2, 4, 6, 3), maps(3, 3, 3, 5)
    large = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
    plain = lax.conv_general_dilated(large, kernel, (1, 1), [(1, 1)] * 2, dimension_numbers=NUMBERS)
    np.testing.assert_allclose(resized(x, kernel), plain, atol=1e-4)


def test_a_uniform_map_has_no_checkerboard_only_where_maps_are_resized():
    """All pixels of a resized map see one kernel; those of a transposed convolution see four, by their phase."""
    x = jnp.ones((1, 6, 6, 2))
    inner = lambda y: np.asarray(y[0, 4:-4, 4:-4, 0])
    assert np.ptp(inner(resized(x, maps(3, 3, 2, 1)))) < 1e-5
    assert np.ptp(inner(doubled(x, maps(4, 4, 2, 1)))) > 0.1


def test_channels_of_four_pixels_are_in_rows():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(space_to_depth(x)[0, 0, 1], [2, 3, 6, 7])
    np.testing.assert_array_equal(space_to_depth(x)[0, 1, 0], [8, 9, 12, 13])


def test_a_channel_is_normalised_by_its_own_numbers():
    x = jnp.array([[0.0, 2.0], [4.0, 6.0]])[None, :, :, None]
    np.testing.assert_allclose(instance_norm(x)[0, :, :, 0], np.array([[-3, -1], [1, 3]]) / np.sqrt(5), atol=1e-5)
    pair = maps(2, 4, 4, 3)
    np.testing.assert_allclose(instance_norm(pair)[1:], instance_norm(pair[1:]), atol=1e-6)
    np.testing.assert_array_equal(instance_norm(jnp.full((1, 4, 4, 1), 3.0)), 0)


@pytest.mark.parametrize("norm", [instance_norm, pixel_norm])
def test_statistics_of_half_precision_are_float32(norm):
    """A mean of 1,024 values near 100 is lost in bfloat16."""
    x = (100 + maps(1, 32, 32, 4)).astype(jnp.bfloat16)
    found = norm(x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), norm(x.astype(jnp.float32)), atol=0.02)


def test_a_pixel_is_normalised_by_its_own_channels():
    np.testing.assert_allclose(pixel_norm(jnp.array([3.0, -4.0])), np.array([3, -4]) / np.sqrt(12.5), rtol=1e-6)


def test_a_checkerboard_is_smoothed_away_and_a_uniform_picture_stays():
    board = jnp.array((np.indices((8, 8)).sum(0) % 2) * 2.0 - 1)[None, :, :, None]
    assert np.abs(smoothed(board)[0, 1:-1, 1:-1]).max() == 0
    np.testing.assert_allclose(smoothed(jnp.full((1, 4, 4, 1), 0.3)), 0.3, rtol=1e-6)
    line = smoothed(jnp.zeros((1, 5, 5, 1)).at[0, 2, 2, 0].set(16.0))[0, :, :, 0]
    np.testing.assert_allclose(line[2], [0, 2, 4, 2, 0])
