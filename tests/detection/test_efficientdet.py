"""EfficientDet: published sizes, losses by hand, edge cases. Values of effdet: tests/weights/test_golden.py."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax import fields
from elk_jax.backbones import depthwise
from elk_jax.backbones.efficientnet import blocks
from elk_jax.backbones.resnet import ResNetConfig
from elk_jax.detection import dense, efficientdet
from elk_jax.detection.efficientdet_config import VARIANTS, EfficientDetConfig, named
from tests.backbones.test_efficientnet import PUBLISHED as NETWORKS
from tests.refusals import refused

PUBLISHED = {
    **{"d0": 3_880_067, "d1": 6_625_898, "d2": 8_097_039, "d3": 12_032_296, "d4": 20_723_675, "d5": 33_653_315},
    **{"d6": 51_871_782, "d7": 51_871_782, "d7x": 77_147_166},
}
"""Trained parameters at 90 classes (google/automl)."""
WIDTHS = {"b0": 1280, "b1": 1280, "b2": 1408, "b3": 1536, "b4": 1792, "b5": 2048, "b6": 2304, "b7": 2560}
"""Of the head convolution of an EfficientNet, which the detector leaves out with the classifier of 1,000 classes."""

SIZES = ((12.0,), (20.0,), (32.0,), (64.0,), (128.0,))
BACKBONE = ResNetConfig(
    depth=18, width=8, norm="gn", norm_groups=4, num_classes=0, pixel_mean=(0.5,), pixel_std=(0.25,)
)
TINY = EfficientDetConfig(
    num_classes=2, backbone=BACKBONE, channels=8, cells=1, head_convs=1, norm_groups=2, anchor_sizes=SIZES
)  # fmt: skip
DETECTOR = efficientdet.detector(TINY)


@pytest.mark.parametrize("variant", PUBLISHED)
def test_parameter_counts_are_published(variant, monkeypatch):
    monkeypatch.setattr(depthwise, "shifted", depthwise.grouped)  # the same maps, of fewer operations to trace
    config = named(variant, num_classes=90, norm="affine_bn")
    widths = {block.stage: block.features for block in blocks(config.backbone)}
    channels = [tuple(widths.values())[place] for place in (2, 4, 6)]
    stages = [jnp.zeros((1, size, size, width)) for size, width in zip((8, 4, 2), channels)]
    model = efficientdet.EfficientDet(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), stages)["params"]
    count = sum(
        math.prod(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
        if path[-1].key not in ("mean", "var")
    )
    network = VARIANTS[variant][0]
    left_out = 1000 * (WIDTHS[network] + 1) + WIDTHS[network] * (channels[-1] + 2)
    assert count + NETWORKS[network] - left_out == PUBLISHED[variant]


@pytest.mark.parametrize(
    "field, value",
    [
        ("levels", 2),
        ("fusion", "softmax"),
        ("activation", "gelu"),
        ("padding", "valid"),
        ("norm", "batch"),
        ("norm_groups", 7),
        ("anchor_sizes", SIZES[:4]),
        ("iou_low", 0.6),
        ("soft_nms_sigma", -0.5),
        ("box_loss", "iou"),
        ("cells", 0),
    ],
)
def test_an_impossible_value_is_refused_with_its_field(field, value):
    with refused(field, where=f"config.detector.model.{field}"):
        fields.build(EfficientDetConfig, {field: value}, "config.detector.model")


def test_an_unknown_variant_is_refused_with_those_there_are():
    with refused("d7x"):
        named("d8")


@pytest.fixture(scope="module")
def batch():
    """Two images of 64 x 64 pixels, one lesion and two, of two classes, three slots."""
    gt_boxes = np.zeros((2, 3, 4), np.float32)
    gt_boxes[0, 0], gt_boxes[1, :2] = [12, 20, 32, 44], [[4, 6, 20, 20], [36, 34, 58, 56]]
    return {
        "image": np.random.default_rng(0).uniform(0, 1, (2, 64, 64, 1)).astype(np.float32),
        "image_size": np.array([[64, 64], [60, 62]], np.float32),
        "gt_boxes": gt_boxes,
        "gt_labels": np.array([[0, 0, 0], [1, 0, 0]], np.int32),
        "gt_valid": np.array([[True, False, False], [True, True, False]]),
        "gt_ignore": np.zeros((2, 3), bool),
        "valid": np.ones(2, bool),
    }


@pytest.fixture(scope="module")
def step():
    return jax.jit(jax.value_and_grad(DETECTOR.loss, has_aux=True))


def test_losses_are_sums_over_the_batch_by_its_positive_anchors(batch, step):
    params = DETECTOR.init(jax.random.key(0))
    key = jax.random.key(0)
    (loss, terms), gradients = step(params, batch, key)
    flat = jax.tree_util.tree_leaves_with_path(gradients)
    assert all(np.isfinite(leaf).all() for _, leaf in flat)
    silent = {jax.tree_util.keystr(path) for path, leaf in flat if not np.any(leaf)}
    assert not [path for path in silent if "backbone" not in path and "norm" not in path]
    alone = []
    for i in range(2):
        chosen = {**batch, "valid": np.arange(2) == i}
        garbage = {**chosen, "gt_boxes": np.where((np.arange(2) == i)[:, None, None], batch["gt_boxes"], np.nan)}
        alone.append(step(params, garbage, key)[0])
    positives = [found["positives"] for _, found in alone]
    weighted = sum(value * count for (value, _), count in zip(alone, positives)) / sum(positives)
    np.testing.assert_allclose(loss, weighted, rtol=1e-5)
    np.testing.assert_allclose(terms["positives"], np.mean(positives))
    (value, _), gradients = step(params, {**batch, "valid": np.zeros(2, bool)}, key)
    assert value == 0 and all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradients))
    (value, terms), gradients = step(params, {**batch, "gt_valid": np.zeros((2, 3), bool)}, key)
    assert value > 0 and terms["loss_box"] == terms["positives"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_box_loss_is_hubers_of_its_delta():
    """Half the square below 0.1, 0.1 (|e| - 0.05) above, a mean over four coordinates, times 50 (google/automl)."""
    errors = np.array([[0.04, 0.3, -0.02, -0.7]], np.float32)
    expected = 50 * np.where(np.abs(errors) < 0.1, errors**2 / 2, 0.1 * (np.abs(errors) - 0.05)).sum() / 4
    lesion = np.array([[0, 0, 8, 8.0]], np.float32)  # that of the only anchor
    truth = (lesion, np.zeros(1, np.int32), np.ones(1, bool), np.zeros(1, bool))
    sums = dense.image_losses(TINY, np.zeros((1, 2), np.float32), errors, lesion, *truth)
    np.testing.assert_allclose(efficientdet.box_scale(TINY) * sums.box, expected, rtol=1e-5)
