import numpy as np
import pytest

from elk_jax.images import windows
from tests.refusals import refused


def test_cut_pads_what_lies_beyond():
    pixels = np.arange(12, dtype=np.uint16).reshape(3, 4)
    part = windows.cut(pixels, (-1, 1, 2, 4))
    np.testing.assert_array_equal(part, [[0, 4, 5], [0, 8, 9], [0, 0, 0]])
    assert part.dtype == np.uint16
    part[0, 1] = 99
    assert pixels[1, 0] == 4  # a copy
    assert (windows.cut(pixels, (10, 10, 12, 12)) == 0).all()


def test_box_mask_is_every_touched_pixel():
    mask = windows.box_mask(np.array([1.5, 0, 3, 1.1]), 4, 5)
    np.testing.assert_array_equal(np.argwhere(mask), [[0, 1], [0, 2], [1, 1], [1, 2]])
    assert windows.box_mask(np.array([-5, -5, 1, 1]), 4, 5).sum() == 1


def test_a_widened_box_reaches_beyond_on_each_side():
    assert windows.widened(np.array([20, 20, 30, 40]), 0.2, 64) == (18, 16, 32, 44)
    assert windows.widened(np.array([20.5, 20, 29.5, 39.1]), 0.0, 64) == (20, 20, 30, 40)


def test_a_widened_box_leaves_a_rim_where_the_box_does():
    assert windows.widened(np.array([5, 1, 59, 62]), 0.2, 64) == (windows.RIM, 1, 64 - windows.RIM, 62)


def test_a_widened_box_stays_in_what_is_allowed():
    allowed = np.ones((64, 64), bool)
    allowed[25, 31] = False  # to the right of the box
    assert windows.widened(np.array([20, 20, 30, 40]), 0.2, 64, allowed) == (18, 16, 30, 44)
    assert windows.widened(np.array([20, 20, 30, 40]), 0.2, 64, np.zeros((64, 64), bool)) == (20, 20, 30, 40)


@pytest.mark.parametrize("box", [[2, 2, 2, 3], [9, 0, 12, 3], [-4, 0, 0, 3], [3, 3, 1, 1]])
def test_a_mask_without_pixels(box):
    with refused(5, where="box"):
        windows.box_mask(np.array(box, float), 5, 5)


def test_boxes_are_clipped_and_named():
    boxes = [[0, 0, 4, 4], [10, 10, 20, 20], [5, 5, 7, 6]]
    shown, which = windows.boxes_in(np.array(boxes), (3, 3, 11, 11))
    np.testing.assert_array_equal(shown, [[0, 0, 1, 1], [7, 7, 8, 8], [2, 2, 4, 3]])
    np.testing.assert_array_equal(which, [0, 1, 2])
    shown, which = windows.boxes_in(np.array(boxes), (4, 4, 10, 10))
    np.testing.assert_array_equal(which, [2])  # touching at an edge is not being seen
    assert windows.boxes_in(np.zeros((0, 4)), (0, 0, 5, 5))[0].shape == (0, 4)


@pytest.mark.parametrize("height, width", [(1, 1), (3, 2), (6, 7), (7, 2), (2, 8)])
def test_counts_equal_the_slow_way(height, width):
    blocked = np.random.default_rng(0).random((6, 7)) < 0.4
    counts = windows.count_covered(blocked, height, width)
    slow = [[blocked[y : y + height, x : x + width].sum() for x in range(7 - width + 1)] for y in range(6 - height + 1)]
    assert counts.shape == (max(6 - height + 1, 0), max(7 - width + 1, 0))
    np.testing.assert_array_equal(counts.ravel(), np.ravel(slow))


def test_corners_are_equally_likely():
    rng = np.random.default_rng(0)
    allowed = np.zeros((4, 5), bool)
    allowed[1, 2] = allowed[3, 0] = allowed[3, 4] = True
    drawn = [windows.draw_corner(allowed, rng) for _ in range(600)]
    counts = [drawn.count(corner) for corner in [(2, 1), (0, 3), (4, 3)]]
    assert sum(counts) == 600 and min(counts) > 160
    assert windows.draw_corner(allowed & False, rng) is None
    assert windows.draw_corner(np.zeros((0, 5), bool), rng) is None
