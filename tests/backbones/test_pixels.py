"""The input of a network."""

from __future__ import annotations

import numpy as np

from elk_jax.backbones.pixels import IMAGENET_MEAN, IMAGENET_STD, normalise
from tests.refusals import refused


def test_grey_images_are_repeated_normalised_and_zero_outside():
    image, mean, std = np.full((2, 4, 6, 1), 0.5, np.float32), (0.1, 0.2, 0.3), (1.0, 2.0, 4.0)
    found = normalise(image, mean, std, np.array([[3.0, 5.0], [4.0, 6.0]]))
    expected = np.broadcast_to((0.5 - np.array(mean)) / std, (2, 4, 6, 3)).copy()
    np.testing.assert_allclose(normalise(image, mean, std), expected, rtol=1e-6)
    expected[0, 3:], expected[0, :, 5:] = 0, 0
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_colours_are_normalised_one_by_one():
    colour = np.random.default_rng(0).uniform(size=(1, 4, 6, 3)).astype(np.float32)
    found = normalise(colour, IMAGENET_MEAN, IMAGENET_STD)
    np.testing.assert_allclose(found, (colour - IMAGENET_MEAN) / IMAGENET_STD, rtol=1e-4, atol=1e-5)
    with refused("2 channels", "3"):
        normalise(colour[..., :2], IMAGENET_MEAN, IMAGENET_STD)
