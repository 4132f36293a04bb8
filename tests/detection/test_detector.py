"""The interface of detectors, on a second one that lives in the tests alone, and on Faster R-CNN."""

from __future__ import annotations

import dataclasses
import re
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from elk_jax.backbones import efficientnet, networks, resnet, swin
from elk_jax.backbones.resnet import ResNetConfig
from elk_jax.detection import backbone, closeups, detectors, faster_rcnn, retinanet_config
from elk_jax.detection.detector import Detector, has_anchors
from elk_jax.detection.efficientdet_config import EfficientDetConfig
from elk_jax.detection.faster_rcnn_config import FasterRCNNConfig, detectron2
from elk_jax.detection.fused_config import FusedConfig
from elk_jax.detection.retinanet_config import RetinaNetConfig
from elk_jax.errors import UserError
from elk_jax.weights import model_folder
from tests.detection import toy_detector
from tests.refusals import refused

SMALL = {
    "resnet": resnet.detectron2(depth=18, width=8, norm="none"),
    "efficientnet": efficientnet.EfficientNetConfig(
        width=0.25, depth=0.2, norm="none", squeeze_excite=False, head=False, num_classes=0, drop_path=0.0
    ),
    "swin": swin.SwinConfig(embed=8, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), window=4, num_classes=0, drop_path=0.5),
}
SMALL["monai_swin"] = swin.MonaiSwinConfig(**{**vars(SMALL["swin"]), "name": "monai_swin", "patch": 2})
"""A small backbone of every kind."""
SETTINGS = {"name": "toy", "num_classes": 2, "dropped": 0.5, "detections": 4}


@pytest.fixture
def toy(monkeypatch) -> Detector:
    monkeypatch.setitem(detectors.DETECTORS, "toy", toy_detector.KIND)
    return detectors.stored({"architecture": "toy", "model": SETTINGS}, Path("toy/model.json"))


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    """Two noisy images of 64 x 64 pixels with bright lesions of two classes; a third, broken one fills the batch."""
    image = np.random.default_rng(0).uniform(0, 0.3, (3, 64, 64, 1)).astype(np.float32)
    gt_boxes = np.zeros((3, 2, 4), np.float32)
    gt_boxes[0, 0], gt_boxes[1] = [12, 20, 32, 44], [[4, 6, 22, 26], [36, 30, 58, 56]]
    gt_labels = np.array([[0, 0], [1, 0], [0, 0]], np.int32)
    for i, j in ((0, 0), (1, 0), (1, 1)):
        x1, y1, x2, y2 = gt_boxes[i, j].astype(int)
        image[i, y1:y2, x1:x2] += 0.3 + 0.4 * gt_labels[i, j]
    return {
        "image": image,
        "image_size": np.full((3, 2), 64, np.float32),
        "gt_boxes": gt_boxes,
        "gt_labels": gt_labels,
        "gt_valid": np.array([[True, False], [True, True], [True, True]]),
        "gt_ignore": np.zeros((3, 2), bool),
        "valid": np.array([True, True, False]),
    }


# ---- Chosen by name ------------------------------------------------------------------------------------------------


def test_the_name_chooses_the_detector(toy):
    assert toy.name == "toy" and toy.config == toy_detector.ToyConfig(num_classes=2, dropped=0.5, detections=4)
    kinds = {"faster_rcnn": FasterRCNNConfig, "retinanet": RetinaNetConfig, "efficientdet": EfficientDetConfig}
    kinds |= {"fused": FusedConfig}
    assert detectors.kinds() == {**kinds, "toy": toy_detector.ToyConfig}
    settings = {"name": "faster_rcnn", "backbone": {"name": "resnet", "depth": 18, "num_classes": 0}}
    ours = detectors.stored_config({"model": settings}, Path("model.json"))
    assert ours == detectron2(backbone=ResNetConfig(depth=18, num_classes=0))
    assert detectors.build(ours).name == "faster_rcnn"
    assert has_anchors(ours) and not has_anchors(toy.config)


def test_a_description_from_before_there_were_other_backbones_is_read():
    before = {"depth": 18, "width": 8, "norm": "gn", "norm_groups": 4, "pixel_mean": [60.0], "pixel_std": [60.0]}
    ours = detectors.stored_config({"model": {**before, "dtype": "bfloat16", "fpn_channels": 64}}, Path("model.json"))
    expected = resnet.detectron2(
        depth=18, width=8, norm="gn", norm_groups=4, pixel_mean=(60.0,), pixel_std=(60.0,), dtype="bfloat16"
    )
    assert ours == detectron2(backbone=expected, norm_groups=4, fpn_channels=64)
    with refused("depth", where="model.json: model.backbone.depth"):
        detectors.stored_config({"model": {"depth": 77}}, Path("model.json"))


@pytest.mark.parametrize(
    "settings, where, word",
    [
        ({"name": "yolo"}, "model.json: model.name", "faster_rcnn"),
        ({"name": None}, "model.json: model.name", "faster_rcnn"),
        ({"name": "toy", "width": 0}, "model.json: model.width", "at least 1"),
        ({"name": "toy", "anchor_sizes": ()}, "model.json: model.anchor_sizes", "num_classes"),  # another's field
    ],
)
def test_impossible_settings_are_refused_with_their_field(toy, settings, where, word):
    with pytest.raises(UserError) as error:
        detectors.stored_config({"model": settings}, Path("model.json"))
    assert error.value.where == where and word in error.value.todo


@pytest.mark.parametrize("architecture", ["resnet", "inpainter", ""])
def test_another_kind_of_model_is_refused(architecture):
    with pytest.raises(UserError) as error:
        detectors.stored({"architecture": architecture, "model": {}}, Path("theirs/model.json"))
    assert error.value.where == "theirs" and "detector" in error.value.what


def test_every_detector_has_what_a_training_sets_and_its_own_name(toy):
    for name, kind in detectors.kinds().items():
        config = dataclasses.replace(kind(), num_classes=3, score_floor=0.25)
        detector = detectors.build(config)
        assert (detector.name, detector.config.num_classes, detector.config.score_floor) == (name, 3, 0.25)


# ---- The weights ---------------------------------------------------------------------------------------------------


def shapes(detector: Detector) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(detector.init, jax.random.key(0)))
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in leaves}


def test_class_layers_are_those_whose_shape_follows_from_the_classes(toy):
    small = SMALL["resnet"]
    efficient = EfficientDetConfig(backbone=small, cells=1, head_convs=1)
    others = (detectron2(backbone=small), retinanet_config.torchvision(backbone=small), efficient)
    for config in (toy.config, *others):
        one, many = (shapes(detectors.build(dataclasses.replace(config, num_classes=n))) for n in (1, 3))
        layers = detectors.build(config).class_layers
        assert {name for name in one if re.search(layers, name)} == {n for n in one if one[n] != many[n]}


def test_conventions_are_fields_and_layers_of_their_detector(toy):
    grouped = [resnet.detectron2(depth=50, norm="gn"), dataclasses.replace(SMALL["efficientnet"], norm="gn")]
    others = [detectron2(backbone=network, fpn_norm="gn") for network in (*grouped, SMALL["swin"])]
    others += [RetinaNetConfig(backbone=grouped[0], head_norm="gn"), retinanet_config.plain(backbone=grouped[0])]
    others += [EfficientDetConfig(backbone=grouped[1], cells=1, head_convs=1)]
    for config in (toy.config, *others):
        detector = detectors.build(config)
        names, settings = list(shapes(detector)), model_folder.flatten(dataclasses.asdict(config))
        for field, layers in detector.conventions.items():
            assert field.replace(".", "/") in settings, field
            assert any(re.search(layers, name) for name in names), (field, layers)


def test_weights_settle_the_conventions_of_their_layers(toy):
    assert toy.settled_by(["backbone_0/kernel", "sides/bias"]) == ["pixel_std"]
    assert toy.settled_by(["sides/bias"]) == []
    grey = faster_rcnn.detector(detectron2(backbone=resnet.detectron2(pixel_mean=(60.0,), pixel_std=(60.0,))))
    assert grey.settled_by(["backbone/stem/conv/kernel"]) == ["backbone.pixel_scale"]  # its contrast may change
    scale = ["fpn/lateral2/norm/scale"]
    assert faster_rcnn.detector(detectron2(fpn_norm="affine_bn")).settled_by(scale) == ["norm_eps"]
    assert faster_rcnn.detector(detectron2(fpn_norm="gn")).settled_by(scale) == ["norm_groups", "norm_eps"]


# ---- Features, loss and predictions --------------------------------------------------------------------------------


def test_strides_are_those_of_the_features(toy, batch):
    kinds = (detectron2, RetinaNetConfig, retinanet_config.plain, EfficientDetConfig)
    configs = [make(backbone=SMALL["resnet"]) for make in kinds]
    for detector in (toy, *map(detectors.build, configs)):
        params = jax.eval_shape(detector.init, jax.random.key(0))
        pyramid = jax.eval_shape(detector.features, params, batch)
        assert [level.shape[1:3] for level in pyramid] == [(-(-64 // s), -(-64 // s)) for s in detector.strides]


@pytest.mark.parametrize("kind", SMALL)
def test_every_network_can_be_the_backbone(batch, kind):
    """Features are those of the network, every part learns, and what is outside of an image does not matter."""
    network, config = networks.NETWORKS[kind], SMALL[kind]
    sizes = tuple((size,) for size in (8.0, 16.0, 32.0, 64.0, 128.0))
    detector = detectors.build(
        RetinaNetConfig(backbone=config, num_classes=2, fpn_channels=8, head_convs=1, anchor_sizes=sizes)
    )

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(params, batch, rng):
        maps = network.features(config, params, batch["image"], image_size=batch["image_size"])
        stages = backbone.stages(config, params, batch, strides=(4, 8, 16, 32))
        return maps, stages, jax.value_and_grad(detector.loss, has_aux=True)(params, batch, rng)

    params, smaller = detector.init(jax.random.key(0)), {**batch, "image_size": np.full((3, 2), (64, 40), np.float32)}
    maps, stages, ((loss, _), gradients) = run(params, smaller, jax.random.key(1))
    assert np.isfinite(loss) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    first = "patches" if "swin" in kind else "stem"
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients["backbone"][first]))
    last = dict(zip(network.strides(config), maps, strict=True))
    for stride, stage in zip((4, 8, 16, 32), stages, strict=True):
        np.testing.assert_allclose(stage, last[stride], atol=1e-4)
        assert stage.shape[1:3] == (64 // stride, 64 // stride)
    outside = np.where(np.arange(64)[:, None] < 40, batch["image"], 9.0).astype(np.float32)
    (other, _), _ = run(params, {**smaller, "image": outside}, jax.random.key(1))[2]
    assert loss == other

    two_stages = faster_rcnn.detector(detectron2(backbone=config, fpn_channels=8, box_fc_width=8))
    fresh = jax.eval_shape(two_stages.init, jax.random.key(0))
    assert jax.eval_shape(two_stages.loss, fresh, batch, jax.random.key(0))[0].shape == ()


def test_loss_and_predictions_are_computed_from_features(toy, batch):
    """Distillation and fusion stand between the two; features have a random key of their own in training alone."""

    @jax.jit
    def compute(params, rng):
        pyramid = toy.features(params, batch)
        other = tuple(2 * level for level in pyramid)
        predictions = [toy.predict_from_features(params, p, batch, jax.vmap) for p in (pyramid, other)]
        losses = [toy.loss_from_features(params, p, batch, rng, jax.vmap)[0] for p in (pyramid, other)]
        random = [toy.loss(params, batch, key)[0] for key in jax.random.split(rng, 8)]
        return toy.predict(params, batch), predictions, losses, random

    computed = compute(toy.init(jax.random.key(0)), jax.random.key(1))
    predicted, (expected, other), losses, random = jax.device_get(computed)
    jax.tree.map(np.testing.assert_array_equal, predicted, expected)
    assert (other["scores"] != predicted["scores"]).any()
    assert losses[0] != losses[1]
    assert len({round(float(loss), 4) for loss in random}) > 1  # the images that lose a layer change


def test_a_toy_learns_to_find_lesions(toy, batch):
    params, optimizer = toy.init(jax.random.key(0)), optax.adam(1e-2)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, rng):
        (loss, _), gradients = jax.value_and_grad(toy.loss, has_aux=True)(params, batch, rng)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, loss

    losses = []
    for i in range(100):
        params, state, loss = step(params, state, jax.random.key(i))
        losses.append(float(loss))
    assert np.mean(losses[-10:]) < 0.2 * losses[0]
    found = jax.device_get(jax.jit(toy.predict)(params, batch))
    for i, j in ((0, 0), (1, 0), (1, 1)):
        best = np.abs(found["boxes"][i] - batch["gt_boxes"][i, j]).max(1).argmin()
        np.testing.assert_allclose(found["boxes"][i, best], batch["gt_boxes"][i, j], atol=4)
        assert found["labels"][i, best] == batch["gt_labels"][i, j]


def test_closeups_are_seen_one_by_one(toy, monkeypatch):
    monkeypatch.setattr(closeups, "BATCH", 3)
    images = np.random.default_rng(0).uniform(size=(4, 64, 64))
    features = closeups.closeup_features(toy, toy.init(jax.random.key(0)))
    found = features(images)
    assert found.shape == (4, toy.config.width) and np.abs(found[0] - found[1]).max() > 1e-4
    np.testing.assert_allclose(features(images[3:])[0], found[3], atol=1e-6)
