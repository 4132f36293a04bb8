import numpy as np
import pytest

from elk_jax.evaluation.hits import (
    centre_distance,
    centre_in_box,
    criterion_from_text,
    iou_at_least,
    lies_on,
    regions_of,
)
from tests.refusals import refused

SQUARE = np.array([[0.0, 0, 10, 10]])


def test_iou_threshold_is_inclusive():
    half = np.array([[0.0, 0, 10, 5]])
    assert iou_at_least(0.5)(half, SQUARE)[0, 0]
    assert not iou_at_least(0.5001)(half, SQUARE)[0, 0]


def test_centre_in_box():
    boxes = np.array([[8.0, 8, 12, 12], [8, 8, 13, 13], [4, 4, 6, 6], [-90, -90, 100, 100]])
    assert centre_in_box()(boxes, SQUARE)[:, 0].tolist() == [True, False, True, True]


def test_centre_distance_takes_the_larger_of_pixels_and_half_diagonal():
    gt = np.array([[0.0, 0, 30, 40]])  # centre (15, 20), diagonal 50
    boxes = np.array([[30.0, 40, 30, 40], [31, 41, 31, 41]])  # 25 px away, and a little more
    assert centre_distance(pixels=5)(boxes, gt)[:, 0].tolist() == [True, False]
    assert centre_distance(pixels=100)(boxes, gt)[:, 0].tolist() == [True, True]
    assert centre_distance(pixels=5, diagonals=0.2)(boxes, gt)[:, 0].tolist() == [False, False]


def test_centre_distance_goes_to_the_nearest_lesion_only():
    gt = np.array([[0.0, 0, 10, 10], [20, 0, 30, 10], [900, 900, 910, 910]])
    boxes = np.array([[8.0, 0, 18, 10], [14, 0, 24, 10], [500, 500, 510, 510]])
    assert centre_distance()(boxes, gt).tolist() == [
        [True, False, False],
        [False, True, False],
        [False, False, False],
    ]


@pytest.mark.parametrize("criterion", [iou_at_least(), centre_in_box(), centre_distance()])
@pytest.mark.parametrize("predicted, lesions", [(0, 0), (3, 0), (0, 2)])
def test_empty_sides(criterion, predicted, lesions):
    hits = criterion(np.zeros((predicted, 4)), np.zeros((lesions, 4)))
    assert hits.shape == (predicted, lesions)
    assert hits.dtype == bool


def test_criterion_from_text():
    assert criterion_from_text("iou:0.25").name == "IoU >= 0.25"
    assert criterion_from_text("centre_in_box").name == "centre in box"
    assert criterion_from_text("centre_distance:80:0.4").name == "centre distance <= max(0.4 diagonal, 80 px)"
    for wrong in ("giou:0.5", "iou:many", "iou:nan", "iou:-1", "centre_in_box:1", "iou:0.3:0.4", ""):
        with refused(repr(wrong), where="criterion"):
            criterion_from_text(wrong)


@pytest.mark.parametrize(
    "text, limits",
    [
        ("iou:0", "above 0 to 1"),
        ("iou:30", "above 0 to 1"),
        ("iou:1.0001", "above 0 to 1"),
        ("iou:inf", "above 0 to 1"),
        ("centre_distance:-1", "from 0"),
        ("centre_distance:nan", "from 0"),
        ("centre_distance:100:50", "from 0 to 5"),
        ("centre_distance:1e6", "from 0 to 1000"),
        ("centre_distance:0:0", "above 0"),
    ],
)
def test_a_criterion_that_all_or_no_predictions_meet_is_refused(text, limits):
    with refused(repr(text), limits, where="criterion"):
        criterion_from_text(text)
    assert criterion_from_text("iou:1").name == "IoU >= 1"


# ---- Regions ---------------------------------------------------------------------------------------------------------


def test_lesions_that_overlap_or_are_linked_are_one_region():
    boxes = np.array([[0, 0, 10, 10], [40, 0, 50, 10], [18, 0, 30, 10], [8, 0, 20, 10], [30, 0, 35, 10]], float)
    assert regions_of(boxes).tolist() == [0, 1, 0, 0, 2], "a chain is one region; a shared edge has no area"
    assert regions_of(boxes[::-1])[::-1].tolist() == [1, 2, 1, 1, 0], "numbers follow the order, groups do not"
    assert regions_of(np.zeros((0, 4))).shape == (0,)
    assert regions_of(np.array([[3, 3, 3, 3], [0, 0, 10, 10]], float)).tolist() == [0, 1], "an empty box is alone"


def test_a_box_lies_on_a_lesion_by_a_little_overlap_or_by_its_centre():
    boxes = np.array([[9, 9, 20, 20], [4.9, 0, 20, 10], [4, 4, 5, 5], [-95, -95, 105, 105], [30, 0, 40, 10]])
    # IoU: 1 / 220 with the centre outside; 51 / 200; 1 / 100 with the centre inside; 1 / 400 with it inside; 0
    assert lies_on(boxes, SQUARE)[:, 0].tolist() == [False, True, True, True, False]
    assert lies_on(np.array([[0, 0, 20, 100.0], [0, 0, 20, 100.1]]), SQUARE)[:, 0].tolist() == [True, False]


def test_regions_from_text():
    criterion = criterion_from_text("regions")
    assert criterion.by_region and criterion.name == "regions, IoU >= 0.3"
    assert criterion_from_text("regions:0.1").name == "regions, IoU >= 0.1"
    assert not criterion_from_text("iou:0.3").by_region
    with refused("regions:0", "above 0 to 1", where="criterion"):
        criterion_from_text("regions:0")
