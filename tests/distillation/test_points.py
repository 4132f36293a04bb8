"""Points of lesions: places, cells and negatives, against values worked out by hand and by loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.distillation import points
from elk_jax.distillation.points import Grid

GRID = Grid((4, 8), (64, 64))  # cells of 16 x 8 pixels: the ratios of the axes differ


def batch(*boxes):
    return jnp.array([boxes], jnp.float32), jnp.ones((1, len(boxes)), bool)


@pytest.mark.parametrize("count, places", [
    (1, [(20, 40)]),
    (4, [(10, 20), (30, 20), (10, 60), (30, 60)]),
    (5, [(20, 40), (10, 40), (30, 40), (20, 20), (20, 60)]),
    (9, [(10, 20), (30, 20), (10, 60), (30, 60), (20, 40), (10, 40), (30, 40), (20, 20), (20, 60)]),
])  # fmt: skip
def test_places_in_a_box(count, places):
    np.testing.assert_allclose(points.point_places(jnp.array([10.0, 20, 30, 60]), count), places)


def test_a_bilinear_point_reads_a_ramp_at_its_exact_place():
    """Features that are the places of the cells' centres: a point inside reads its own place on both axes."""
    y, x = np.mgrid[0:4, 0:8]
    features = jnp.array(np.stack([x * 8 + 4, y * 16 + 8], -1), jnp.float32)[None]
    found = points.read(features, *batch([10, 20, 30, 50]), GRID.canvas, 9)
    np.testing.assert_allclose(found.values[0], points.point_places(jnp.array([10.0, 20, 30, 50]), 9), rtol=1e-6)
    outside = points.read(features, *batch([-50, -50, 200, 200]), GRID.canvas, 4)
    np.testing.assert_allclose(outside.values[0], [(4, 8), (60, 8), (4, 56), (60, 56)])


def test_published_cells_are_truncated_with_the_ratio_of_the_width_on_both_axes():
    # r = 8 / 64: corners (10, 20, 30, 60) -> (1, 2, 3, 7); y 7 is kept within the 4 rows; middles (1 + 3) // 2 = 2
    found = points.published_cells(jnp.array([10.0, 20, 30, 60]), GRID, 9)
    assert found.tolist() == [[1, 2], [3, 2], [1, 3], [3, 3], [2, 2], [1, 2], [3, 2], [2, 2], [2, 3]]
    features = jnp.arange(32.0).reshape(1, 4, 8, 1)
    read = points.read(features, *batch([10, 20, 30, 60]), GRID.canvas, 9, "cell")
    assert read.values[0, :, 0].tolist() == [8 * y + x for x, y in found.tolist()]


@pytest.mark.parametrize("sampling", ["bilinear", "cell"])
def test_several_boxes_of_an_image_are_averaged_and_an_image_without_one_is_absent(sampling):
    features = jax.random.normal(jax.random.key(0), (2, 4, 8, 3))
    boxes = jnp.array([[[0, 0, 20, 20], [30, 30, 60, 60], [1, 2, 3, 4]]] * 2, jnp.float32)
    valid = jnp.array([[True, True, False], [False] * 3])
    both = points.read(features, boxes, valid, GRID.canvas, 5, sampling)
    each = [points.read(features, boxes[:, i : i + 1], jnp.ones((2, 1), bool), GRID.canvas, 5, sampling).values[0]
            for i in range(2)]  # fmt: skip
    np.testing.assert_allclose(both.values[0], (each[0] + each[1]) / 2, rtol=1e-6)
    assert both.present.tolist() == [True, False] and not both.values[1].any()


def test_share_of_distinct_cells():
    boxes, valid = batch([0, 0, 64, 64], [1, 1, 3, 3], [0, 0, 16, 2], [0, 0, 9, 9])
    share = lambda keep: float(points.distinct_share(boxes, valid & jnp.array(keep), GRID, 9))
    assert share([True, False, False, False]) == 1.0  # nine cells
    assert share([False, True, False, False]) == pytest.approx(1 / 9)  # one
    assert share([False, False, True, False]) == pytest.approx(3 / 9)  # x in 0, 8, 16; one row
    assert share([True, True, False, False]) == pytest.approx(5 / 9)
    assert share([False] * 4) == 1.0


def test_cells_outside_of_boxes():
    boxes, valid = batch([8, 16, 24, 32], [40, 20, 41, 21])
    found = points.cells_outside(boxes, valid, GRID)[0]
    assert sorted(map(tuple, np.argwhere(~np.asarray(found)).tolist())) == [(1, 1), (1, 2), (1, 5)]
    published = points.published_outside(boxes, valid, GRID)[0]  # r = 1/8: x 1..3, y 2..4; the thin one: none
    assert sorted(map(tuple, np.argwhere(~np.asarray(published)).tolist())) == [(2, 1), (2, 2), (3, 1), (3, 2)]
    low, _ = batch([8, 16, 24, 31], [40, 20, 41, 21])  # one pixel less: it ends before the last row
    published = points.published_outside(low, valid, GRID)[0]
    assert sorted(map(tuple, np.argwhere(~np.asarray(published)).tolist())) == [(2, 1), (2, 2)]
    assert points.cells_outside(boxes, valid & False, GRID).all()


def test_cells_of_the_breast():
    image = jnp.zeros((1, 64, 64, 1)).at[0, 17, 9].set(0.5).at[0, 63, 63].set(0.02)
    found = points.cells_of_breast(image, GRID, air=0.03)
    assert np.argwhere(np.asarray(found[0])).tolist() == [[1, 1]]
    assert points.cells_of_breast(jnp.ones((1, 60, 60, 1)), Grid((4, 8), (60, 60)), 0.03).all()


def test_drawn_cells_are_different_allowed_ones():
    features, allowed = jnp.arange(32.0).reshape(4, 8, 1), jnp.zeros((4, 8), bool).at[1, 2:8].set(True)
    draw = lambda key, allowed: points.draw_cells(features, allowed, 5, jax.random.key(key))
    sets = []
    for key in range(20):
        values, enough = draw(key, allowed)
        assert enough and len(set(values[:, 0].tolist())) == 5 and set(values[:, 0].tolist()) <= set(range(10, 16))
        sets.append(tuple(sorted(values[:, 0].tolist())))
    assert len(set(sets)) > 1
    assert not draw(0, allowed.at[1, 2:4].set(False))[1]
