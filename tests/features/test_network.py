"""Frozen features of a network given as a function."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.features import network
from elk_jax.features.network import MIRRORS, Window

WINDOW = Window(row=0.75, column=0.25, deviation=0.1)
IMAGES = np.random.default_rng(0).uniform(size=(5, 8, 12, 1)).astype(np.float32)


def two_maps(params, images):
    """A map of half the size with two channels, and the image."""
    halves = images.reshape(len(images), images.shape[1] // 2, 2, images.shape[2] // 2, 2)
    return params * jnp.stack([halves.mean((2, 4)), halves.max((2, 4))], -1), images


def test_statistics_by_hand():
    found = np.random.default_rng(1).normal(size=(2, 4, 6, 3)).astype(np.float32)
    mean, deviation, near, spread = np.split(np.asarray(network.statistics(found, WINDOW)), 4, axis=1)
    np.testing.assert_allclose(mean, found.mean((1, 2)), atol=1e-6)
    np.testing.assert_allclose(deviation, found.std((1, 2)), rtol=1e-5)
    row, column = np.meshgrid((np.arange(4) + 0.5) / 4, (np.arange(6) + 0.5) / 6, indexing="ij")
    weights = np.exp(-((row - 0.75) ** 2 + (column - 0.25) ** 2) / (2 * 0.1**2))[..., None]
    expected = (found * weights).sum((1, 2)) / weights.sum()
    np.testing.assert_allclose(near, expected, rtol=1e-4)
    squares = ((found - expected[:, None, None]) ** 2 * weights).sum((1, 2)) / weights.sum()
    np.testing.assert_allclose(spread, np.sqrt(squares), rtol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_batches_and_maps(count):
    half, whole = network.features(two_maps, 1.0, IMAGES[:count], WINDOW, batch_size=2)
    assert half.shape == (count, 8) and whole.shape == (count, 4)
    expected = network.features(two_maps, 1.0, IMAGES, WINDOW, batch_size=5)
    np.testing.assert_allclose(half, expected[0][:count], rtol=1e-5)


def test_sets_and_weights_share_one_program():
    """Equal taps are traced once; weights are arguments, and not constants of the program."""
    traced = []

    @dataclass(frozen=True)
    class Scaled:
        size: int

        def __call__(self, params, images):
            traced.append(self.size)
            return (params * images,)

    found = [network.features(Scaled(8), scale, IMAGES[:n], WINDOW, batch_size=4)[0] for scale, n in ((1, 5), (3, 2))]
    np.testing.assert_allclose(found[1], 3 * found[0][:2], rtol=1e-4)
    assert len(traced) == len(MIRRORS)


@pytest.mark.parametrize("mirror", MIRRORS)
def test_mirrors_of_an_image_with_its_window_have_the_same_features(mirror):
    """Though the network itself is not symmetric."""
    uneven = lambda params, images: (images * jnp.linspace(0, 1, 12)[:, None],)
    axes = tuple(axis for axis, mirrored in zip((1, 2), mirror) if mirrored)
    row, column = (1 - at if mirrored else at for at, mirrored in zip(WINDOW[:2], mirror))
    expected = network.features(uneven, None, IMAGES, WINDOW)[0]
    found = network.features(uneven, None, np.flip(IMAGES, axes), Window(row, column, WINDOW.deviation))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    alone = network.features(uneven, None, IMAGES, WINDOW, mirrors=MIRRORS[:1])[0]
    assert np.abs(alone - expected).max() > 1e-3
