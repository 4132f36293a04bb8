"""Changes of patches: each by its own numbers, within bounds, and with gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.gan import augment
from elk_jax.gan.augment import Augmentation

augmented = jax.jit(augment.augmented, static_argnums=0)
KEY = jax.random.key(1)
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (16, 8, 8, 1)), jnp.float32)


def test_nothing_is_changed_by_default():
    assert Augmentation().is_off
    assert augment.augmented(Augmentation(), IMAGES, KEY) is IMAGES


def test_brightness_moves_all_pixels_of_a_patch():
    moved = augmented(Augmentation(brightness=0.1), IMAGES, KEY) - IMAGES
    assert np.ptp(np.asarray(moved), axis=(1, 2, 3)).max() < 1e-6
    each = np.asarray(moved[:, 0, 0, 0])
    assert np.abs(each).max() <= 0.2 and len(np.unique(each.round(5))) == 16 and each.min() < 0 < each.max()


def test_contrast_keeps_the_mean():
    changed = augmented(Augmentation(contrast=0.5), IMAGES, KEY)
    np.testing.assert_allclose(changed.mean((1, 2, 3)), IMAGES.mean((1, 2, 3)), atol=1e-6)
    factors = np.asarray(changed.std((1, 2, 3)) / IMAGES.std((1, 2, 3)))
    assert np.exp(-0.5) <= factors.min() < 1 < factors.max() <= np.exp(0.5)


def test_a_shift_repeats_the_border():
    ramp = jnp.broadcast_to(jnp.arange(8.0)[:, None] + 10 * jnp.arange(8.0), (60, 8, 8))[..., None]
    moved = np.asarray(augmented(Augmentation(shift=0.25), ramp, KEY))[..., 0]
    rows, columns = moved[:, 3, 3] % 10 - 3, moved[:, 3, 3] // 10 - 3
    assert set(rows) == set(columns) == {-2, -1, 0, 1, 2}
    for one, down, right in zip(moved, rows, columns):
        expected = np.clip(np.arange(8) + down, 0, 7)[:, None] + 10 * np.clip(np.arange(8) + right, 0, 7)
        np.testing.assert_array_equal(one, expected)


def test_a_square_is_cut_out():
    cut = np.asarray(augmented(Augmentation(cutout=0.5), jnp.ones((40, 8, 8, 1)), KEY))[..., 0]
    gone = (cut == 0).sum((1, 2))
    assert gone.max() == 16 and gone.min() >= 4 and len(set(gone)) > 2


@pytest.mark.parametrize("config", [Augmentation(0.1, 0.2, 0.125, 0.25)])
def test_gradients_pass_through(config):
    loss = lambda x: augmented(config, x, KEY).sum()
    slope = np.asarray(jax.grad(loss)(IMAGES))
    assert np.isfinite(slope).all() and (slope != 0).mean() > 0.5
