"""A detector as a folder."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from elk_jax import files
from elk_jax.data.augment import Resize
from elk_jax.data.batches.detection import LoaderConfig
from elk_jax.detection import detectors, faster_rcnn_config
from elk_jax.tasks.detection import model as detector_folder
from elk_jax.weights import model_folder
from tests.refusals import refused

SIZES = ((8.0,), (12.0,), (18.0,), (27.0,), (40.0,))
CONFIG = faster_rcnn_config.detectron2(depth=18, num_classes=2, anchor_sizes=SIZES)
LOADER = LoaderConfig(resize=Resize(short_sides=(64,), max_long_side=96, jitter=()), buckets=((64, 96),))


@pytest.fixture
def folder(tmp_path):
    evaluation = {"operating_points": [{"rate": 1.0, "threshold": 0.4, "sensitivity": {}}]}
    description = detector_folder.describe(
        detectors.build(CONFIG), ("mass", "other"), LOADER, True, ("vertical",), evaluation
    )
    model_folder.save_params(tmp_path, {"rpn": {"kernel": np.ones(2, np.float32)}}, description)
    return tmp_path


def test_a_folder_is_read_as_it_was_written(folder):
    detector, params, description = detector_folder.load(folder)
    assert detector.config == CONFIG and detector.name == description["architecture"] == "faster_rcnn"
    assert params["rpn"]["kernel"].tolist() == [1, 1] and description["classes"] == ["mass", "other"]
    assert description["input"] == {
        "crop_to_breast": True,
        "resize": {**dataclasses.asdict(LOADER.resize), "short_sides": [64], "jitter": []},
        "buckets": [[64, 96]],
        "flips": ["vertical"],
    }
    assert description["operating_points"] == [{"false_positives_per_image": 1.0, "threshold": 0.4}]


def test_a_folder_of_something_else_is_refused(folder):
    written = files.read_json(folder / "model.json")
    for change in ({"architecture": "inpainter"}, {"classes": None}):
        changed = {key: value for key, value in (written | change).items() if value is not None}
        files.write_json(folder / "model.json", changed)
        with refused("detector", "RUN/STAGE/model", where=folder):
            detector_folder.load(folder)
    files.write_json(folder / "model.json", written | {"model": {**written["model"], "depth": 77}})
    with refused(77, where=f"{folder / 'model.json'}: model.depth"):
        detector_folder.load(folder)
