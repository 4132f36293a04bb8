"""Joining predictions with the truth; COCO results in and out; predictions made elsewhere."""

import json

import numpy as np
import pytest

from elk_jax.evaluation.detections import (
    Detections,
    above,
    doubts,
    join,
    join_batches,
    read_results,
    write_results,
)
from elk_jax.images.schema import ImageInfo
from tests.refusals import refused


def info(image_id="7", boxes=((10, 10, 50, 60),), patient="p1", width=200, height=100):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return ImageInfo(
        image_id=image_id,
        patient_id=patient,
        width=width,
        height=height,
        boxes=boxes,
        labels=np.zeros(len(boxes), np.int32),
        ignore=np.zeros(len(boxes), bool),
    )


def detections(boxes, scores, labels=None):
    labels = np.zeros(len(scores), int) if labels is None else np.array(labels)
    return Detections(np.array(boxes, float).reshape(-1, 4), np.array(scores, float), labels)


def test_join_keeps_images_without_predictions():
    results = join([info("a"), info("b", boxes=())], {"a": detections([[1, 2, 3, 4]], [0.5])})
    assert [len(result.scores) for result in results] == [1, 0]
    assert [result.has_lesions for result in results] == [True, False]
    assert [result.is_lesion_free for result in results] == [False, True]


def test_join_refuses_unknown_and_repeated_images():
    with refused(1, "'b'", where="predictions"):
        join([info("a")], {"b": detections([], [])})
    with refused("twice", where="image a"):
        join([info("a"), info("a")], {})


def test_coco_results_come_back(tmp_path):
    infos = [info("7"), info("P1_R_CC"), info("007")]
    results = join(
        infos,
        {
            "7": detections([[10.5, 20, 30.25, 41], [0, 0, 5, 5]], [0.9, 0.125], [0, 1]),
            "P1_R_CC": detections([[1, 2, 3, 4]], [0.3]),
            "007": detections([[1, 2, 3, 4]], [0.2]),
        },
    )
    path = tmp_path / "predictions.json"
    write_results(path, results, category_ids=(3, 8))
    entries = json.loads(path.read_text())
    assert entries[0] == {"image_id": 7, "category_id": 3, "bbox": [10.5, 20.0, 19.75, 21.0], "score": 0.9}
    assert [entry["image_id"] for entry in entries] == [7, 7, "P1_R_CC", "007"]
    back = join(infos, read_results(path, infos, category_ids=(3, 8)))
    for one, other in zip(results, back, strict=True):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
        np.testing.assert_array_equal(one.scores, other.scores)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_default_categories_start_at_one(tmp_path):
    path = tmp_path / "predictions.json"
    write_results(path, join([info()], {"7": detections([[1, 2, 3, 4]], [0.5])}))
    assert json.loads(path.read_text())[0]["category_id"] == 1


GOOD = {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    "change, word",
    [
        ({"image_id": 8}, "unknown image id 8"),
        ({"category_id": 2}, "unknown category id 2"),
        ({"category_id": "1"}, "category id '1'"),
        ({"score": float("nan")}, "nan"),
        ({"category_id": True}, "category id True"),
        ({"image_id": True}, "True"),
        ({"image_id": float("nan")}, "nan"),
        ({"score": "high"}, "'high'"),
        ({"bbox": [1, 2, True, 4]}, "box"),
        ({"bbox": [1e308, 2, 1e308, 4]}, "box"),
        ({"score": True}, "True"),
        ({"bbox": [1, 2, 3]}, "box"),
        ({"bbox": [1, 2, -3, 4]}, "box"),
        ({"bbox": [1, 2, float("inf"), 4]}, "box"),
        ({"bbox": "1 2 3 4"}, "box"),
        ({"bbox": None}, "box"),
    ],
)
def test_bad_entries_name_file_and_entry(tmp_path, change, word):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([GOOD, GOOD | change]))
    with refused(word, where=f"{path}, entry 1"):
        read_results(path, [info("7")])


@pytest.mark.parametrize(
    "content, word, entry",
    [
        ('{"annotations": []}', "list", ""),
        ("[[1, 2]]", "object", ", entry 0"),
        ("[{}]", "image_id, category_id, bbox, score", ", entry 0"),
        ("[{", "JSON", ""),
    ],
)
def test_bad_files(tmp_path, content, word, entry):
    path = tmp_path / "results.json"
    path.write_text(content)
    with refused(word, where=f"{path}{entry}"):
        read_results(path, [info("7")])
    with refused(where="absent.json"):
        read_results(tmp_path / "absent.json", [info("7")])


def test_image_ids_are_the_same_as_text_and_as_numbers(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([GOOD, GOOD | {"image_id": "7"}, GOOD | {"image_id": 7.0, "category_id": 1.0}]))
    assert len(read_results(path, [info("7")])["7"].scores) == 3


@pytest.mark.parametrize(
    "boxes, words",
    [
        ([[10, 10, 20, 20], [90, 40, 180, 90]], "1 of 2"),
        ([[10, 10, 20, 20], [90, 60, 180, 120], [150, 20, 310, 30]], "2 of 3 predicted boxes extend beyond"),
        ([[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 1.4, 1.4], [10, 10, 20, 20]], "2 of 3 predicted boxes lie within"),
        ([[10, 10, 20, 20], [10, 10, 20, 20]], "duplicates"),
    ],
)
def test_doubts_about_boxes_of_other_kinds(boxes, words):
    found = doubts(join([info()], {"7": detections(boxes, [0.5] * len(boxes))}))
    assert [words in doubt for doubt in found] == ([] if words == "1 of 2" else [True])


def test_results_of_a_label_without_category_are_not_written(tmp_path):
    for label, categories in ((-1, None), (2, (3, 8))):
        found = join([info()], {"7": detections([[1, 2, 3, 4]], [0.5], [label])})
        with refused(label, where="image 7"):
            write_results(tmp_path / "predictions.json", found, categories)


def test_empty_results_are_fine(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("[]")
    assert read_results(path, [info("7")]) == {}


def batch_and_predictions(scores=(0.9, 0.2, 0.8)):
    batch = {
        "index": np.array([1, 0, 0]),
        "valid": np.array([True, True, False]),
        "scale": np.array([[2.0, 4.0], [0.5, 0.5], [0.5, 0.5]], np.float32),
    }
    predictions = {
        "boxes": np.tile(np.array([[20.0, 40, 60, 80], [0, 0, 999, 999], [1, 1, 2, 2]]), (3, 1, 1)),
        "scores": np.tile(np.array(scores), (3, 1)),
        "labels": np.zeros((3, 3), int),
        "valid": np.tile(np.array([True, True, False]), (3, 1)),
    }
    return batch, predictions


def test_batches_return_to_the_pixels_of_the_source():
    infos = [info("a"), info("b", width=100, height=50), info("unseen")]
    results = join_batches(infos, [batch_and_predictions()])
    assert [result.image_id for result in results] == [
        "a",
        "b",
    ]  # in the order of the source, padding dropped
    np.testing.assert_allclose(results[1].boxes, [[10, 10, 30, 20], [0, 0, 100, 50]])  # clipped to the image
    np.testing.assert_allclose(results[0].boxes[0], [40, 80, 120, 100])
    np.testing.assert_allclose(results[0].scores, [0.9, 0.2])
    floored = join_batches(infos, [batch_and_predictions()], score_floor=0.5)
    assert [len(result.scores) for result in floored] == [1, 1]


def test_batches_with_nan_are_refused():
    with refused("finite", where="image b"):
        join_batches([info("a"), info("b")], [batch_and_predictions((0.9, np.nan, 0.1))])
    join_batches([info("a"), info("b")], [batch_and_predictions((0.9, 0.2, np.nan))])  # padding may hold anything


def test_score_floor_is_inclusive(make):
    result = make("1", [[0, 0, 9, 9]], [[0, 0, 9, 9]] * 3, [0.1, 0.2, 0.3])
    assert above([result], 0.2)[0].scores.tolist() == [0.2, 0.3]
