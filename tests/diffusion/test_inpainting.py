"""Inpainting: the order of the channels, the nearest mask, pixels that stay."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.diffusion import inpainting

RANDOM = np.random.RandomState(0)
IMAGE, PAINTED = (jnp.asarray(RANDOM.uniform(-1, 1, (2, 16, 16, 3)), jnp.float32) for _ in range(2))
MASK = np.zeros((2, 16, 16, 1), np.float32)
MASK[0, 3:9, 8:12] = MASK[1, :, 15:] = 1


def test_nine_channels_in_stable_diffusions_order():
    noisy, masked, mask = jnp.ones((2, 4, 4, 4)), jnp.full((2, 4, 4, 4), 3.0), jnp.full((2, 4, 4, 1), 2.0)
    seen = inpainting.unet_input(noisy, mask, masked)
    assert seen.shape == (2, 4, 4, inpainting.INPUT_CHANNELS)
    np.testing.assert_array_equal(seen[0, 0, 0], [1] * 4 + [2] + [3] * 4)
    with pytest.raises(ValueError, match="latent_mask"):
        inpainting.unet_input(noisy, jnp.ones((2, 32, 32, 1)), masked)


def test_masks_shrink_by_nearest_pixel():
    small = inpainting.latent_mask(jnp.asarray(MASK), 4)
    assert small.shape == (2, 4, 4, 1)
    np.testing.assert_array_equal(small[0, :, :, 0], [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    with pytest.raises(ValueError, match="5"):
        inpainting.latent_mask(jnp.asarray(MASK), 5)


def test_a_mask_between_the_nearest_pixels_is_not_lost():
    small = inpainting.latent_mask(jnp.asarray(MASK), 4)
    np.testing.assert_array_equal(small[1, :, :, 0], [[0, 0, 0, 1]] * 4)  # column 15 of 16, seen at 0, 4, 8 and 12
    dot = np.zeros((1, 16, 16, 1), bool)
    assert not inpainting.latent_mask(dot, 4).any()
    dot[0, 5, 10] = True
    assert np.argwhere(inpainting.latent_mask(dot, 4)).tolist() == [[0, 1, 2, 0]]


def test_masked_image_is_grey_inside_and_untouched_outside():
    seen = inpainting.masked_image(IMAGE, MASK)
    np.testing.assert_array_equal(seen, np.where(MASK > 0, 0, IMAGE))


def test_known_pixels_stay_to_the_bit():
    made = inpainting.keep_known(IMAGE, PAINTED, MASK)
    np.testing.assert_array_equal(made, np.where(MASK > 0, PAINTED, IMAGE))
    deep = np.arange(16 * 16, dtype=np.uint16).reshape(1, 16, 16, 1) * 257
    made = inpainting.keep_known(jnp.asarray(deep), jnp.asarray(deep) * 0, MASK[:1])
    np.testing.assert_array_equal(np.asarray(made)[MASK[:1] == 0], deep[MASK[:1] == 0])
