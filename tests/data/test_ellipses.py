"""Boxes that become ellipses, are resized as masks and come back, against MONAI (tests/golden/make_ellipses.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from elk_jax.data.augment import Augmentation, Resize, augment, resize_only
from elk_jax.data.half_precision import in_half_precision
from elk_jax.data.transforms import Example, redrawn, resize_to
from tests.refusals import refused

GOLDEN = Path(__file__).parents[1] / "golden" / "ellipses.npz"
STRETCH = (64, 32)
WHITES = (255, 4095, 255, 65535, 65535)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as found:
        return dict(found)


@pytest.mark.parametrize("number", range(5))
def test_boxes_come_back_as_those_of_monai(golden, number):
    expected = golden[f"redrawn{number}"]
    found, seen = redrawn(golden[f"boxes{number}"].astype(np.float32), golden[f"pixels{number}"].shape, STRETCH)
    assert seen.tolist() == (expected[:, 0] >= 0).tolist() and seen.any()
    np.testing.assert_array_equal(found[seen], expected[seen])


@pytest.mark.parametrize("number", range(5))
def test_images_are_read_in_half_precision_and_resized_as_by_monai(golden, number):
    """Of files of 8, 12 and 16 bits."""
    white, none = WHITES[number], np.zeros(0, np.int32)
    image = (golden[f"pixels{number}"].astype(np.float32) * np.float32(1 / white))[..., None]
    read = Example(in_half_precision(image, white, "a"), np.zeros((0, 4), np.float32), none, none.astype(bool))
    found = resize_to(read, STRETCH, "linear").image[..., 0] * white
    np.testing.assert_allclose(found, golden[f"stretched{number}"], rtol=1e-5, atol=2e-6 * white)


def test_a_box_is_the_bounds_of_the_pixels_that_show_its_ellipse():
    size, half = (4, 8), (2, 4)
    cases = {
        (1, 1, 5, 3): ([1, 1, 5, 3], [1, 1, 3, 2]),
        (1.9, 1.9, 5.9, 3.9): ([1, 1, 5, 3], [1, 1, 3, 2]),  # cut off to whole pixels first
        (1, 1, 2, 2): ([1, 1, 2, 2], None),  # between the pixels 0 and 2
        (2, 2, 3, 3): ([2, 2, 3, 3], [1, 1, 2, 2]),
        (0, 0, 8, 4): ([0, 0, 8, 4], [0, 0, 4, 2]),
        (0, 0, 8, 1): ([2, 0, 6, 1], [1, 0, 3, 1]),  # the top row of a circle of 8 pixels has 4
        (5.2, 1, 5.8, 3): (None, None),
        (-3, -3, 2, 2): ([0, 0, 2, 2], [0, 0, 1, 1]),
    }
    for box, wanted in cases.items():
        for new_size, expected in zip((size, half), wanted):
            (found,), (seen,) = redrawn(np.array([box], np.float32), size, new_size)
            assert (found.tolist() if seen else None) == expected, (box, new_size)


@pytest.mark.parametrize("size", [(3328, 2560), (2457, 1890), (300, 200), (1000, 3000)])
def test_sides_of_large_boxes_move_by_a_pixel_of_the_coarser_grid_at_most_and_tiny_boxes_vanish(size):
    rng, new_size = np.random.default_rng(1), (2048, 1024)
    sides = rng.integers(64, min(size) // 2, (300, 2))
    corners = rng.integers(0, np.array(size[::-1]) - sides + 1)
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    found, seen = redrawn(boxes, size, new_size)
    ratio = np.tile(np.array(new_size) / size, 2)[[1, 0, 3, 2]]
    assert seen.all() and np.abs(found - boxes * ratio).max() <= max(1, *ratio)
    corners = corners[:, None] + np.stack(np.meshgrid(*[np.arange(4)] * 2), -1).reshape(-1, 2)
    tiny = np.concatenate([corners, corners + 1], axis=-1).reshape(-1, 4).astype(np.float32)
    share = np.minimum(ratio[:2], 1).prod()  # of the pixels of the image, those that are shown
    assert redrawn(tiny, size, new_size)[1].mean() == pytest.approx(share, abs=0.02)


RESIZE = Resize(
    short_sides=(16,), max_long_side=32, stretch=STRETCH, rounding="down", pixels="linear", boxes="ellipses"
)


def test_the_way_of_an_example_redraws_boxes_once_and_leaves_out_what_was_lost(make_record):
    boxes = [[13, 21, 55, 83], [1, 1, 2, 2], [30, 30, 70, 64]]
    record = make_record(boxes, 140, 160, ignore=[False, False, True])
    found = resize_only(record, RESIZE, (32, 32))
    come_back, seen = redrawn(np.array(boxes, np.float32), (160, 140), STRETCH)
    assert seen.tolist() == [True, False, True]
    np.testing.assert_array_equal(found.boxes, come_back[seen] / 2)
    assert found.ignore.tolist() == [False, True] and len(found.labels) == 2
    assert found.image.shape == (32, 16, 1) and found.scale == pytest.approx((16 / 140, 32 / 160))
    plain = augment(record, Augmentation(), RESIZE, (32, 32), np.random.default_rng(0))
    mirrored = augment(record, Augmentation(horizontal_flip=1.0), RESIZE, (32, 32), np.random.default_rng(0))
    np.testing.assert_array_equal(plain.boxes, found.boxes)
    np.testing.assert_array_equal(
        mirrored.boxes, np.array([16, 0, 16, 0]) + [[-1, 1, -1, 1]] * plain.boxes[:, [2, 1, 0, 3]]
    )


def test_boxes_are_redrawn_where_the_image_has_the_size_already(make_record):
    record = make_record([[0, 0, 32, 1]], *STRETCH[::-1])
    assert resize_only(record, RESIZE, (32, 32)).boxes.tolist() == [[6, 0, 10, 0.5]]  # the top row of a circle of 32


def test_ellipses_are_of_images_of_one_size():
    with refused("one size", where="boxes"):
        Resize(short_sides=(25,), boxes="ellipses")
