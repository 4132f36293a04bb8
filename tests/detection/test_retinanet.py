"""RetinaNet: losses by hand, a batch's edge cases, learning. Torchvision's values: tests/weights/test_golden.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elk_jax.backbones.resnet import ResNetConfig
from elk_jax.detection import dense, retinanet
from elk_jax.detection.retinanet_config import RetinaNetConfig, plain

BACKBONE = ResNetConfig(
    depth=18, width=8, norm="gn", norm_groups=4, num_classes=0, pixel_mean=(0.5,), pixel_std=(0.25,)
)
TINY = RetinaNetConfig(
    num_classes=2,
    backbone=BACKBONE,
    fpn_channels=16,
    head_convs=1,
    head_norm="gn",
    norm_groups=4,
    anchor_sizes=((12.0,), (20.0,), (32.0,), (64.0,), (128.0,)),
    box_loss="giou",
    level_candidates=60,
    detections=6,
)
DETECTOR = retinanet.detector(TINY)


@pytest.fixture(scope="module")
def batch():
    """Two images of 64 x 64 pixels, noise with bright blobs: one lesion and two, of two classes, three slots."""
    image = np.random.default_rng(0).uniform(0, 0.3, (2, 64, 64, 1)).astype(np.float32)
    gt_boxes = np.zeros((2, 3, 4), np.float32)
    gt_boxes[0, 0], gt_boxes[1, :2] = [12, 20, 32, 44], [[4, 6, 20, 20], [36, 34, 58, 56]]
    gt_labels = np.array([[0, 0, 0], [1, 0, 0]], np.int32)
    for i, j in ((0, 0), (1, 0), (1, 1)):
        x1, y1, x2, y2 = gt_boxes[i, j].astype(int)
        image[i, y1:y2, x1:x2] += 0.3 + 0.3 * gt_labels[i, j]
    return {
        "image": image,
        "image_size": np.array([[64, 64], [60, 62]], np.float32),
        "gt_boxes": gt_boxes,
        "gt_labels": gt_labels,
        "gt_valid": np.array([[True, False, False], [True, True, False]]),
        "gt_ignore": np.zeros((2, 3), bool),
        "valid": np.ones(2, bool),
    }


@pytest.fixture(scope="module")
def step():
    return jax.jit(jax.value_and_grad(DETECTOR.loss, has_aux=True))


# ---- Losses by hand --------------------------------------------------------------------------------------------------


ANCHORS = np.array([[0, 0, 10, 10], [0, 0, 10, 20], [40, 40, 50, 50], [20, 20, 30, 30.0]], np.float32)
LESION = np.array([[0, 0, 10, 11], [20, 20, 30, 30]], np.float32)
"""The first lesion has IoU 10/11 with the first anchor, 11/20 with the second: both are positive. The second lesion is
that of the last anchor."""


def of_image(config, logits, deltas=None, ignore=(False, True), labels=(1, 0)):
    deltas = np.zeros((4, 4), np.float32) if deltas is None else deltas
    valid, truth = np.ones(2, bool), (np.asarray(labels, np.int32),)
    return jax.device_get(
        dense.image_losses(config, logits, deltas, ANCHORS, LESION, *truth, valid, np.asarray(ignore))
    )


@pytest.mark.parametrize("background", ["none", "first"])
def test_focal_loss_counts_positives_and_negatives_alone(background):
    """At logits of 0 each class of an anchor adds (1 - p)^2 log 2 = 0.25 log 2 times alpha or 1 - alpha."""
    config = RetinaNetConfig(num_classes=2, background=background)
    outputs = 2 + (background == "first")
    found = of_image(config, np.zeros((4, outputs), np.float32))
    # the last anchor lies in an ignored lesion; of the other three, two have one right class
    right, wrong = 2, 3 * outputs - 2
    np.testing.assert_allclose(found.classes, 0.25 * np.log(2) * (0.25 * right + 0.75 * wrong), rtol=1e-5)
    assert found.positives == 2
    confident = np.full((4, outputs), -20.0, np.float32)
    confident[:2, -1] = 20.0  # the class of the lesion is the last
    assert of_image(config, confident).classes < 1e-6
    confident[:2, -1], confident[:2, -2] = -20.0, 20.0
    assert of_image(config, confident).classes > 5


def test_box_losses_are_of_positives():
    l1 = of_image(RetinaNetConfig(num_classes=2), np.zeros((4, 2), np.float32)).box
    heights = np.array([10, 20.0])
    expected = (np.abs(5.5 - heights / 2) / heights + np.abs(np.log(11 / heights))).sum()
    np.testing.assert_allclose(l1, expected, rtol=1e-5)
    giou = of_image(RetinaNetConfig(num_classes=2, box_loss="giou"), np.zeros((4, 2), np.float32)).box
    np.testing.assert_allclose(giou, (1 - 10 / 11) + (1 - 11 / 20), rtol=1e-5)
    beside = np.full((4, 4), 3.0, np.float32)
    beside[:2] = 0
    assert of_image(RetinaNetConfig(num_classes=2), np.zeros((4, 2), np.float32), beside).box == l1


# ---- A batch ---------------------------------------------------------------------------------------------------------


def test_losses_are_means_over_images_of_what_each_has_alone(batch, step):
    params = DETECTOR.init(jax.random.key(0))
    (loss, terms), gradients = step(params, batch, jax.random.key(0))
    assert terms.keys() == {"loss_class", "loss_box", "positives"}
    np.testing.assert_allclose(loss, terms["loss_class"] + terms["loss_box"], rtol=1e-6)
    assert all(np.isfinite(leaf).all() and np.any(leaf) for name, leaf in gradients["box_head"]["deltas"].items())
    alone = []
    for i in range(2):
        chosen = {**batch, "valid": np.arange(2) == i}
        garbage = {**chosen, "gt_boxes": np.where((np.arange(2) == i)[:, None, None], batch["gt_boxes"], np.nan)}
        (value, _), gradients = step(params, garbage, jax.random.key(0))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
        alone.append(value)
    np.testing.assert_allclose(loss, np.mean(alone), rtol=1e-5)
    (value, _), gradients = step(params, {**batch, "valid": np.zeros(2, bool)}, jax.random.key(0))
    assert value == 0 and all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradients))
    (value, terms), gradients = step(params, {**batch, "gt_valid": np.zeros((2, 3), bool)}, jax.random.key(0))
    assert value > 0 and terms["loss_box"] == terms["positives"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_overfitting_finds_the_lesions(batch, step):
    optimizer = optax.adam(3e-3)
    params = DETECTOR.init(jax.random.key(0))
    state, losses = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for _ in range(80):
        (loss, _), gradients = step(params, batch, jax.random.key(0))
        updates, state = update(gradients, state)
        params = jax.tree.map(jnp.add, params, updates)
        losses.append(float(loss))
    assert losses[-1] < 0.3 * losses[0]
    found = jax.device_get(jax.jit(DETECTOR.predict)(params, batch))
    for i, j in ((0, 0), (1, 0), (1, 1)):
        best = np.abs(found["boxes"][i] - batch["gt_boxes"][i, j]).max(1).argmin()
        np.testing.assert_allclose(found["boxes"][i, best], batch["gt_boxes"][i, j], atol=5)
        assert found["labels"][i, best] == batch["gt_labels"][i, j] and found["scores"][i, best] > 0.3
    assert np.all(np.diff(found["scores"]) <= 0) and np.all(found["boxes"][~found["valid"]] == 0)
    assert np.all(found["boxes"][1] <= [62, 60, 62, 60])


# ---- Variants --------------------------------------------------------------------------------------------------------


def test_the_plain_map_has_heads_of_its_width(batch):
    """As CoMoTo's: five sizes at three ratios in every cell of C5."""
    detector = retinanet.detector(plain(backbone=BACKBONE, num_classes=1))
    params = jax.eval_shape(detector.init, jax.random.key(0))
    (level,) = jax.eval_shape(detector.features, params, batch)
    assert level.shape == (2, 2, 2, 64) and set(params) == {"backbone", "class_head", "box_head"}
    assert params["class_head"]["conv1"]["kernel"].shape == (3, 3, 64, 64)
    assert params["class_head"]["logits"]["kernel"].shape == (3, 3, 64, 15)
    found = jax.eval_shape(detector.predict, params, batch)
    assert found["boxes"].shape == (2, 300, 4)
    published = retinanet.detector(plain(backbone=ResNetConfig(num_classes=0), background="first"))
    shapes = jax.eval_shape(published.init, jax.random.key(0))
    heads = sum(leaf.size for name in ("class_head", "box_head") for leaf in jax.tree.leaves(shapes[name]))
    assert round(heads / 1e6, 1) == 303.7


def test_anchors_fit_the_outputs_of_odd_images():
    images = {"image": jnp.zeros((1, 75, 45, 1)), "image_size": jnp.array([[75.0, 45.0]])}
    model = retinanet.RetinaNet(TINY)

    def outputs(key):
        params = DETECTOR.init(key)
        return dense.outputs(model, params, dense.features(model, params, images))

    found = jax.eval_shape(outputs, jax.random.key(0))
    assert [level.shape for level in found.deltas] == [(1, *level.shape) for level in dense.anchors(TINY, 75, 45)]
    assert [level.shape[1:] for level in found.logits] == [(len(level), 2) for level in dense.anchors(TINY, 75, 45)]
