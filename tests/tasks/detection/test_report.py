"""Which images a report shows, and at which threshold boxes count as findings."""

from __future__ import annotations

import numpy as np

from elk_jax.evaluation.detections import ImageResult
from elk_jax.evaluation.hits import iou_at_least
from elk_jax.tasks.detection import predict as detection_predict
from elk_jax.tasks.detection import report as detection_report

LESIONS = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]]
ELSEWHERE = [[0, 50, 10, 60], [20, 50, 30, 60], [40, 50, 50, 60]]


def image(name: str, lesions: int, found: int, false: int, score: float = 0.9) -> ImageResult:
    boxes = LESIONS[:found] + ELSEWHERE[:false]
    return ImageResult(
        image_id=name,
        patient_id=name,
        width=100,
        height=100,
        gt_boxes=np.array(LESIONS[:lesions], float).reshape(-1, 4),
        gt_labels=np.zeros(lesions, int),
        gt_ignore=np.zeros(lesions, bool),
        boxes=np.array(boxes, float).reshape(-1, 4),
        scores=np.full(len(boxes), score),
        labels=np.zeros(len(boxes), int),
    )


def chosen(results, threshold, count=6):
    evaluation = {"operating_points": [{"rate": 0.5, "threshold": 0.99}, {"rate": 1.0, "threshold": threshold}]}
    found = detection_report.choose_pictures(results, iou_at_least(0.3), evaluation, count)
    return found, [e["image_id"] for e in found["best"]], [e["image_id"] for e in found["worst"]]


RESULTS = [
    image("empty", 0, 0, 0),
    image("one found", 1, 1, 0),
    image("two false", 0, 0, 2),
    image("one missed", 1, 0, 0),
    image("two missed", 2, 0, 0),
    image("three found", 3, 3, 0),
    image("one missed, one false", 1, 0, 1),
]


def test_pictures_go_from_the_clearest_case_to_the_least_clear():
    found, best, worst = chosen(RESULTS, 0.5)
    assert found["threshold"] == 0.5
    assert worst == ["two missed", "one missed, one false", "one missed", "two false"]
    assert best == ["three found", "one found"]
    assert chosen(RESULTS, 0.5, count=1)[1:] == (["three found"], ["two missed"])


def test_pictures_show_what_reaches_the_threshold_of_one_false_positive_per_image():
    results = [image("faint", 2, 1, 1, score=0.4)]
    found, *_ = chosen(results, 0.3)
    (entry,) = found["worst"] + found["best"]
    assert entry["boxes"] == [LESIONS[0], ELSEWHERE[0]] and entry["scores"] == [0.4, 0.4]
    assert (entry["lesions"], entry["found"], entry["missed"], entry["false_positives"]) == (2, 1, 1, 1)
    assert entry["gt_boxes"] == LESIONS[:2] and entry["gt_ignore"] == [False, False]
    for threshold in (0.45, None):  # None: no threshold reaches the rate, and 0.5 is taken
        found, *_ = chosen(results, threshold)
        (entry,) = found["worst"]
        assert entry["boxes"] == [] and entry["missed"] == 2 and found["threshold"] == (threshold or 0.5)


def test_the_threshold_of_prediction_is_the_saved_one_of_one_false_positive_per_image():
    points = [
        {"false_positives_per_image": 0.5, "threshold": 0.8},
        {"false_positives_per_image": 1.0, "threshold": 0.3},
        {"false_positives_per_image": 2.0, "threshold": 0.1},
    ]
    assert detection_predict.chosen_threshold({"operating_points": points}) == 0.3
    points[1]["threshold"] = 0.0
    assert detection_predict.chosen_threshold({"operating_points": points}) == 0.0
    points[1]["threshold"] = None
    assert detection_predict.chosen_threshold({"operating_points": points}) == 0.5
    assert detection_predict.chosen_threshold({}) == 0.5
