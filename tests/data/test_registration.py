"""Registration against warps that are known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from elk_jax.data.registration import (
    agreement,
    chest_wall,
    followed,
    inverse,
    match_breasts,
    misplacement,
    register,
    scaling,
    warp,
)
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
    assert register(np.zeros_like(low), subtracted).failure == "no breast visible"
    noise = np.random.default_rng(0).random((SIDE, SIDE)).astype(np.float32)
    assert "edges correlate" in register(noise, subtracted).failure
    assert np.array_equal(register(low, subtracted).matrix, register(low, subtracted).matrix)


def test_what_is_left_of_a_misalignment_is_measured():
    """Two squares, of which a shift by a quarter of the side leaves 3/5 of the union; large images are made smaller."""
    for side in (64, 640):
        square = np.zeros((2 * side, 2 * side), np.float32)
        square[side // 2 : side // 2 + side, side // 2 : side // 2 + side] = 0.5
        aligned = agreement(square, square, np.eye(2, 3))
        assert aligned.overlap == 1 and aligned.likeness == pytest.approx(1, abs=1e-6)
        moved = agreement(square, square, np.array([[1.0, 0, side / 4], [0, 1, 0]]))
        assert moved.overlap == pytest.approx(0.6, abs=0.02) and moved.likeness < 0.8
    apart = agreement(square, square, np.array([[1.0, 0, 2.0 * side], [0, 1, 0]]))
    assert apart.overlap == 0 and apart.likeness == 0
    assert agreement(square, np.zeros_like(square), np.eye(2, 3)).overlap == 0


def test_rectangles_around_breasts_are_laid_on_each_other():
    """Corners of pixels, so that 10 px on 20 px is a factor of 2 and not 9 / 19."""
    moving, fixed = np.zeros((60, 50), np.float32), np.zeros((80, 90), np.float32)
    moving[20:50, 10:30], fixed[8:38, 60:84] = 0.5, 0.5
    found = match_breasts(moving, fixed)
    assert not found.failure
    np.testing.assert_allclose(found.matrix @ [59.5, 7.5, 1], [9.5, 19.5], atol=1e-9)
    np.testing.assert_allclose(found.matrix @ [83.5, 37.5, 1], [29.5, 49.5], atol=1e-9)
    assert agreement(moving, fixed, found.matrix).overlap > 0.95
    fixed[8:68] = fixed[20]
    assert "stretched" in match_breasts(moving, fixed).failure
    assert match_breasts(np.zeros_like(moving), fixed).failure and register(moving, np.zeros_like(fixed)).failure


def test_a_misplacement_keeps_what_is_held_but_for_its_shift():
    held = np.array([12.0, 30.0])
    found = misplacement(np.random.default_rng(0), 5.0, 0.1, held)
    assert 0.9 <= found.factor <= 1.1 and found.factor != 1 and (np.abs(found.moved) <= 5).all()
    np.testing.assert_allclose(found.factor * held + found.offset, held + found.moved)
    np.testing.assert_allclose(found.matrix @ [*(held - 0.5), 1], held + found.moved - 0.5)  # centres of pixels
    np.testing.assert_allclose(followed(found.matrix, inverse(found.matrix)), np.eye(2, 3), atol=1e-12)
    unmoved = misplacement(np.random.default_rng(0), 0.0, 0.0, held)
    np.testing.assert_allclose(unmoved.matrix, np.eye(2, 3))
    np.testing.assert_allclose(scaling(np.array([2.0, 3.0])) @ [0, 0, 1], [0.5, 1.0])


def test_the_chest_wall_is_at_the_side_of_the_breast(breast):
    low = breast[0]
    left = low[:, : SIDE // 2].sum() > low[:, SIDE // 2 :].sum()
    assert chest_wall(low) == (0.0 if left else SIDE, SIDE / 2)
    assert chest_wall(low[:, ::-1]) == (SIDE if left else 0.0, SIDE / 2)
