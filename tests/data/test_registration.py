"""Registration against warps that are known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from elk_jax.data.registration import register, warp
from elk_jax.synthesis.phantom import PhantomConfig, sample

SIDE, MARGIN = 256, 32


@pytest.fixture(scope="module")
def breast():
    """A phantom's (low-energy, subtracted, breast), with air all round: a warp pushes nothing out of the image."""
    phantom = sample(0, 1, PhantomConfig(size=SIDE - 2 * MARGIN))
    return tuple(np.pad(image, MARGIN) for image in (phantom.low_energy, phantom.subtracted, phantom.breast))


def about_the_middle(scale: tuple[float, float], degrees: float, shift: tuple[float, float], side: int) -> np.ndarray:
    """[2, 3]: scale, turn and shift a pixel of the fixed image to its place in the moving one."""
    angle, middle = np.deg2rad(degrees), (side - 1) / 2
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag(scale)
    return np.column_stack([linear, middle - linear @ [middle, middle] + shift])


def distances(found: np.ndarray, true: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """In pixels, between where the two matrices take the pixels of a mask."""
    rows, columns = np.nonzero(mask)
    places = np.stack([columns, rows, np.ones_like(rows)])
    return np.hypot(*((found - true) @ places))


@pytest.mark.parametrize(
    ("scale", "degrees", "shift"),
    [((1.0, 1.0), 0.0, (0.0, 0.0)), ((1.04, 0.97), 2.0, (7.3, -5.6)), ((0.93, 0.93), -1.5, (-4.25, 9.5))],
)
def test_a_known_warp_is_found_to_a_part_of_a_pixel(breast, scale, degrees, shift):
    """Of one image everywhere to a part of a pixel; of two that show a breast differently on average."""
    low, subtracted, mask = breast
    true = about_the_middle(scale, degrees, shift, SIDE)
    # `true` takes the fixed image's pixels to the moving image: the moving image is the low-energy one, pushed there
    moving = cv2.warpAffine(low, true, (SIDE, SIDE), flags=cv2.INTER_CUBIC).clip(0, 1)
    same, other = register(moving, low), register(moving, subtracted)
    assert not same.failure and not other.failure and same.likeness > other.likeness > 0.4
    assert distances(same.matrix, true, mask).max() < 0.5
    assert distances(other.matrix, true, mask).mean() < 0.8
    back = warp(moving, same.matrix, low.shape)
    inside = cv2.erode(mask.astype(np.uint8), np.ones((9, 9))) > 0
    assert np.abs(back - low)[inside].mean() < 0.02  # grain, interpolated twice


def test_images_of_different_sizes_are_aligned_as_well_as_others(breast):
    """By their edges too, and not by the moments of the breasts alone."""
    low, subtracted, mask = breast
    moving = np.pad(low, ((12, 0), (0, 30)))
    true = np.array([[1.0, 0, 0], [0, 1.0, 12]])
    same, other = register(moving, low), register(moving, subtracted)
    assert distances(same.matrix, true, mask).max() < 0.5
    assert not other.failure and distances(other.matrix, true, mask).mean() < 0.8


def test_the_same_warp_is_found_in_larger_images_of_different_sizes(breast):
    low, subtracted, mask = breast
    large = cv2.resize(low, (3 * SIDE, 3 * SIDE), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    alignment = register(large, subtracted)
    # pixel centres: x of the small image lies at 3 x + 1 in the large one
    true = np.array([[3.0, 0, 1], [0, 3.0, 1]])
    assert alignment.failure.startswith("stretched")  # by 3: both images are expected at one scale
    assert distances(alignment.matrix, true, mask).mean() < 3
    fixed = cv2.resize(subtracted, (3 * SIDE, 3 * SIDE), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    shifted = np.pad(large, ((12, 0), (0, 30)))
    alignment = register(shifted, fixed)
    big_mask = cv2.resize(mask.astype(np.uint8), fixed.shape) > 0
    assert not alignment.failure
    assert distances(alignment.matrix, np.array([[1.0, 0, 0], [0, 1.0, 12]]), big_mask).mean() < 2.5
    assert warp(shifted, alignment.matrix, fixed.shape).shape == fixed.shape


def test_what_cannot_be_aligned_says_so(breast):
    low, subtracted, _ = breast
    assert register(np.zeros_like(low), subtracted).failure == "no breast to be seen"
    noise = np.random.default_rng(0).random((SIDE, SIDE)).astype(np.float32)
    assert "edges agree by" in register(noise, subtracted).failure
    assert np.array_equal(register(low, subtracted).matrix, register(low, subtracted).matrix)
