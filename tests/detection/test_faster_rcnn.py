"""The whole detector: published sizes, edge cases of a batch, learning, and independence of images.

One tiny network and two compiled functions serve the whole module; the training step allows a single trace,
so every test that uses it also proves that lesion-free, full and partly padded batches share one compilation.
"""

import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elk_jax.backbones.resnet import detectron2 as detectron2_resnet
from elk_jax.detection import faster_rcnn
from elk_jax.detection.faster_rcnn import (
    FasterRCNN,
    FasterRCNNConfig,
    detectron2,
    torchvision,
    torchvision_v2,
)

TINY = FasterRCNNConfig(
    num_classes=2,
    backbone=detectron2_resnet(
        depth=18, width=8, norm="gn", norm_groups=4, pixel_scale=1.0, pixel_mean=(0.5,), pixel_std=(0.25,)
    ),
    fpn_channels=16,
    anchor_sizes=((8,), (16,), (32,), (64,), (128,)),
    rpn_pre_nms_train=60,
    rpn_pre_nms_test=60,
    rpn_post_nms_train=60,
    rpn_post_nms_test=40,
    rpn_samples=64,
    roi_samples=48,
    roi_size=5,
    roi_sampling_ratio=1,
    box_fc_width=64,
    detections=6,
)
MODEL, DETECTOR = FasterRCNN(TINY), faster_rcnn.detector(TINY)


def computing_in(dtype):
    return dataclasses.replace(TINY, backbone=dataclasses.replace(TINY.backbone, dtype=dtype))


LOSSES = {"loss_rpn_objectness", "loss_rpn_box", "loss_class", "loss_box"}


@pytest.fixture(scope="module")
def batch():
    """Two images of 64 x 64 pixels, noise with bright blobs: one lesion and two, of two classes, four slots."""
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 0.3, (2, 64, 64, 1)).astype(np.float32)
    gt_boxes = np.zeros((2, 4, 4), np.float32)
    gt_boxes[0, 0] = [12, 20, 32, 44]
    gt_boxes[1, :2] = [[4, 6, 20, 20], [36, 34, 58, 56]]
    for i, j in ((0, 0), (1, 0), (1, 1)):
        x1, y1, x2, y2 = gt_boxes[i, j].astype(int)
        image[i, y1:y2, x1:x2] += 0.6
    return {
        "image": image,
        "image_size": np.array([[64, 64], [60, 62]], np.float32),
        "gt_boxes": gt_boxes,
        "gt_labels": np.array([[0, 0, 0, 0], [1, 0, 0, 0]], np.int32),
        "gt_valid": np.array([[True, False, False, False], [True, True, False, False]]),
        "gt_ignore": np.zeros((2, 4), bool),
        "valid": np.ones(2, bool),
    }


@pytest.fixture(scope="module")
def params():
    return DETECTOR.init(jax.random.key(0))


@pytest.fixture(scope="module")
def step():
    """(params, batch, rng) -> ((loss, metrics), gradients), compiled once."""

    def loss(params, batch, rng):
        return DETECTOR.loss(params, batch, rng)

    return jax.jit(jax.value_and_grad(chex.assert_max_traces(loss, n=1), has_aux=True))


@pytest.fixture(scope="module")
def predict():
    return jax.jit(chex.assert_max_traces(lambda params, batch: DETECTOR.predict(params, batch), n=1))


@pytest.fixture(scope="module")
def trained(params, batch, step):
    """(losses, parameters) of overfitting the two images."""
    optimizer = optax.adam(2e-3)

    @jax.jit
    def update(gradients, state, params):
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state

    state, losses = optimizer.init(params), []
    for i in range(120):
        (loss, _), gradients = step(params, batch, jax.random.key(i))
        params, state = update(gradients, state, params)
        losses.append(float(loss))
    return losses, params


def inference(batch, **changes):
    return {key: {**batch, **changes}[key] for key in ("image", "image_size")}


def paths(tree):
    return {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def shapes(config):
    return paths(jax.eval_shape(faster_rcnn.detector(config).init, jax.random.key(0)))


# Parameters.


@pytest.mark.parametrize(("preset", "published"), [(torchvision, 41_755_286), (torchvision_v2, 43_712_278)])
def test_parameter_counts_are_those_of_torchvision(preset, published):
    """Of the networks for COCO, 90 classes and background; statistics and frozen norms do not count."""
    config = preset(num_classes=90)
    frozen = faster_rcnn.frozen(config)
    sizes = {path: leaf.size for path, leaf in shapes(config).items()}
    assert sum(size for path, size in sizes.items() if not any(re.search(p, path) for p in frozen)) == published


def test_names_that_converted_weights_rely_on():
    names = set(shapes(detectron2()))
    assert {
        "backbone/stem/conv/kernel",
        "backbone/stem/conv/norm/var",
        "backbone/res4_22/conv3/norm/scale",
        "backbone/res2_0/shortcut/kernel",
        "fpn/lateral5/bias",
        "fpn/output2/kernel",
        "rpn/conv1/kernel",
        "rpn/objectness/bias",
        "rpn/deltas/kernel",
        "box_head/fc2/kernel",
        "box_head/class_logits/bias",
        "box_head/box_deltas/kernel",
    } <= names
    assert {name.split("/")[0] for name in names} == {"backbone", "fpn", "rpn", "box_head"}


def test_frozen_patterns_cover_the_batch_norms_and_nothing_else():
    for config, per_norm in ((detectron2(), 4), (torchvision_v2(), 2), (TINY, 0)):
        names = shapes(config)
        frozen = [n for n in names if any(re.search(p, n) for p in faster_rcnn.frozen(config))]
        norms = {n.rsplit("/", 1)[0] for n in names if "/norm/" in n}
        assert len(frozen) == per_norm * len(norms)


def test_initial_parameters_follow_the_key(params):
    again = DETECTOR.init(jax.random.key(0))
    other = DETECTOR.init(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    kernels = [(a, b) for a, b in zip(*map(jax.tree.leaves, (params, other))) if a.ndim > 1]
    assert all(not np.allclose(a, b) for a, b in kernels)
    a, b = (params["backbone"]["res3_1"][name]["kernel"].ravel() for name in ("conv1", "conv2"))
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(a.size)


# Steps.


def test_anchors_fit_the_outputs_of_odd_images():
    batch = {"image": jnp.zeros((1, 75, 45, 1)), "image_size": jnp.array([[75.0, 45.0]])}

    def outputs(key):
        params = DETECTOR.init(key)
        return faster_rcnn.rpn_outputs(MODEL, params, faster_rcnn.features(MODEL, params, batch))

    levels = jax.eval_shape(outputs, jax.random.key(0)).objectness_logits
    anchors = faster_rcnn.anchors(TINY, 75, 45)
    assert [level.shape for level in levels] == [(1, len(level)) for level in anchors]


def test_every_step_can_be_called_alone(batch, params):
    """What distillation and comparisons of weights look at, with its shapes; boxes of the training chain."""

    def steps(params, batch, rngs):
        pyramid = faster_rcnn.features(MODEL, params, batch)
        outputs = faster_rcnn.rpn_outputs(MODEL, params, pyramid)
        proposed = faster_rcnn.proposals(TINY, outputs, batch, training=True)
        samples = faster_rcnn.roi_samples(TINY, proposed, batch, rngs)
        regions = faster_rcnn.pooled(TINY, pyramid, samples.boxes, samples.valid)
        scored = faster_rcnn.box_outputs(MODEL, params, regions)
        return pyramid, proposed, samples, regions, scored

    rngs = jax.random.split(jax.random.key(0), 2)
    pyramid, proposed, samples, regions, scored = jax.eval_shape(steps, params, batch, rngs)
    assert [level.shape for level in pyramid] == [(2, size, size, 16) for size in (16, 8, 4, 2, 1)]
    assert proposed.boxes.shape == (2, 60, 4)
    assert samples.gt_boxes.shape == (2, 48, 4)
    assert regions.shape == (2, 48, 5, 5, 16)
    assert scored.class_logits.shape == (2, 48, 3)
    assert scored.box_deltas.shape == (2, 48, 2, 4)
    assert scored.embedding.shape == (2, 48, 64)


def test_float64_stays_float64_and_bfloat16_losses_are_float32(batch, params):
    def dtypes(config, params):
        detector = faster_rcnn.detector(config)
        total, metrics = jax.eval_shape(detector.loss, params, batch, jax.random.key(0))
        found = jax.eval_shape(detector.predict, params, batch)
        return {
            total.dtype,
            found["boxes"].dtype,
            found["scores"].dtype,
            *(metrics[name].dtype for name in LOSSES),
        }

    assert dtypes(computing_in("bfloat16"), params) == {jnp.dtype("float32")}
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        assert dtypes(computing_in("float64"), wide) == {jnp.dtype("float64")}


# Loss.


def test_loss_is_the_sum_of_its_terms(params, batch, step):
    (loss, metrics), gradients = step(params, batch, jax.random.key(0))
    assert metrics.keys() == LOSSES | {"rpn_positives", "roi_positives", "proposals"}
    np.testing.assert_allclose(loss, sum(metrics[name] for name in LOSSES), rtol=1e-6)
    # At the start the sigmoid says 0.5 and the softmax of three classes 1/3, whatever the image.
    np.testing.assert_allclose(metrics["loss_rpn_objectness"], np.log(2), rtol=0.05)
    np.testing.assert_allclose(metrics["loss_class"], np.log(3), rtol=0.05)
    assert metrics["roi_positives"] >= 1.5  # at least the lesions themselves
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    # Every part learns, but for convolutions behind the zero scale that ends a residual branch, and the outputs of
    # coarse levels when none of their few anchors is drawn.
    learning = ("backbone/stem", "fpn/lateral", "fpn/output2", "rpn", "box_head")
    assert all(np.any(g) for path, g in paths(gradients).items() if path.startswith(learning))


CASES = {
    "no lesion": {"gt_valid": False},
    "all ignored": {"gt_ignore": True, "gt_valid": True},
    "one image with lesions": {"gt_valid": np.array([[True, False, False, False], [False] * 4])},
}


@pytest.mark.parametrize("case", CASES)
def test_batches_without_lesions_have_finite_losses_and_gradients(case, params, batch, step):
    changes = {key: np.broadcast_to(value, (2, 4)) for key, value in CASES[case].items()}
    (loss, metrics), gradients = step(params, {**batch, **changes}, jax.random.key(0))
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert any(np.any(g != 0) for g in jax.tree.leaves(gradients["backbone"]))
    lesions = case == "one image with lesions"
    assert (metrics["loss_box"] > 0) == lesions
    assert (metrics["loss_rpn_box"] > 0) == lesions


def test_full_batches_and_broken_padding_share_the_compilation(params, batch, step):
    copies = np.broadcast_to(batch["gt_boxes"][:, :1], (2, 4, 4))
    full = {**batch, "gt_valid": np.ones((2, 4), bool), "gt_boxes": copies}
    garbage = np.where(batch["gt_valid"][..., None], batch["gt_boxes"], np.nan)
    for each in (full, {**batch, "gt_boxes": garbage}):
        (loss, _), gradients = step(params, each, jax.random.key(0))
        assert np.isfinite(loss)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_images_that_only_fill_the_batch_count_for_nothing(params, batch, step):
    """Whatever the second image holds, and nothing is left when both are filling."""
    half = {**batch, "valid": np.array([True, False])}
    twins = {key: np.stack([half[key][0]] * 2) for key in ("image", "gt_boxes", "gt_valid")}
    other = {**half, **twins}
    results = [step(params, each, jax.random.key(0)) for each in (half, other)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results)
    (loss, _), gradients = step(params, {**batch, "valid": np.zeros(2, bool)}, jax.random.key(0))
    assert loss == 0
    assert all(np.all(g == 0) for g in jax.tree.leaves(gradients))


def test_the_order_of_lesions_does_not_matter(params, batch, step):
    order = np.array([2, 1, 3, 0])
    truth = ("gt_boxes", "gt_labels", "gt_valid", "gt_ignore")
    permuted = {**batch, **{key: batch[key][:, order] for key in truth}}
    (expected, _), (found, _) = (step(params, each, jax.random.key(0))[0] for each in (batch, permuted))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_key_decides_the_samples(params, batch, step):
    (a, _), (b, _), (c, _) = (step(params, batch, jax.random.key(i))[0] for i in (0, 0, 1))
    assert a == b
    assert a != c


def test_padding_more_lesions_changes_no_target(batch):
    """RPN sums of made-up outputs with four and with nine slots for lesions."""
    rng = np.random.default_rng(0)
    anchors = faster_rcnn.anchors(TINY, 64, 64)
    outputs = faster_rcnn.RPNOutputs(
        tuple(rng.normal(size=(2, len(a))).astype(np.float32) for a in anchors),
        tuple(rng.normal(size=(2, *a.shape)).astype(np.float32) for a in anchors),
    )
    more = {
        key: np.pad(batch[key], ((0, 0), (3, 2)) + ((0, 0),) * (batch[key].ndim - 2))
        for key in ("gt_boxes", "gt_labels", "gt_valid", "gt_ignore")
    }
    sums = jax.jit(lambda b, keys: faster_rcnn.rpn_sums(TINY, outputs, b, keys))
    keys = jax.random.split(jax.random.key(0), 2)
    expected, found = sums(batch, keys), sums({**batch, **more}, keys)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), expected, found)


# Learning and predicting.


def iou(a, b):
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    return sides.prod() / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - sides.prod())


def test_overfitting_finds_the_lesions(trained, batch, predict):
    losses, params = trained
    assert np.mean(losses[-10:]) < 0.3 * losses[0]
    found = jax.device_get(predict(params, inference(batch)))
    for i in range(2):
        truth = batch["gt_boxes"][i][batch["gt_valid"][i]]
        labels = batch["gt_labels"][i][batch["gt_valid"][i]]
        for box, label in zip(truth, labels):
            overlaps = np.array([iou(box, other) for other in found["boxes"][i][: len(truth)]])
            assert overlaps.max() > 0.6
            assert found["labels"][i][overlaps.argmax()] == label
        assert found["scores"][i][0] > 0.6


def test_predictions_are_sorted_clipped_and_zero_where_not_valid(trained, batch, predict):
    found = jax.device_get(predict(trained[1], inference(batch)))
    assert {key: array.shape for key, array in found.items()} == {
        "boxes": (2, 6, 4),
        "scores": (2, 6),
        "labels": (2, 6),
        "valid": (2, 6),
    }
    assert np.all(np.diff(found["scores"]) <= 0)
    assert np.all(found["boxes"][0] <= 64)
    assert np.all(found["boxes"][1] <= [62, 60, 62, 60])
    assert np.all(found["scores"][found["valid"]] > TINY.score_floor)
    assert np.all(found["boxes"][~found["valid"]] == 0)


def test_images_do_not_influence_each_other(trained, batch, predict):
    """Neither its place in the batch nor a neighbour full of NaN changes what is found in an image."""
    expected = jax.device_get(predict(trained[1], inference(batch)))
    swapped = jax.device_get(predict(trained[1], jax.tree.map(lambda x: x[::-1], inference(batch))))
    broken = batch["image"].copy()
    broken[1] = np.nan
    beside_nan = jax.device_get(predict(trained[1], inference(batch, image=broken)))
    for key in expected:
        np.testing.assert_allclose(swapped[key][::-1], expected[key], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(beside_nan[key][0], expected[key][0], rtol=1e-5, atol=1e-4)
    assert expected["valid"][:, 0].all()
    assert not beside_nan["valid"][1].any()
    assert np.isfinite(beside_nan["boxes"]).all()


def test_bfloat16_finds_the_same(trained, batch, predict):
    in_bfloat16 = jax.jit(faster_rcnn.detector(computing_in("bfloat16")).predict)
    half = jax.device_get(in_bfloat16(trained[1], inference(batch)))
    full = jax.device_get(predict(trained[1], inference(batch)))
    np.testing.assert_allclose(half["scores"][:, 0], full["scores"][:, 0], atol=0.1)
    for i in range(2):
        assert iou(half["boxes"][i, 0], full["boxes"][i, 0]) > 0.8
    assert half["boxes"].dtype == half["scores"].dtype == np.float32
