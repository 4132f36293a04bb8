import cv2
import numpy as np
import pytest

from elk_jax.images.breast import breast_mask
from elk_jax.synthesis.phantom import PhantomConfig, sample


def grey_breast() -> np.ndarray:
    """100 x 80: a half disc at the left with a dark hole, a far speck of light, noise of air."""
    grey = np.zeros((100, 80), np.uint8)
    cv2.ellipse(grey, (0, 50), (50, 40), 0, 0, 360, 90, -1)
    grey[45:52, 20:30] = 0
    grey[5:9, 70:76] = 200
    return grey


def test_the_largest_component_without_its_holes():
    grey = grey_breast()
    mask = breast_mask(grey)
    disc = np.zeros_like(grey)
    cv2.ellipse(disc, (0, 50), (50, 40), 0, 0, 360, 1, -1)
    assert mask.dtype == bool and not mask[:12, 60:].any()  # the speck of light is none of it
    assert mask[45:52, 20:30].all()
    assert (mask != (disc == 1)).mean() < 0.005


def test_closing_joins_a_thin_cut_and_does_not_grow_to_the_border():
    grey = np.zeros((60, 60), np.uint8)
    grey[10:50, 2:50] = 100
    grey[10:40, 20:23] = 0  # open above: no hole
    mask = breast_mask(grey)
    assert mask[14:40, 20:23].all()
    assert not mask[:, :2].any() and not mask[:, 50:].any()


@pytest.mark.parametrize("shape", [(100, 80), (100, 80, 1)])
def test_stored_and_decoded_pixels_have_one_breast(shape):
    rng = np.random.default_rng(0)
    grey = np.maximum(grey_breast(), rng.integers(0, 9, (100, 80))).astype(np.uint8)
    expected = breast_mask(grey)
    np.testing.assert_array_equal(breast_mask((grey.astype(np.uint16) * 257).reshape(shape)), expected)
    np.testing.assert_array_equal(breast_mask((grey.astype(np.float32) * np.float32(1 / 255)).reshape(shape)), expected)


def test_breast_nowhere_and_everywhere():
    assert not breast_mask(np.zeros((30, 40), np.uint16)).any()
    assert breast_mask(np.full((30, 40), 0.5, np.float32)).all()


@pytest.mark.parametrize("index", [0, 5])
def test_agrees_with_the_outline_of_a_phantom(index):
    phantom = sample(3, index, PhantomConfig(size=128))
    mask = breast_mask(phantom.low_energy)
    assert (mask & phantom.breast).sum() / (mask | phantom.breast).sum() > 0.93
