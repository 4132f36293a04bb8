"""Tiles against hand-made lists."""

from __future__ import annotations

import numpy as np
import pytest

from elk_jax.data.tiles import black_share, tile_info, tile_windows
from tests.refusals import refused


def test_tiles_lie_side_by_side_and_the_last_ends_with_the_image():
    assert tile_windows(4, 4, 4) == [(0, 0, 4, 4)]
    assert tile_windows(4, 8, 4) == [(0, 0, 4, 4), (4, 0, 8, 4)]
    assert tile_windows(5, 10, 4) == [
        (0, 0, 4, 4), (4, 0, 8, 4), (6, 0, 10, 4),
        (0, 1, 4, 5), (4, 1, 8, 5), (6, 1, 10, 5),
    ]  # fmt: skip
    assert tile_windows(4, 8, 4, 2) == [(0, 0, 4, 4), (2, 0, 6, 4), (4, 0, 8, 4)]


@pytest.mark.parametrize(("height", "width", "size", "stride"), [(37, 52, 16, 0), (16, 90, 16, 5), (33, 33, 8, 8)])
def test_every_pixel_is_in_a_tile_and_no_tile_twice(height, width, size, stride):
    seen = np.zeros((height, width), int)
    windows = tile_windows(height, width, size, stride)
    for x0, y0, x1, y1 in windows:
        assert x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height and (x1 - x0, y1 - y0) == (size, size)
        seen[y0:y1, x0:x1] += 1
    assert seen.min() > 0 and len(set(windows)) == len(windows)


def test_black_is_air():
    tile = np.zeros((4, 5, 1), np.float32)
    tile[0] = 0.02  # still air
    assert black_share(tile) == 1
    tile[:, :2] = 0.03
    assert black_share(tile) == pytest.approx(0.6)


def test_a_tile_shows_its_part_of_the_boxes(make_info):
    info = make_info(0, [[2, 2, 8, 9], [7.5, 0, 20, 9], [20, 20, 30, 30]], ignore=[False, False, True])
    seen = tile_info(info, (4, 4, 12, 12))
    np.testing.assert_allclose(seen.boxes, [[0, 0, 4, 5], [3.5, 0, 8, 5]])
    assert (seen.width, seen.height, seen.ignore.tolist()) == (8, 8, [False, False])
    assert tile_info(info, (7, 0, 15, 8)).boxes.tolist() == [[0, 2, 1, 8], [0.5, 0, 8, 8]]  # 1 px is enough,
    assert tile_info(info, (7.5, 0, 15.5, 8)).boxes.tolist() == [[0, 0, 8, 8]]  # less is not


def test_impossible_tiles_are_refused():
    for size in (0, 9):
        with refused(size, 8, 20, where="there"):
            tile_windows(20, 8, size, where="there")
    for stride in (5, -1):
        with refused(stride, where="stride"):
            tile_windows(8, 8, 4, stride)
