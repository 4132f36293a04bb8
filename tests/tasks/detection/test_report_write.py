"""From what evaluation stages leave behind to the page: every stage is there, and only shown images are decoded."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict

from elk_jax import files
from elk_jax.data.sources import decode as images
from elk_jax.evaluation import evaluate as metrics
from elk_jax.evaluation.detections import Detections, join
from elk_jax.evaluation.hits import iou_at_least
from elk_jax.experiments import report
from elk_jax.images.schema import ImageInfo
from elk_jax.tasks.detection import report as detection_report
from elk_jax.tasks.run import Run

LESION = [8.0, 8, 24, 24]
NAMES = [str(i) for i in range(1, 13)]


@pytest.fixture
def run(tmp_path):
    """Two finished evaluation stages on twelve images of one lesion; 12 is missing, and in 2 nothing is found."""
    (tmp_path / "images").mkdir()
    for name in NAMES[:-1]:
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), np.full((48, 64), 100, np.uint8))
    sizes = {"width": 64, "height": 48, "split": "test"}
    content = {
        "images": [{"id": int(name), "file_name": f"{name}.png", **sizes} for name in NAMES],
        "annotations": [{"id": int(n), "image_id": int(n), "category_id": 1, "bbox": [8, 8, 16, 16]} for n in NAMES],
        "categories": [{"id": 1, "name": "mass"}],
    }
    (tmp_path / "data.json").write_text(json.dumps(content))
    entry = {"spec": f"coco:{tmp_path / 'data.json'}", "where": "", "train_where": ""}
    entry |= {"clean_boxes": False, "ignore_over": 0.0, "patients": 0}
    config = ConfigDict({"name": "two", "seed": 0, "data": {"real": entry, "on_error": "skip"}})

    truth = np.array([LESION]), np.zeros(1, int), np.zeros(1, bool)
    found = Detections(truth[0], np.array([0.9]), np.zeros(1, int))
    infos = [ImageInfo(name, name, 64, 48, *truth) for name in NAMES[:-1]]
    results = join(infos, {name: found for name in NAMES[:-1] if name != "2"})
    evaluation = metrics.evaluate_detections(results, resamples=0)
    gallery = detection_report.choose_pictures(results, iou_at_least(0.3), evaluation, count=2)
    files.write_json(tmp_path / "config.json", {})
    files.write_json(tmp_path / "versions.json", {})
    for stage in ("evaluate", "again"):
        folder = files.make_folder(tmp_path / stage)
        files.make_folder(folder / "small")
        files.write_json(folder / "small" / "evaluation.json", evaluation)
        files.write_json(folder / "comparisons.json", {})
        files.write_json(folder / "gallery.json", {"small": gallery})
        files.write_json(folder / "finished.json", {"seconds": 1.0})
    return Run(config, tmp_path, mesh=None)


def test_every_evaluation_is_reported_and_only_its_pictures_are_decoded(run, monkeypatch):
    decoded, decode = [], images.decode_image
    monkeypatch.setattr(images, "decode_image", lambda path, **kw: decoded.append(path.name) or decode(path, **kw))
    summary = {"kind": "evaluate", "on": "real", "split": "test", "data": {}, "skipped": [["12", "missing"]]}
    summaries = {stage: {**summary, "models": ["small"]} for stage in ("evaluate", "again")}
    page = report.write(run, summaries).read_text()
    assert page.count("<h2>Results: test split of real</h2>") == page.count("<h2>Images: small: ") == 2
    assert "0 of 1 lesion found, no false positives" in page
    assert sorted(decoded) == sorted(["2.png", "1.png", "10.png"] * 2)
    assert run.config.data.on_error == "skip"


def test_images_that_the_data_have_lost_are_left_out(run):
    content = files.read_json(run.folder / "data.json")
    content["images"] = [image for image in content["images"] if image["id"] != 2]
    content["annotations"] = [annotation for annotation in content["annotations"] if annotation["image_id"] != 2]
    files.write_json(run.folder / "data.json", content)
    summary = {"kind": "evaluate", "on": "real", "split": "test", "data": {}, "skipped": [], "models": ["small"]}
    page = report.write(run, {"evaluate": summary}).read_text()
    assert "1 of 1 lesion found, no false positives" in page and "0 of 1 lesion found" not in page
