"""Values that a Faster R-CNN cannot have."""

from __future__ import annotations

import dataclasses

import pytest

from elk_jax import fields
from elk_jax.backbones.norms import NORMS
from elk_jax.detection.faster_rcnn_config import FasterRCNNConfig, detectron2, torchvision, torchvision_v2
from elk_jax.errors import UserError
from tests.refusals import refused


@pytest.mark.parametrize(
    "field, value",
    [
        ("name", "retinanet"),
        ("fpn_norm", "batch"),
        ("box_norm", "batch"),
        ("background", "middle"),
        ("num_classes", 0),
        ("box_fcs", 10**9),
        ("roi_sampling_ratio", 10**9),
        ("detections", 2.5),
        ("roi_samples", True),
        ("box_convs", -1),
        ("rpn_conv_depth", "one"),
        ("rpn_positive_fraction", 1.5),
        ("roi_iou", -0.1),
        ("score_floor", float("nan")),
        ("rpn_low", 0.8),
        ("norm_eps", -1e-5),
        ("anchor_sizes", ((32.0,), (64.0,), (128.0,), (256.0,))),
        ("anchor_sizes", ((32.0,), (64.0,), (128.0,), (256.0,), (400.0, 512.0))),
        ("anchor_sizes", ((0.0,), (64.0,), (128.0,), (256.0,), (512.0,))),
        ("anchor_sizes", ((), (), (), (), ())),
        ("anchor_sizes", (32.0, 64.0, 128.0, 256.0, 512.0)),
        ("anchor_ratios", (0.5, -1.0)),
        ("anchor_ratios", ()),
        ("box_weights", (10.0, 10.0, 5.0)),
    ],
)
def test_an_impossible_value_is_refused_with_its_field(field, value):
    with pytest.raises(UserError) as built:
        fields.build(FasterRCNNConfig, {field: value}, "config.detector.model")
    with pytest.raises(UserError) as by_hand:
        FasterRCNNConfig(**{field: value})
    assert built.value.where == f"config.detector.model.{field}"
    assert by_hand.value.where == field
    assert field in built.value.what and built.value.todo


def test_groups_divide_every_width_that_a_group_norm_splits():
    for settings, width in [
        ({"fpn_norm": "gn", "fpn_channels": 100}, "fpn_channels = 100"),
        ({"box_norm": "gn", "box_convs": 1, "box_conv_channels": 48}, "box_conv_channels = 48"),
    ]:
        with pytest.raises(UserError) as error:
            FasterRCNNConfig(**settings)
        assert error.value.where == "norm_groups" and f" {width}" in error.value.todo
    FasterRCNNConfig(box_norm="gn", box_conv_channels=48)


def test_every_norm_that_there_is_can_be_chosen():
    for norm in NORMS:
        assert FasterRCNNConfig(fpn_norm=norm, box_norm=norm).fpn_norm == norm


@pytest.mark.parametrize("preset", [detectron2, torchvision, torchvision_v2])
def test_presets_take_changes(preset):
    assert preset(roi_size=5, score_floor=0.2) == fields.build(
        FasterRCNNConfig, {**dataclasses.asdict(preset()), "roi_size": 5, "score_floor": 0.2}, ""
    )


@pytest.mark.parametrize(
    "backbone, where, word",
    [
        ({"name": "vgg"}, "backbone.name", "swin"),
        ({"name": "resnet", "depth": 77}, "backbone.depth", "101"),
        ({"name": "swin", "num_classes": 0, "embed": 97}, "backbone.heads", "embed"),
        ({"name": "swin", "num_classes": 0, "dtype": "float16"}, "backbone.dtype", "bfloat16"),
        ({"name": "efficientnet", "num_classes": 7}, "backbone.num_classes", "0"),
        ({"name": "swin", "num_classes": 0, "patch": 2}, "backbone", "32"),
    ],
)
def test_an_impossible_backbone_is_refused_with_its_field(backbone, where, word):
    with refused(word, where=f"config.detector.model.{where}"):
        fields.build(FasterRCNNConfig, {"backbone": backbone}, "config.detector.model")
