"""ELK's two rules on hand-made boxes, and properties on random ones."""

import numpy as np
import pytest

from elk_jax.data.sources.cleaning import clean_info, ignore_large, keep_clean_boxes


def brute_iou(a, b):
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


@pytest.mark.parametrize(
    ("boxes", "kept"),
    [
        ([], []),
        ([[0, 0, 10, 10]], [True]),
        ([[2, 2, 4, 4], [0, 0, 10, 10]], [False, True]),  # inside, IoU 0.04
        ([[0, 0, 10, 10], [0, 0, 10, 10]], [True, False]),  # twice the same
        ([[0, 0, 10, 10], [0, 4, 10, 14]], [True, False]),  # IoU 6/14 = 0.43, equal size: one stays
        ([[0, 0, 10, 10], [0, 6, 10, 16]], [True, True]),  # IoU 4/16 = 0.25
        ([[0, 0, 10, 9], [0, 4, 10, 14]], [False, True]),  # IoU 5/14: the smaller goes
        # a chain: the middle one falls to the first, and the last is not lost to the middle one
        ([[0, 0, 20, 10], [8, 0, 26, 10], [16, 0, 32, 10]], [True, False, True]),
    ],
)
def test_cases(boxes, kept):
    assert keep_clean_boxes(np.array(boxes)).tolist() == kept


def test_random_boxes_meet_both_rules_in_any_order():
    rng = np.random.default_rng(1)
    for _ in range(30):
        corner = rng.uniform(0, 60, (12, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(5, 40, (12, 2))], axis=1)
        keep = keep_clean_boxes(boxes)
        kept = boxes[keep]
        for i, a in enumerate(kept):
            for b in kept[i + 1 :]:
                assert brute_iou(a, b) <= 0.3
                assert not (a[:2] <= b[:2]).all() or not (a[2:] >= b[2:]).all()
        for dropped in boxes[~keep]:  # nothing is dropped without a larger reason
            contained = ((kept[:, :2] <= dropped[:2]) & (kept[:, 2:] >= dropped[2:])).all(axis=1)
            assert contained.any() or max(brute_iou(dropped, box) for box in kept) > 0.3
        order = rng.permutation(len(boxes))
        assert np.array_equal(keep_clean_boxes(boxes[order]), keep[order])


def test_classes_and_ignore_boxes_are_kept_apart(make_info):
    boxes = [[0, 0, 20, 20], [2, 2, 8, 8], [2, 2, 8, 8], [3, 3, 7, 7]]
    info = make_info(0, boxes, ignore=[False, False, False, True], labels=np.array([0, 0, 1, 0], np.int32))
    cleaned = clean_info(info)
    assert cleaned.boxes.tolist() == [boxes[0], boxes[2], boxes[3]]
    assert cleaned.labels.tolist() == [0, 1, 0]
    assert cleaned.ignore.tolist() == [False, False, True]


def test_a_box_around_the_whole_breast_is_set_aside_and_swallows_no_lesion(make_info):
    info = make_info(0, [[0, 0, 60, 60], [10, 10, 20, 20], [30, 30, 45, 45]], width=100, height=100)
    assert clean_info(info).boxes.tolist() == [[0, 0, 60, 60]]
    aside = ignore_large(info, 0.25)
    assert aside.ignore.tolist() == [True, False, False]
    assert clean_info(aside).boxes.tolist() == info.boxes.tolist()
    assert ignore_large(info, 0.36).ignore.tolist() == [False] * 3  # exactly the share is not more
