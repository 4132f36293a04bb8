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
from tests.models import save_earlier, save_imported
from tests.refusals import refused

SIZES = ((8.0,), (12.0,), (18.0,), (27.0,), (40.0,))
TRAINED = model_folder.Training(7, ("real",), "weights/coco", ("a1", "b2"))
CONFIG = faster_rcnn_config.detectron2(depth=18, num_classes=2, anchor_sizes=SIZES)
LOADER = LoaderConfig(resize=Resize(short_sides=(64,), max_long_side=96, jitter=()), buckets=((64, 96),))


@pytest.fixture
def folder(tmp_path):
    evaluation = {"operating_points": [{"rate": 1.0, "threshold": 0.4, "sensitivity": {}}]}
    description = detector_folder.describe(
        detectors.build(CONFIG), ("mass", "other"), LOADER, True, ("vertical",), evaluation, TRAINED
    )
    model_folder.save_params(tmp_path, {"rpn": {"kernel": np.ones(2, np.float32)}}, description)
    return tmp_path


def test_a_folder_is_read_as_it_was_written(folder):
    detector, params, description = detector_folder.load(folder)
    assert detector.config == CONFIG and detector.name == description.architecture == "faster_rcnn"
    assert params["rpn"]["kernel"].tolist() == [1, 1] and description.classes == ("mass", "other")
    assert description.input == detector_folder.Input(True, LOADER.resize, ((64, 96),), ("vertical",))
    assert description.operating_points == (detector_folder.OperatingPoint(1.0, 0.4),)
    assert description.trained == TRAINED


def test_a_folder_of_something_else_is_refused(folder):
    written = files.read_json(folder / "model.json")
    files.write_json(folder / "model.json", written | {"architecture": "inpainter"})
    with refused("detector", "RUN/STAGE/model", where=folder):
        detector_folder.load(folder)
    save_imported(folder, {})
    with refused("detector", "RUN/STAGE/model", where=folder):
        detector_folder.load(folder)


@pytest.mark.parametrize(
    "change, key",
    [
        (lambda c: c["input"].pop("flips"), "input.flips"),
        (lambda c: c["input"].update(flips=["sideways"]), "input.flips"),
        (lambda c: c["input"].update(flip=[]), "input.flip"),
        (lambda c: c["input"].update(crop_to_breast="yes"), "input.crop_to_breast"),
        (lambda c: c["input"].update(buckets=[[10**6, 10**6]]), "input.buckets"),
        (lambda c: c["input"]["resize"].pop("max_long_side"), "input.resize.max_long_side"),
        (lambda c: c["model"].pop("detection_nms_iou"), "model.detection_nms_iou"),
        (lambda c: c["model"].update(depth=77), "model.depth"),
        (lambda c: c["model"].pop("name"), "model.name"),
        (lambda c: c["operating_points"][0].update(threshold="0.4"), "operating_points[0].threshold"),
        (lambda c: c.update(operating_points={"1": 0.4}), "operating_points"),
        (lambda c: c.pop("classes"), "classes"),
        (lambda c: c.update(classes="mass"), "classes"),
        (lambda c: c.update(classes=["mass"]), "classes"),
        (lambda c: c["model"].update(name=["faster_rcnn"]), "model.name"),
        (lambda c: c.update(epoch=3), "epoch"),
        (lambda c: c["trained"].update(patients="abc"), "trained.patients"),
        (lambda c: c["trained"].pop("step"), "trained.step"),
        (lambda c: c.pop("trained"), "trained"),
        (lambda c: c.pop("format"), "format"),
        (lambda c: (c.pop("format"), c.pop("params_sha256")), "format"),
        (lambda c: c.update(format=3), "format"),
        (lambda c: c.pop("params_sha256"), "params_sha256"),
    ],
)
def test_a_description_has_every_key_and_no_other(folder, change, key):
    written = files.read_json(folder / "model.json")
    change(written)
    files.write_json(folder / "model.json", written)
    with refused(where=f"{folder / 'model.json'}: {key}"):
        detector_folder.load(folder)


def test_patients_may_be_taken_out_of_a_description(folder):
    written = files.read_json(folder / "model.json")
    del written["trained"]["patients"]
    files.write_json(folder / "model.json", written)
    assert detector_folder.load(folder).description.trained == dataclasses.replace(TRAINED, patients=())


def test_a_folder_of_an_earlier_version_is_read(folder):
    """Without format and hash; without names of detectors, mirrored views and the cut of the breast before those."""
    written = files.read_json(folder / "model.json")
    for section, names in ((written, ("format", "params_sha256", "trained")), (written["model"], ("name", "fpn_norm"))):
        for name in names:
            del section[name]
    del written["input"]["flips"], written["input"]["crop_to_breast"]
    save_earlier(folder, {"rpn": {"kernel": np.ones(2, np.float32)}}, written | {"note": "mine"})
    detector, params, description = detector_folder.load(folder)
    assert detector.config == CONFIG and params["rpn"]["kernel"].tolist() == [1, 1] and description.trained is None
    assert description.input == detector_folder.Input(False, LOADER.resize, ((64, 96),), ())
