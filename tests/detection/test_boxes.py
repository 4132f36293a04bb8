from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.detection import boxes as box_ops
from tests.refusals import refused


def test_iou_of_hand_computed_pairs():
    a = jnp.array([[0.0, 0, 10, 10], [20, 20, 30, 40]])
    b = jnp.array([[5.0, 0, 15, 10], [0, 0, 10, 10], [100, 100, 110, 110], [-5, -5, 5, 5]])
    expected = [[50 / 150, 1, 0, 25 / 175], [0, 0, 0, 0]]
    np.testing.assert_allclose(box_ops.iou(a, b), expected, rtol=1e-6)
    np.testing.assert_allclose(box_ops.intersection_over_area(a, b)[0], [0.5, 1, 0, 0.25], rtol=1e-6)


def test_lists_and_whole_numbers_are_boxes_and_other_shapes_are_not():
    small = np.array([[250, 250, 255, 255]], np.uint8), np.array([[0, 0, 255, 255]], np.uint8)
    np.testing.assert_allclose(box_ops.iou(*small), [[25 / 255**2]], rtol=1e-6)
    assert box_ops.iou([[0, 0, 2, 2]], [[0, 0, 2, 1]]).tolist() == [[0.5]]
    for wrong in (np.zeros(4), np.zeros((2, 5)), np.zeros((1, 2, 4))):
        with refused(wrong.shape, where="b"):
            box_ops.iou(np.zeros((2, 4)), wrong)
    with refused("(2, 3)", where="anchors"):
        box_ops.encode(np.zeros((2, 4)), np.zeros((2, 3)))


def test_overlaps_equal_torchvisions(golden):
    overlap = box_ops.iou(golden["match_anchors"], golden["match_gt"])
    np.testing.assert_allclose(overlap, golden["match_iou"], atol=1e-6)


def test_empty_and_inverted_boxes_overlap_nothing_and_have_finite_gradients():
    boxes = jnp.array([[3.0, 3, 3, 3], [8, 8, 2, 2], [0, 0, 10, 10]])
    overlap = box_ops.iou(boxes, boxes)
    np.testing.assert_array_equal(overlap, np.diag([0.0, 0, 1]))
    np.testing.assert_array_equal(box_ops.intersection_over_area(boxes, boxes)[:2], 0)
    for function in (box_ops.iou, box_ops.intersection_over_area, box_ops.generalized_iou):
        assert jnp.isfinite(jax.grad(lambda b, f=function: f(b, boxes[::-1]).sum())(boxes)).all()


def test_generalized_iou_of_hand_computed_pairs():
    a = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]])
    b = jnp.array([[0.0, 0, 10, 10], [20, 0, 30, 10], [5, 5, 15, 15]])
    # Apart: IoU 0, hull 300, union 200. Crossing: IoU 25 / 175, hull 225, union 175.
    np.testing.assert_allclose(box_ops.generalized_iou(a, b), [1, -1 / 3, 25 / 175 - 50 / 225], rtol=1e-6)


def test_coder_equals_torchvisions(golden):
    encoded = box_ops.encode(golden["coder_boxes"], golden["coder_anchors"], (10, 10, 5, 5))
    np.testing.assert_allclose(encoded, golden["coder_encoded"], atol=2e-5)
    decoded = box_ops.decode(golden["coder_deltas"], golden["coder_anchors"])
    assert (golden["coder_deltas"][:, 2:] > box_ops.LARGEST_LOG_SCALE).any()  # the clip is met
    np.testing.assert_allclose(decoded, golden["coder_decoded"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (10, 10, 5, 5)])
def test_decode_undoes_encode(random_boxes, weights):
    boxes, anchors = random_boxes(200, 0), random_boxes(200, 1)
    back = box_ops.decode(box_ops.encode(boxes, anchors, weights), anchors, weights)
    np.testing.assert_allclose(back, boxes, atol=1e-4)


def test_encode_of_unusable_rows_is_zero_with_finite_gradients(random_boxes):
    good = random_boxes(1, 3)[0]
    bad = [[5.0, 5, 5, 5], [5, 5, 5, 9], [9, 9, 5, 5], [0, 0, np.nan, 4], [0, 0, np.inf, 4], [0, 0, 0, 0]]
    bad = jnp.array(bad)
    for boxes, anchors in ((bad, good), (good, bad), (bad, bad)):
        np.testing.assert_array_equal(box_ops.encode(boxes, anchors), np.zeros((6, 4)))
        grads = jax.grad(lambda b, a: box_ops.encode(b, a).sum(), (0, 1))(jnp.asarray(boxes), jnp.asarray(anchors))
        assert all(jnp.isfinite(g).all() for g in grads)


def test_decode_of_wild_deltas_is_finite():
    boxes = box_ops.decode(jnp.full((1, 4), 1e4), jnp.array([[0.0, 0, 16, 16]]))
    np.testing.assert_allclose(boxes[0, 2] - boxes[0, 0], 1000, rtol=1e-4)


def test_clip_takes_numbers_and_one_size_per_image():
    boxes = jnp.array([[[-5.0, -6, 50, 60]], [[-5, -6, 50, 60]]])
    np.testing.assert_array_equal(box_ops.clip(boxes, 40, 30)[0], [[0, 0, 30, 40]])
    clipped = box_ops.clip(boxes, jnp.array([[40.0], [20]]), jnp.array([[30.0], [100]]))
    np.testing.assert_array_equal(clipped[:, 0], [[0, 0, 30, 40], [0, 0, 50, 20]])


def test_types_are_float32_at_least_and_float64_stays(random_boxes):
    boxes = random_boxes(4, 0)
    functions = (box_ops.iou, box_ops.encode, box_ops.decode, box_ops.generalized_iou)
    for function in functions:
        assert function(jnp.asarray(boxes, jnp.bfloat16), jnp.asarray(boxes, jnp.bfloat16)).dtype == jnp.float32
    with jax.enable_x64(True):
        wide = jnp.asarray(boxes, jnp.float64)
        for function in functions:
            assert function(wide, wide).dtype == jnp.float64
        assert box_ops.clip(wide, 3, 4).dtype == jnp.float64
