"""Grain of tissue given to a smooth region."""

import numpy as np
import pytest

from elk_jax.synthesis.grain import fine_part, match_grain


@pytest.fixture
def window():
    """(picture, mask, tissue, visible) of a grainy window with a smooth bright square."""
    rng = np.random.default_rng(0)
    known = (0.4 + 0.03 * rng.standard_normal((64, 64))).astype(np.float32)
    mask = np.zeros((64, 64), bool)
    mask[20:44, 30:54] = True
    picture = known.copy()
    picture[mask] = 0.7
    return picture, mask, known, ~mask


def spread(image, mask):
    return float(fine_part(image)[mask].std())


def test_a_smooth_lesion_gets_the_grain_of_its_surroundings_and_keeps_its_level(window):
    picture, mask, known, visible = window
    inner = np.zeros_like(mask)
    inner[24:40, 34:50] = True
    result = match_grain(picture, mask, known, visible, np.random.default_rng(1))
    assert spread(picture, inner) == 0
    assert spread(result, inner) == pytest.approx(spread(known, ~mask), rel=0.15)
    assert result[inner].mean() == pytest.approx(0.7, abs=0.01)
    np.testing.assert_array_equal(result[~mask], picture[~mask])


def test_a_lesion_with_grain_enough_stays_as_it_is(window):
    picture, mask, known, visible = window
    picture[mask] += 0.06 * np.random.default_rng(2).standard_normal(mask.sum()).astype(np.float32)
    np.testing.assert_array_equal(match_grain(picture, mask, known, visible, np.random.default_rng(1)), picture)


def test_air_and_the_lesion_itself_are_no_tissue(window):
    picture, mask, known, visible = window
    known[mask] = 5.0  # what lay there before must not come back as grain
    visible[:, :28] = False
    known[:, :28] = 0
    result = match_grain(picture, mask, known, visible, np.random.default_rng(1))
    assert np.abs(result[mask] - 0.7).max() < 0.2
    nothing = np.zeros_like(visible)
    np.testing.assert_array_equal(match_grain(picture, mask, known, nothing, np.random.default_rng(1)), picture)


def test_the_same_numbers_the_same_grain(window):
    one, other, third = (match_grain(*window, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, other)
    assert (one != third).any()
