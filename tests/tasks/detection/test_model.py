"""A detector as a folder."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from elk_jax import files
from elk_jax.backbones import resnet
from elk_jax.data.augment import Resize
from elk_jax.data.batches import detection
from elk_jax.data.batches.detection import LoaderConfig
from elk_jax.detection import detectors, faster_rcnn_config
from elk_jax.detection.efficientdet_config import EfficientDetConfig
from elk_jax.detection.retinanet_config import RetinaNetConfig
from elk_jax.evaluation.operating import Choice, ChosenOn, OperatingPoint
from elk_jax.tasks.detection import model as detector_folder
from elk_jax.weights import model_folder
from tests.detection import toy_detector
from tests.models import save_earlier, save_imported
from tests.refusals import refused

SIZES = ((8.0,), (12.0,), (18.0,), (27.0,), (40.0,))
TRAINED = model_folder.Training(7, ("real",), "weights/coco", ("a1", "b2"))
CONFIG = faster_rcnn_config.detectron2(backbone=resnet.detectron2(depth=18), num_classes=2, anchor_sizes=SIZES)
LOADER = LoaderConfig(resize=Resize(short_sides=(64,), max_long_side=96, jitter=()), buckets=((64, 96),))


@pytest.fixture
def folder(tmp_path):
    choice = Choice((OperatingPoint(1.0, 0.4, sensitivity=0.5),), ChosenOn("validation", 9, 20, 30, 40))
    description = detector_folder.describe(
        detectors.build(CONFIG), ("mass", "other"), LOADER, True, ("vertical",), choice, TRAINED
    )
    model_folder.save_params(tmp_path, {"rpn": {"kernel": np.ones(2, np.float32)}}, description)
    return tmp_path


def test_a_folder_is_read_as_it_was_written(folder):
    detector, params, description = detector_folder.load(folder)
    assert detector.config == CONFIG and detector.name == description.architecture == "faster_rcnn"
    assert params["rpn"]["kernel"].tolist() == [1, 1] and description.classes == ("mass", "other")
    assert description.input == detector_folder.Input(True, LOADER.resize, ((64, 96),), ("vertical",))
    assert description.operating_points == (OperatingPoint(1.0, 0.4, sensitivity=0.5),)
    assert description.chosen_on == ChosenOn("validation", 9, 20, 30, 40)
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
        (lambda c: c["input"].update(slice_greys="mine"), "input.slice_greys"),
        (lambda c: c["input"].update(crop_to_breast="yes"), "input.crop_to_breast"),
        (lambda c: c["input"].update(buckets=[[10**6, 10**6]]), "input.buckets"),
        (lambda c: c["input"]["resize"].pop("max_long_side"), "input.resize.max_long_side"),
        (lambda c: c["model"].pop("detection_nms_iou"), "model.detection_nms_iou"),
        (lambda c: c["model"]["backbone"].update(depth=77), "model.backbone.depth"),
        (lambda c: c["model"]["backbone"].pop("norm"), "model.backbone.norm"),
        (lambda c: c["model"].pop("backbone"), "model.backbone"),
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


def test_a_folder_may_lack_how_images_are_stretched_and_slices_scaled(folder):
    written = files.read_json(folder / "model.json")
    for name in ("stretch", "rounding", "pixels", "boxes", "float16_white"):
        del written["input"]["resize"][name]
    del written["input"]["slice_greys"], written["input"]["same"], written["operating_points"][0]["rate"]
    files.write_json(folder / "model.json", written)
    found = detector_folder.load(folder).description.input
    assert found.resize == LOADER.resize and found.slice_greys == "window" and found.same == 0.5


# ---- As a model to train -------------------------------------------------------------------------------------------

TINY = faster_rcnn_config.detectron2(
    backbone=resnet.detectron2(depth=18, width=8, norm="gn", norm_groups=8, pixel_mean=(60.0,), pixel_std=(60.0,)),
    fpn_channels=8, box_fc_width=16, roi_samples=8, rpn_samples=32, rpn_pre_nms_train=16, rpn_post_nms_train=16,
    anchor_sizes=SIZES,
)  # fmt: skip
KINDS = {
    "faster_rcnn": detectors.build(TINY),
    "retinanet": detectors.build(
        RetinaNetConfig(backbone=TINY.backbone, fpn_channels=8, head_convs=1, anchor_sizes=SIZES)
    ),
    "efficientdet": detectors.build(
        EfficientDetConfig(backbone=TINY.backbone, channels=8, cells=1, head_convs=1, anchor_sizes=SIZES)
    ),
    "toy": toy_detector.detector(toy_detector.ToyConfig(width=4)),
}


@pytest.fixture(scope="module")
def batch():
    """Four images: with two lesions, with one in a smaller image, without any, and one that only fills the batch."""
    rng = np.random.default_rng(0)
    found = detection.empty_batch(4, (64, 64), 4)
    found["image"][:] = rng.random(found["image"].shape)
    found["image_size"][:] = [[64, 64], [48, 32], [64, 64], [64, 64]]
    found["gt_boxes"][0, :2] = [[8, 8, 24, 30], [40, 30, 60, 50]]
    found["gt_boxes"][[1, 3], 0] = [[4, 6, 20, 20], [10, 10, 50, 50]]
    found["gt_valid"][0, :2] = found["gt_valid"][[1, 3], 0] = True
    found["valid"][:3] = True
    return {name: found[name] for name in (*detection.LEARNED, "valid")}


@pytest.mark.parametrize("name", KINDS)
def test_a_loss_per_image_is_the_mean_of_the_losses_of_single_images(name, batch):
    """Which each detector gives for a batch of one."""
    one, key = KINDS[name], jax.random.key(5)
    assert not detector_folder.trainable(one).per_example
    params = one.init(jax.random.key(0))
    loss = jax.jit(
        lambda params, batch: detector_folder.trainable(one, per_image=True).loss(params, {}, batch, key, jax.vmap)
    )
    alone = jax.jit(lambda image, key: one.loss(params, image, key, jax.vmap))
    singles = [
        alone({name: x[i : i + 1] for name, x in batch.items()}, key) for i, key in enumerate(jax.random.split(key, 4))
    ]
    value, terms = loss(params, batch)
    assert value == pytest.approx(float(np.mean([single for single, _ in singles[:3]])), rel=1e-5)
    for term, found in terms.items():
        assert found == pytest.approx(float(np.mean([each[term] for _, each in singles[:3]])), rel=1e-5), term
    filler = batch | {"image": batch["image"].copy()}
    filler["image"][3] = 0.25
    assert loss(params, filler)[0] == value
    assert loss(params, batch | {"valid": np.zeros(4, bool)})[0] == 0
