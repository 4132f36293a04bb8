"""Values that a RetinaNet cannot have."""

from __future__ import annotations

import dataclasses

import pytest

from elk_jax import fields
from elk_jax.backbones import swin
from elk_jax.detection.retinanet_config import RetinaNetConfig, plain, torchvision, torchvision_v2
from tests.refusals import refused


@pytest.mark.parametrize(
    "field, value",
    [
        ("name", "faster_rcnn"),
        ("num_classes", 0),
        ("fpn_top", "p6"),
        ("head_norm", "batch"),
        ("head_convs", -1),
        ("prior", 0.0),
        ("prior", 1.0),
        ("background", "last"),
        ("anchor_sizes", ((32.0,),)),
        ("anchor_sizes", ((32.0,), (64.0,), (128.0,), (256.0,), (400.0, 512.0))),
        ("iou_low", 0.6),
        ("focal_gamma", -1.0),
        ("box_loss", "iou"),
        ("box_weights", (1.0, 1.0, 1.0)),
        ("score_floor", float("nan")),
        ("detections", 2.5),
    ],
)
def test_an_impossible_value_is_refused_with_its_field(field, value):
    with refused(field, where=f"config.detector.model.{field}"):
        fields.build(RetinaNetConfig, {field: value}, "config.detector.model")


@pytest.mark.parametrize(
    "settings, where, word",
    [
        ({"head_norm": "gn", "fpn_channels": 100}, "norm_groups", "fpn_channels = 100"),
        ({"head_norm": "gn", "head_width": 48}, "norm_groups", "head_width = 48"),
        ({"fpn": False}, "anchor_sizes", "one tuple"),
        ({"backbone": swin.SwinConfig()}, "backbone.num_classes", "0"),
        ({"backbone": swin.SwinConfig(patch=2, num_classes=0)}, "backbone", "8, 16, 32"),
    ],
)
def test_settings_that_do_not_fit_each_other(settings, where, word):
    with refused(word, where=where):
        RetinaNetConfig(**settings)
    RetinaNetConfig(head_norm="gn", head_width=64, fpn_channels=100)
    plain(backbone=swin.SwinConfig(num_classes=0))


@pytest.mark.parametrize("preset", [torchvision, torchvision_v2, plain])
def test_presets_take_changes(preset):
    changed = fields.build(RetinaNetConfig, {**dataclasses.asdict(preset()), "head_convs": 2, "score_floor": 0.2}, "")
    assert preset(head_convs=2, score_floor=0.2) == changed
