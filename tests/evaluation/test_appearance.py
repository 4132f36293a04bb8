"""Descriptors of known pictures, and distances of known sets."""

import numpy as np
import pytest

from elk_jax.evaluation import appearance

ROWS, COLUMNS = np.indices((16, 16))
BOARD = 0.5 + 0.25 * (-1.0) ** (ROWS + COLUMNS)
SLOW = 0.5 + 0.25 * np.cos(2 * np.pi * COLUMNS / 16)


def test_a_descriptor_has_fields_and_octaves():
    found = appearance.descriptors(np.stack([BOARD, SLOW]))
    np.testing.assert_allclose(found[0, :64], 0.5)
    np.testing.assert_allclose(found[1, :8], SLOW[0].reshape(8, 2).mean(1), atol=1e-12)
    octaves = found[:, 64:]
    assert octaves.shape == (2, 4)  # of 16, 8, 4 and 2 pixels
    assert octaves[0].argmax() == 3 and octaves[1].argmax() == 0
    np.testing.assert_allclose(octaves[:, [3, 0]].max(1), np.log([0.25**2, 0.25**2 / 2]))


def test_fields_need_no_whole_pixels():
    """Of 12 x 12 pixels a field is one and a half along each side."""
    ramp = np.broadcast_to(np.arange(12.0), (1, 12, 12))
    coarse = appearance.descriptors(ramp)[0, :8]
    np.testing.assert_allclose(coarse[:2], [(0 + 0.5 * 1) / 1.5, (0.5 * 1 + 2) / 1.5], rtol=1e-6)
    assert np.isfinite(appearance.descriptors(np.random.default_rng(0).random((2, 9, 9)))).all()


def test_distances_grow_with_the_difference():
    rng = np.random.default_rng(0)
    real, same = (rng.normal(0.5, 0.1, (60, 16, 16)) for _ in range(2))
    near = appearance.distance(real, same)
    assert appearance.distance(real, real) == pytest.approx(0, abs=1e-6)
    assert near < appearance.distance(real, same + 0.02) < appearance.distance(real, same + 0.1)
    assert near < appearance.distance(real, 0.5 + 1.5 * (same - 0.5))
