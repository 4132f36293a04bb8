from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.detection.matching import match

RPN = jax.jit(functools.partial(match, low=0.3, high=0.7, allow_low_quality=True))


def flags(num: int, *true: int) -> jax.Array:
    return jnp.zeros(num, bool).at[jnp.array(true, int)].set(True)


@pytest.mark.parametrize("low_quality", [False, True])
def test_equals_torchvisions_matcher(golden, low_quality):
    gt = golden["match_gt"]
    matches = match(
        golden["match_anchors"], gt, np.ones(len(gt), bool), np.zeros(len(gt), bool),
        low=0.3, high=0.7, allow_low_quality=low_quality,
    )  # fmt: skip
    # torchvision folds both results into one: the index, -1 for background, -2 for neither.
    reference = golden[f"match_{low_quality}"]
    folded = np.where(matches.labels == 1, matches.gt_index, np.where(matches.labels == 0, -1, -2))
    np.testing.assert_array_equal(folded, reference)
    assert {-2, -1, 0, 1} <= set(reference.tolist())


def test_thresholds_belong_to_the_upper_class():
    # IoU with [0, 0, 10, 10]: 0.5 exactly, and 0.25 exactly.
    boxes = jnp.array([[0.0, 0, 5, 10], [0, 0, 5, 5]])
    gt = jnp.array([[0.0, 0, 10, 10]])
    run = functools.partial(match, boxes, gt, flags(1, 0), flags(1))
    assert run(low=0.25, high=0.5, allow_low_quality=False).labels.tolist() == [1, -1]
    assert run(low=0.26, high=0.51, allow_low_quality=False).labels.tolist() == [-1, 0]
    np.testing.assert_allclose(run(low=0.5, high=0.5, allow_low_quality=False).iou, [0.5, 0.25])


def test_low_quality_rule_is_blind_to_padding_and_to_unreachable_lesions(random_boxes):
    boxes = random_boxes(500, 0)
    gt = np.array([[0, 0, 9, 9], [900, 900, 950, 950], [0, 0, 0, 0], [0, 0, 0, 0]], np.float32)
    matches = RPN(boxes, gt, flags(4, 0, 1), flags(4))
    best = np.asarray(matches.iou)
    assert 0 < best.max() < 0.7
    np.testing.assert_array_equal(matches.labels == 1, best == best.max())


def test_no_lesion_at_all(random_boxes):
    boxes = random_boxes(50, 0)
    for gt in (np.zeros((8, 4), np.float32), np.full((8, 4), np.nan, np.float32), boxes[:8]):
        matches = RPN(boxes, gt, flags(8), flags(8))
        np.testing.assert_array_equal(matches.labels, 0)
        np.testing.assert_array_equal(matches.iou, 0)
    matches = RPN(boxes, np.zeros((0, 4), np.float32), flags(0), flags(0))
    assert matches.labels.shape == (50,) and not matches.labels.any()


def test_order_and_padding_of_lesions_change_nothing(random_boxes):
    boxes, gt = random_boxes(300, 0), random_boxes(4, 1)
    plain = RPN(boxes, gt, flags(4, 0, 1, 2, 3), flags(4, 3))
    order = np.array([6, 2, 0, 5, 3, 1, 4])  # rows 4 to 6 are padding, one of them on top of a lesion
    padded = np.concatenate([gt, [[0, 0, 0, 0], gt[0], [np.nan] * 4]]).astype(np.float32)[order]
    valid = jnp.asarray(order < 4)
    mixed = RPN(boxes, padded, valid, jnp.asarray(order == 3))
    np.testing.assert_array_equal(mixed.labels, plain.labels)
    np.testing.assert_array_equal(mixed.iou, plain.iou)
    positive = np.asarray(plain.labels) == 1
    assert positive.any()
    np.testing.assert_array_equal(order[mixed.gt_index][positive], np.asarray(plain.gt_index)[positive])


def test_ignored_lesions_make_neither_positives_nor_negatives():
    gt = jnp.array([[0.0, 0, 10, 10], [40, 0, 80, 40]])
    boxes = jnp.array(
        [
            [40.0, 0, 80, 40],
            [45, 5, 50, 10],
            [35, 0, 45, 10],
            [34, 0, 44, 10],
            [0, 0, 10, 10],
            [90, 90, 95, 95],
        ]
    )
    matches = RPN(boxes, gt, flags(2, 0, 1), flags(2, 1))
    # the ignored one itself; inside it; half inside; less than half; the lesion to find; far away
    assert matches.labels.tolist() == [-1, -1, -1, 0, 1, 0]
    # A lesion inside an ignored region is still to be found.
    inside = RPN(boxes[4:], gt, flags(2, 0, 1), flags(2, 1))
    assert inside.labels.tolist() == [1, 0]
    nested = RPN(boxes[4:5], jnp.array([[0.0, 0, 10, 10], [-5, -5, 20, 20]]), flags(2, 0, 1), flags(2, 1))
    assert nested.labels.tolist() == [1]


def test_unusable_boxes_are_negative_and_do_not_disturb_the_others():
    gt = jnp.array([[0.0, 0, 10, 10]])
    boxes = jnp.array([[jnp.nan] * 4, [3, 3, 3, 3], [0, 0, 10, 4]])
    assert RPN(boxes, gt, flags(1, 0), flags(1)).labels.tolist() == [0, 0, 1]


def test_jit_and_vmap_equal_the_loop_and_no_gradient_flows(random_boxes):
    boxes = random_boxes(60, 0)
    gt = np.stack([random_boxes(3, seed) for seed in (1, 2)])
    valid = jnp.array([[True, True, False], [False, False, False]])
    together = jax.jit(jax.vmap(RPN, (None, 0, 0, 0)))(boxes, gt, valid, jnp.zeros((2, 3), bool))
    for i in range(2):
        alone = RPN(boxes, gt[i], valid[i], flags(3))
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda a, i=i: a[i], together), alone)
    grad = jax.grad(lambda b: RPN(b, gt[0], valid[0], flags(3)).iou.sum())(jnp.asarray(boxes))
    np.testing.assert_array_equal(grad, 0)
    with jax.enable_x64(True):
        wide = RPN(jnp.asarray(boxes, jnp.float64), jnp.asarray(gt[0], jnp.float64), valid[0], flags(3))
        assert wide.iou.dtype == jnp.float64 and wide.labels.dtype == jnp.int32
