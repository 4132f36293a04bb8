import numpy as np
import pytest

from elk_jax.evaluation import spectrum


def test_a_checkerboard_has_all_the_power():
    board = np.indices((6, 8)).sum(0) % 2
    assert spectrum.checkerboard([3 * board + 1.0]) == pytest.approx(1)
    stripes = np.tile([0.0, 1.0], (6, 4))
    assert spectrum.checkerboard([stripes]) == pytest.approx(0)
    assert spectrum.checkerboard([board, stripes]) == pytest.approx(0.5)
    assert spectrum.checkerboard([np.pad(board, ((0, 1), (0, 1)), constant_values=9)]) == pytest.approx(1)


def test_it_is_the_share_of_one_frequency():
    image = np.random.default_rng(0).normal(size=(8, 10))
    power = np.abs(np.fft.fft2(image - image.mean())) ** 2
    assert spectrum.checkerboard([image]) == pytest.approx(power[4, 5] / power.sum())


def test_waves_are_fine_or_not():
    wave = lambda length: np.tile(np.cos(2 * np.pi * np.arange(24) / length), (10, 1))
    assert spectrum.fine([wave(3)]) == pytest.approx(1)
    assert spectrum.fine([wave(6), 2 * wave(3)]) == pytest.approx(0.8)


def test_without_power_there_is_no_share():
    assert np.isnan(spectrum.checkerboard([np.ones((4, 4))])) and np.isnan(spectrum.fine([np.ones((4, 4))]))
    assert np.isnan(spectrum.checkerboard([np.arange(6.0)[None]]))


@pytest.mark.parametrize("measure", [spectrum.checkerboard, spectrum.fine])
def test_rounding_of_a_constant_image_is_no_power(measure):
    """The mean of equal values in 32 bits differs from them."""
    shades = [np.full(size, shade / 255, np.float32) for shade in range(256) for size in ((64, 64), (63, 61))]
    assert all(np.isnan(measure([shade])) for shade in shades)
    board = np.indices((6, 8)).sum(0) % 2
    assert measure([*shades, board]) == measure([board])
