"""The kinds of false positives and misses, by hand."""

from itertools import pairwise

import pytest

from elk_jax.evaluation import froc
from elk_jax.evaluation.hits import centre_in_box, iou_at_least, regions
from elk_jax.evaluation.mistakes import FALSE_POSITIVES, MISSES, SIDES, at_rate, confusion, found_by_size, mistakes

LESION, OTHER = [0, 0, 100, 100], [200, 200, 300, 300]
INSIDE = [0, 0, 40, 50]  # IoU 0.2 with LESION
ROUND = [0, 0, 200, 250]  # IoU 0.2
BOTH = [0, 0, 300, 300]  # IoU 1/9 with either
FAR, NEAR_FAR = [300, 0, 380, 80], [300, 0, 380, 70]  # IoU 7/8


def kinds(counts):
    return {kind: count for kind, count in counts.items() if count}


def counted(make, lesions, boxes, scores, threshold=0.5, criterion=None, **labels):
    found = mistakes([make("1", lesions, boxes, scores, **labels)], criterion or iou_at_least(0.3), threshold)
    return kinds(found["false_positives"]), kinds(found["misses"])


@pytest.mark.parametrize(
    "boxes, wrong",
    [
        ([INSIDE], {"smaller": 1}),
        ([ROUND], {"larger": 1}),
        ([LESION, INSIDE], {"duplicate": 1}),
        ([FAR, NEAR_FAR, [300, 300, 310, 310]], {"elsewhere": 2, "repeated": 1}),
        ([LESION], {}),
    ],
)
def test_false_positives(make, boxes, wrong):
    assert counted(make, [LESION], boxes, [0.9] * len(boxes))[0] == wrong


def test_a_box_round_two_lesions_is_counted_beside_its_kind(make):
    assert counted(make, [LESION, OTHER], [BOTH], [0.9]) == ({"larger": 1, "round_several": 1}, {"shown": 2})


def test_a_false_positive_is_on_the_lesion_that_it_overlaps_most(make):
    found = [100, 0, 200, 100]  # beside LESION; the box is on both, and mostly on this one, which is found
    box = [80, 0, 130, 100]  # IoU 0.25 with it, 1/6 with LESION
    assert counted(make, [LESION, found], [found, box], [0.9, 0.9])[0] == {"duplicate": 1}


@pytest.mark.parametrize(
    "boxes, scores, missed",
    [
        ([INSIDE], [0.9], {"shown": 1}),
        ([INSIDE, LESION], [0.9, 0.4], {"shown": 1}),
        ([LESION], [0.4], {"unsure": 1}),
        ([LESION, INSIDE], [0.3, 0.4], {"unsure": 1}),
        ([INSIDE], [0.4], {"faint": 1}),
        ([FAR], [0.9], {"nothing": 1}),
        ([], [], {"nothing": 1}),
        ([LESION], [0.5], {}),
    ],
)
def test_misses_are_of_the_first_kind_that_fits(make, boxes, scores, missed):
    assert counted(make, [LESION], boxes, scores)[1] == missed


def test_boxes_on_lesions_of_another_class_are_told_apart(make):
    assert counted(make, [LESION], [LESION], [0.9], labels=[1]) == ({"other_class": 1}, {"other_class": 1})
    assert counted(make, [LESION], [LESION], [0.4], labels=[1]) == ({}, {"other_class": 1})
    assert counted(make, [LESION], [FAR], [0.9], labels=[1]) == ({"elsewhere": 1}, {"nothing": 1})
    both = counted(make, [LESION], [INSIDE, LESION], [0.9, 0.9], labels=[0, 1])
    assert both == ({"smaller": 1, "other_class": 1}, {"shown": 1})


def test_lesions_by_annotated_class_and_class_of_the_best_box(make):
    table = lambda *boxes, **more: confusion(
        [make("1", [LESION, OTHER], [b for b, _, _ in boxes], [s for _, s, _ in boxes], labels=[q for *_, q in boxes],
              **{"gt_labels": [0, 2], **more})], 3, iou_at_least(0.3), 0.5
    )  # fmt: skip
    assert table() == [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert table((LESION, 0.8, 0), (OTHER, 0.9, 1)) == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert table((LESION, 0.8, 0), (LESION, 0.9, 1))[0] == [0, 1, 0, 0]  # the better of two
    assert table((LESION, 0.4, 0), (INSIDE, 0.9, 1))[0] == [0, 0, 0, 1]  # below the threshold, and not a hit
    for order in (((LESION, 0.9, 2), (LESION, 0.9, 1)), ((LESION, 0.9, 1), (LESION, 0.9, 2))):
        assert table(*order)[0] == [0, 1, 0, 0]
    assert table((LESION, 0.9, 1), (OTHER, 0.9, 2), ignore=[True, False]) == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]


def test_ignored_lesions_have_no_part(make):
    assert counted(make, [LESION], [INSIDE], [0.9], ignore=[True]) == ({}, {})


@pytest.mark.parametrize("criterion", [iou_at_least(0.3), iou_at_least(0.1), centre_in_box(), regions(0.3)])
def test_kinds_add_up_to_what_froc_counts(random, criterion):
    results = random(5, classes=2, ignored=0.2)
    for threshold in (0.2, 0.7):
        found = mistakes(results, criterion, threshold)
        scores = [froc.image_scores(result, criterion) for result in results]
        wrong = sum(int((s.false_positives >= threshold).sum()) for s in scores)
        missed = sum(int((s.lesions < threshold).sum()) for s in scores)
        assert sum(found["false_positives"][kind] for kind in FALSE_POSITIVES) == wrong > 0
        assert sum(found["misses"][kind] for kind in MISSES) == missed > 0


def test_without_an_operating_point_there_is_nothing(make):
    results = [make("1", [LESION], [FAR], [0.9])]
    assert at_rate(results, iou_at_least(0.3), 1.0, None) == {}
    assert at_rate(results, iou_at_least(0.3), 1.0, 0.4)["false_positives"]["elsewhere"] == 1


def test_found_by_size(make):
    """Of 400 px: 19 px are 0.0475, 20 px 0.05, 128 x 32 px 0.16 (64 px), 200 px 0.5. Ignored lesions do not count."""
    lesions = [[0, 0, 19, 19], [100, 0, 120, 20], [0, 100, 128, 132], [200, 200, 400, 400], [300, 0, 310, 10]]
    results = [
        make("1", lesions, [lesions[1], lesions[2], lesions[3]], [0.9, 0.5, 0.4], ignore=[False] * 4 + [True]),
        make("2", [[0, 0, 10, 10]]),
    ]
    found = found_by_size(results, threshold=0.5)
    assert [one["sides"] for one in found] == [[low, high] for low, high in pairwise(SIDES)]
    assert [(one["found"], one["lesions"]) for one in found] == [(0, 2), (1, 1), (0, 0), (1, 1), (0, 1)]
    misses = mistakes(results, threshold=0.5)["misses"]
    assert sum(one["lesions"] - one["found"] for one in found) == sum(misses.values())
    assert found_by_size([]) == found_by_size([make("1")]) and not any(one["lesions"] for one in found_by_size([]))
