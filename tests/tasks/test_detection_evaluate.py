"""Predictions made elsewhere, in the numbering of the data's own file; a truth that a detector does not see."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from elk_jax.data import breast, sources
from elk_jax.tasks import detection_evaluate, detection_model

BOXES = {10: [8, 8, 16, 16], 11: [30, 20, 12, 10]}
CATEGORY = {10: 0, 11: 1}  # of the one lesion of each image; numbers from 0, as many files have them


@pytest.fixture
def coco(tmp_path):
    """Two images of 64 x 48 px with a lesion of another class each; breasts fill the left half."""
    (tmp_path / "images").mkdir()
    pixels = np.zeros((48, 64), np.uint8)
    pixels[:, :32] = 100
    for image in BOXES:
        cv2.imwrite(str(tmp_path / "images" / f"{image}.png"), pixels)
    images = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48, "split": "test"} for i in BOXES]
    annotations = [{"id": i, "image_id": i, "category_id": CATEGORY[i], "bbox": BOXES[i]} for i in BOXES]
    categories = [{"id": 1, "name": "calcification"}, {"id": 0, "name": "mass"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "data.json").write_text(json.dumps(content))
    return tmp_path / "data.json"


def test_predictions_are_read_and_written_in_the_categories_of_the_file(coco, tmp_path):
    entries = [{"image_id": i, "category_id": CATEGORY[i], "bbox": BOXES[i], "score": 0.9} for i in BOXES]
    (tmp_path / "theirs.json").write_text(json.dumps(entries))
    evaluation = detection_evaluate.evaluate_source(
        data=f"coco:{coco}",
        split="test",
        model=None,
        predictions=str(tmp_path / "theirs.json"),
        output=tmp_path / "out",
        resamples=0,
    )
    assert evaluation["mean_sensitivity"]["value"] == evaluation["ap50"]["value"] == 1.0
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == entries


def test_the_window_that_a_detector_sees_does_not_follow_the_annotations(coco):
    source = sources.open_source(f"coco:{coco}", "test")
    _, windows = breast.crop_to_breast(detection_model.without_truth(source))
    assert len(set(windows)) == 1  # equal pixels, though one lesion reaches out of the breast
    _, wide = breast.crop_to_breast(source)
    assert wide[1][2] > windows[1][2], "in training the window is widened to hold all lesions"
