from __future__ import annotations

import math

import numpy as np

from elk_jax.detection import anchors as anchor_ops
from elk_jax.detection.boxes import iou
from tests.refusals import refused


def test_equal_torchvisions_generator(golden):
    # 104 x 136 pixels at strides 16, 32, 64: grids that the strides do not divide.
    made = anchor_ops.pyramid_anchors((104, 136), (16, 32, 64), ((32,), (64,), (100,)), (0.5, 1, 2), rounded=True)
    assert [len(level) for level in made] == [7 * 9 * 3, 4 * 5 * 3, 2 * 3 * 3]
    np.testing.assert_array_equal(np.concatenate(made), golden["anchors"])


def test_several_sizes_per_level_equal_torchvisions(golden):
    sizes = ((16, 20, 25), (30, 37, 47))
    made = anchor_ops.pyramid_anchors((24, 16), (8, 16), sizes, (0.5, 1, 2), rounded=True)
    np.testing.assert_array_equal(np.concatenate(made), golden["anchors_many_sizes"])


def test_detectron2_cell_anchors_by_hand():
    # sqrt(64^2 / 0.5) = 90.51 wide, 45.25 high; sizes outermost, not rounded.
    cell = anchor_ops.cell_anchors((32, 64), (0.5, 1, 2))
    w = 64 / math.sqrt(0.5) / 2
    np.testing.assert_allclose(cell[1], [-16, -16, 16, 16])
    np.testing.assert_allclose(cell[3], [-w, -w / 2, w, w / 2], rtol=1e-6)
    np.testing.assert_allclose(cell[5], [-w / 2, -w, w / 2, w], rtol=1e-6)


def test_order_is_row_column_cell_and_the_offset_counts_in_strides():
    level = anchor_ops.level_anchors((2, 3), 8, (4,), (1, 2), offset=0.5).reshape(2, 3, 2, 4)
    assert level.dtype == np.float32
    np.testing.assert_allclose((level[..., :2] + level[..., 2:]).sum(-2)[1, 2] / 4, [20, 12])
    np.testing.assert_allclose(level[0, 0, 0], [2, 2, 6, 6])


def test_levels_and_sizes_must_agree():
    with refused(2, 3, where="anchor_sizes"):
        anchor_ops.pyramid_anchors((64, 64), (4, 8, 16), ((8,), (16,)), (1,))


def squares(sides) -> np.ndarray:
    sides = np.asarray(sides, float)
    return np.stack([0 * sides + 7, 0 * sides + 7, sides + 7, sides + 7], axis=1)


def test_planned_sizes_are_geometric_and_cover_the_lesions():
    boxes = squares(np.exp(np.random.default_rng(0).uniform(np.log(20), np.log(320), 4000)))
    sizes = np.array(anchor_ops.plan_sizes(boxes, 4))[:, 0]
    # 95 % of a 16-fold range, in four parts: neighbours differ by 16^(0.95 / 4), the middle is the median.
    np.testing.assert_allclose(sizes[1:] / sizes[:-1], 16 ** (0.95 / 4), rtol=0.03)
    np.testing.assert_allclose(np.exp(np.log(sizes).mean()), 80, rtol=0.05)
    # A concentric square at most half a part away has at least this IoU.
    centred = np.concatenate([[[-s / 2, -s / 2, s / 2, s / 2]] for s in sizes])
    inner = boxes[(boxes[:, 2] - 7 > 22) & (boxes[:, 2] - 7 < 290)]
    half = (inner[:, 2:] - inner[:, :2]) / 2
    best = iou(np.concatenate([-half, half], 1), centred).max(1)
    assert best.min() > 16 ** (-0.95 / 4) - 0.03


def test_planning_from_equal_lesions_and_from_none():
    sizes = anchor_ops.plan_sizes(squares([50] * 9), 3)
    np.testing.assert_allclose(sizes, [[50 / 2 ** (1 / 3)], [50], [50 * 2 ** (1 / 3)]], atol=0.01)
    assert anchor_ops.plan_sizes(np.concatenate([squares([50]), [[5, 5, 5, 9], [0, 0, np.nan, 4]]]), 1) == ((50.0,),)
    with refused("box", where="anchor_sizes"):
        anchor_ops.plan_sizes(np.zeros((0, 4)), 3)


def test_planned_sizes_keep_the_ratios_of_a_level():
    octaves = ((32.0, 64.0, 128.0), (10.0, 10.0, 10.0))
    assert anchor_ops.scaled(octaves, ((16.0,), (20.0,))) == ((8.0, 16.0, 32.0), (20.0, 20.0, 20.0))
    assert anchor_ops.scaled(((32.0,), (64.0,)), ((9.5,), (12.25,))) == ((9.5,), (12.25,))
