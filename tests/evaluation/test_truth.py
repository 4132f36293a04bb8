"""Annotations kept beside detections: the metrics computed from both files are those that were measured."""

from __future__ import annotations

import json

import numpy as np
import pytest

from elk_jax.evaluation.detections import Detections, join, write_results
from elk_jax.evaluation.evaluate import DetectionStatistic, evaluate_detections
from elk_jax.evaluation.hits import ELK_RULE
from elk_jax.evaluation.truth import read_measured, write_truth
from elk_jax.images.schema import ImageInfo
from elk_jax.sweeps.results import values
from tests.refusals import refused


def info(image_id: str, patient: str, boxes=(), ignore=()) -> ImageInfo:
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    ignored = np.array(ignore or [False] * len(boxes), bool)
    return ImageInfo(image_id, patient, 100, 80, boxes, np.zeros(len(boxes), np.int32), ignored)


INFOS = (
    info("1", "a", [[10, 10, 30, 30], [50, 50, 70, 70]], [False, True]),
    info("2", "a"),
    info("x", "b", [[0, 0, 20, 20]]),
)


def measured(tmp_path):
    box = np.array([[11.0, 10, 30, 30], [60, 0, 80, 10]])
    none = np.zeros(2, int)
    found = {"1": Detections(box, np.array([0.9, 0.4]), none), "2": Detections(box, np.ones(2), none)}
    results = join(INFOS, found)
    write_truth(tmp_path / "truth.json", INFOS, (7, 3))
    write_results(tmp_path / "predictions.json", results, (7, 3))
    return results


@pytest.mark.parametrize("classes", [(), ("a/b", "c")])
def test_metrics_are_the_same_from_the_files(tmp_path, classes):
    results = measured(tmp_path)
    again = read_measured(tmp_path / "truth.json", tmp_path / "predictions.json")
    assert [r.image_id for r in again] == ["1", "2", "x"] and again[0].gt_ignore.tolist() == [False, True]
    statistic = DetectionStatistic(again, ELK_RULE, classes=classes)
    assert statistic.patients == ["a", "b"]
    from_files = statistic(np.ones((1, 2)))
    found = values(evaluate_detections(results, resamples=0, classes=classes))
    assert ("classes/a/b/sensitivity_at/0.5" in found) == bool(classes)
    for name, value in found.items():
        assert from_files[name][0] == pytest.approx(np.nan if value is None else value, nan_ok=True), name


def test_damaged_annotations_are_refused(tmp_path):
    measured(tmp_path)
    for images in ([{"image_id": "1"}], [3], 3):
        (tmp_path / "truth.json").write_text(json.dumps({"category_ids": [7], "images": images}))
        with refused("damaged", where="truth.json"):
            read_measured(tmp_path / "truth.json", tmp_path / "predictions.json")
