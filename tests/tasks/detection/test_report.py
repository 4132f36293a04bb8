"""Which images a report shows, and at which threshold; every stage is there, and only shown images are decoded."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from elk_jax import files
from elk_jax.data.sources import decode as decoding
from elk_jax.data.sources.decode import decode_image
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.evaluation import evaluate as metrics
from elk_jax.evaluation.detections import Detections, ImageResult, join
from elk_jax.evaluation.hits import iou_at_least
from elk_jax.experiments.report import write as write_report
from elk_jax.images.schema import ImageInfo
from elk_jax.tasks.detection import report
from elk_jax.tasks.detection.recipe import EvaluateDetectorsStage
from elk_jax.tasks.run import Experiment, MeshSettings, Run

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
    found = report.choose_pictures(results, iou_at_least(0.3), evaluation, count)
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


# ---- From what evaluation stages leave behind to the page ---------------------------------------------------------

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
    data = {"real": SourceSpec(f"coco:{tmp_path / 'data.json'}")}
    stages = {n: EvaluateDetectorsStage(name=n, models=("small",), on="real") for n in ("evaluate", "again")}
    experiment = Experiment("two", 0, MeshSettings(), "skip", data, {}, stages)

    truth = np.array([LESION]), np.zeros(1, int), np.zeros(1, bool)
    found = Detections(truth[0], np.array([0.9]), np.zeros(1, int))
    infos = [ImageInfo(name, name, 64, 48, *truth) for name in NAMES[:-1]]
    results = join(infos, {name: found for name in NAMES[:-1] if name != "2"})
    evaluation = metrics.evaluate_detections(results, resamples=0)
    gallery = report.choose_pictures(results, iou_at_least(0.3), evaluation, count=2)
    files.write_json(tmp_path / "config.json", {})
    files.write_json(tmp_path / "versions.json", {})
    for stage in ("evaluate", "again"):
        folder = files.make_folder(tmp_path / stage)
        files.make_folder(folder / "small")
        files.write_json(folder / "small" / "evaluation.json", evaluation)
        files.write_json(folder / "comparisons.json", {})
        files.write_json(folder / "gallery.json", {"small": gallery})
        files.write_json(folder / "finished.json", {"seconds": 1.0})
    return Run(experiment, tmp_path, mesh=None)


def test_every_evaluation_is_reported_and_only_its_pictures_are_decoded(run, monkeypatch):
    decoded = []
    decode = lambda path, **kw: decoded.append(path.name) or decode_image(path, **kw)
    monkeypatch.setattr(decoding, "decode_image", decode)
    summary = {"kind": "evaluate", "on": "real", "split": "test", "data": {}, "skipped": [["12", "missing"]]}
    summaries = {stage: {**summary, "models": ["small"]} for stage in ("evaluate", "again")}
    page = write_report(run, summaries).read_text()
    assert page.count("<h2>Results: test split of real</h2>") == page.count("<h2>Images: small: ") == 2
    assert "0 of 1 lesion found, no false positives" in page
    assert sorted(decoded) == ["1.png", "10.png", "2.png"], "each once, for both stages"


def test_images_that_the_data_have_lost_are_left_out(run):
    content = files.read_json(run.folder / "data.json")
    content["images"] = [image for image in content["images"] if image["id"] != 2]
    content["annotations"] = [annotation for annotation in content["annotations"] if annotation["image_id"] != 2]
    files.write_json(run.folder / "data.json", content)
    summary = {"kind": "evaluate", "on": "real", "split": "test", "data": {}, "skipped": [], "models": ["small"]}
    page = write_report(run, {"evaluate": summary}).read_text()
    assert "1 of 1 lesion found, no false positives" in page and "0 of 1 lesion found" not in page


def test_classes_are_named_where_there_are_several(run):
    source, chosen = run.list("real", "test"), files.read_object(run.folder / "again" / "gallery.json")["small"]
    for classes, named in ((("mass",), []), (("mass", "cyst"), ["mass"])):
        pictures = report.pictures("small", chosen, replace(source, classes=classes))
        assert pictures.worst[0].gt_names == pictures.best[0].names == named
