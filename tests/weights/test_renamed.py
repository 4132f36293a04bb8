"""Detectors in the names of other libraries: every name, what is built from them, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from elk_jax.backbones import efficientnet, resnet, swin
from elk_jax.detection import efficientdet_config, faster_rcnn, retinanet
from elk_jax.detection.anchors import pyramid_anchors
from elk_jax.weights import convert, detectron2, effdet, model_folder, torchvision
from elk_jax.weights.detectors import convert_foreign, convert_understood, parameter_shapes
from elk_jax.weights.renamed import detectron2 as for_detectron2
from elk_jax.weights.renamed import effdet as for_effdet
from elk_jax.weights.renamed import torchvision as for_torchvision
from tests.refusals import refused

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "torch.md"
FOLDER = Path("model")
POOLED = convert.chw_to_hwc(7)
MORE = ((1.0,), (2.0,), (3.0,), (4.0,), (5.0,))


def numbered(shapes):
    """Parameters that differ in every number, positive as variances are."""
    return model_folder.nest(
        {
            path: np.arange(1 + i, 1 + i + np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
            for i, (path, shape) in enumerate(shapes.items())
        }
    )


def to_torchvision(config, resizing=None):
    return for_torchvision.to_torchvision(config, numbered(parameter_shapes(config)), resizing or {}, FOLDER)


def to_detectron2(config):
    return for_detectron2.to_detectron2(config, numbered(parameter_shapes(config)), FOLDER)


def to_effdet(config, name="tf_efficientdet_d0", canvas=(256, 128)):
    return for_effdet.to_effdet(config, numbered(parameter_shapes(config)), name, canvas, FOLDER)


def plain_d0(**changes):
    network = efficientnet.named("b0", head=False, num_classes=0, norm="affine_bn")
    settings = {"backbone": network, "norm": "affine_bn", "cells": 1, "head_convs": 1, "num_classes": 2, **changes}
    return efficientdet_config.named("d0", **settings)


# ---- Names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["torchvision_v1", "torchvision_v2", "retinanet_v1", "retinanet_v2"])
def test_the_tensors_of_torchvision_come_back(name, compare, seeded):
    """Its own names, as it writes them itself, with the same numbers."""
    tensors, _ = compare.load(name, seeded)
    imported = convert_foreign(torchvision.interpret(tensors))
    made = for_torchvision.to_torchvision(imported.model, imported.params, {}, FOLDER)
    assert_same(made.tensors, tensors)
    version = "" if name.endswith("v1") else "_v2"
    kind = "retinanet" if name.startswith("retinanet") else "fasterrcnn"
    assert made.about["constructor"] == f"{kind}_resnet50_fpn{version}"
    assert made.about["arguments"]["num_classes"] == seeded.NUM_CLASSES + 1 and made.about["first_label"] == 1


def test_the_tensors_of_detectron2_come_back(compare, seeded):
    tensors, _ = compare.load("detectron2_r101", seeded)
    imported = convert_foreign(detectron2.interpret(tensors))
    made = for_detectron2.to_detectron2(imported.model, imported.params, FOLDER)
    from_settings = ("pixel_mean", "pixel_std", "proposal_generator.anchor_generator")
    assert_same(made.tensors, {name: x for name, x in tensors.items() if not name.startswith(from_settings)})
    config = made.about["config"]
    assert config["MODEL.RESNETS.DEPTH"] == 101 and config["MODEL.RESNETS.NORM"] == "FrozenBN"
    assert config["MODEL.ROI_HEADS.NUM_CLASSES"] == seeded.NUM_CLASSES and made.about["first_label"] == 0
    np.testing.assert_allclose(config["MODEL.PIXEL_MEAN"], (103.53, 116.28, 123.675))


@pytest.mark.parametrize("name", ["tf_efficientdet_d0", "efficientdet_lite0"])
def test_the_tensors_of_effdet_come_back(name, compare, seeded):
    tensors, _ = compare.load(name, seeded)
    settings = compare.facts(name)["settings"]
    imported = convert_understood(effdet.understand(tensors, name, settings))
    made = for_effdet.to_effdet(imported.model, imported.params, name, (256, 256), FOLDER)
    assert_same(made.tensors, tensors)
    config = made.about["config"]
    assert (config["fpn_cell_repeats"], config["box_class_repeats"]) == (settings["cells"], settings["head_convs"])
    assert config["num_classes"] == seeded.NUM_CLASSES and config["aspect_ratios"] == [1.0, 2.0, 0.5]
    assert config["anchor_scale"] == 4.0


def assert_same(found, tensors):
    wanted = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == np.float32 and found[name].flags.c_contiguous
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def test_a_name_is_the_first_that_makes_a_path():
    fmt = convert.Format(
        (
            convert.Rule(r"a\.(\d+)\.(x|y)(?:\.0)?\.w", r"a/\2_\1", convert.oihw_to_hwio),
            convert.Rule(r"a\.(\d+)\.z", r"a/x_\1"),
            convert.Rule(r"b\.(?:one|two)", "b"),
        )
    )
    kernel = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    found = convert.rename({"a": {"y_12": kernel}, "b": np.ones(2, np.float32)}, fmt)
    assert found.keys() == {"a.12.y.0.w", "b.one"}
    np.testing.assert_array_equal(found["a.12.y.0.w"], kernel.transpose(3, 2, 0, 1))
    with pytest.raises(ValueError, match="c/d"):
        convert.rename({"c": {"d": np.ones(2)}}, fmt)


@pytest.mark.parametrize(
    "layout", [convert.as_is, convert.out_in_to_in_out, POOLED, convert.oihw_to_hwio, effdet.xy_first,
               effdet.xy_first_kernel]
)  # fmt: skip
def test_every_layout_is_undone(layout):
    shape = {
        convert.as_is: (8,), effdet.xy_first: (8,), convert.out_in_to_in_out: (3, 5), POOLED: (3, 98),
    }.get(layout, (8, 2, 3, 5))  # fmt: skip
    tensor = np.random.default_rng(0).random(shape, np.float32)
    fmt = convert.Format((convert.Rule("theirs", "ours", layout),))
    np.testing.assert_array_equal(convert.rename({"ours": layout(tensor)}, fmt)["theirs"], tensor)


# ---- What the models are built from ----------------------------------------------------------------------------------


def test_a_retinanet_of_its_own_is_described():
    """Another depth, group norms, one channel, other anchors: built from torchvision's parts, by no function of it."""
    network = resnet.ResNetConfig(
        depth=18, norm="gn", num_classes=0, pixel_scale=255.0, pixel_mean=(51.0,), pixel_std=(102.0,)
    )
    config = retinanet.RetinaNetConfig(
        num_classes=3, backbone=network, fpn_channels=32, head_convs=2, head_norm="gn", norm_groups=8,
        anchor_sizes=MORE, anchor_offset=0.5, score_floor=0.25, detections=7,
    )  # fmt: skip
    made = to_torchvision(config, {"min_size": 64})
    about, arguments = made.about, made.about["arguments"]
    assert about["constructor"] == "" and about["class"] == "RetinaNet" and about["first_label"] == 0
    assert about["network"] == {"depth": 18, "channels": 1, "groups": 32}
    assert about["pyramid"] == {"channels": 32, "norm": False, "top": "p5"} and about["head"] == {
        "convs": 2,
        "groups": 8,
    }
    assert arguments["image_mean"] == [0.2] and arguments["image_std"] == [0.4]
    assert arguments["num_classes"] == 3, "its labels count from 0"
    assert (arguments["score_thresh"], arguments["detections_per_img"], arguments["min_size"]) == (0.25, 7, 64)
    assert arguments["size_divisible"] == 128, "the strides of its anchors are whole"
    assert made.tensors["head.classification_head.conv.1.1.weight"].shape == (32,)
    assert "backbone.body.bn1.running_mean" not in made.tensors
    levels = pyramid_anchors((128, 128), (8, 16, 32, 64, 128), MORE, config.anchor_ratios, 0.5)
    for cells, anchors in zip(about["anchors"]["cells"], levels, strict=True):
        np.testing.assert_allclose(cells, anchors[:3])
    json.dumps(about)


def test_a_faster_rcnn_of_its_own_is_described():
    network = resnet.ResNetConfig(depth=18, num_classes=0, norm="batch_bn")
    config = faster_rcnn.torchvision_v2(
        backbone=network, fpn_channels=32, fpn_norm="frozen_bn", box_convs=1, box_conv_channels=24, box_fc_width=40,
        rpn_conv_depth=3, roi_sampling_ratio=4, box_weights=(1.0, 2.0, 3.0, 4.0), rpn_nms_iou=0.6,
    )  # fmt: skip
    made = to_torchvision(config)
    about, arguments = made.about, made.about["arguments"]
    assert about["constructor"] == "" and about["class"] == "FasterRCNN" and about["first_label"] == 1
    assert about["head"] == {"convs": [24], "width": 40, "norm": True} and about["pyramid"]["norm"] is True
    assert about["rpn"] == {"convs": 3} and about["roi"] == {"sampling_ratio": 4}
    assert arguments["bbox_reg_weights"] == (1, 2, 3, 4) and arguments["rpn_nms_thresh"] == 0.6
    assert "size_divisible" not in arguments, "these anchors are torchvision's, with its strides"
    assert made.tensors["roi_heads.box_head.2.weight"].shape == (40, 24 * 49)
    assert made.tensors["rpn.head.conv.2.0.weight"].shape == (32, 32, 3, 3)
    json.dumps(about)


@pytest.mark.parametrize(
    ("changes", "constructor"),
    [
        ({}, "retinanet_resnet50_fpn"),
        ({"norm_groups": 8}, "retinanet_resnet50_fpn"),
        ({"background": "none", "num_classes": 4, "box_loss": "giou"}, "retinanet_resnet50_fpn"),
        ({"backbone": resnet.ResNetConfig(num_classes=0, norm="affine_bn")}, "retinanet_resnet50_fpn"),
        ({"fpn_top": "c5", "head_norm": "gn"}, "retinanet_resnet50_fpn_v2"),
        ({"fpn_top": "c5", "head_norm": "gn", "norm_groups": 8}, ""),
        ({"fpn_top": "c5"}, ""),
        ({"anchor_ratios": (0.5, 1.0, 3.0)}, ""),
        ({"anchor_rounded": False}, ""),
        ({"backbone": resnet.ResNetConfig(num_classes=0, depth=34)}, ""),
        ({"backbone": resnet.ResNetConfig(num_classes=0, pixel_mean=(0.5,), pixel_std=(0.5,))}, ""),
    ],
)
def test_a_function_of_torchvision_is_named_where_it_builds_the_same(changes, constructor):
    kind = for_torchvision._TORCHVISION["retinanet"]
    assert for_torchvision._constructor(retinanet.torchvision(**changes), "retinanet", kind) == constructor


def test_a_faster_rcnn_of_its_own_is_described_for_detectron2():
    """Half the width, other pooling, norms and heads, one channel."""
    network = resnet.ResNetConfig(
        depth=50, width=32, stem_width=64, norm="affine_bn", num_classes=0, pixel_mean=(0.2,), pixel_std=(0.1,)
    )
    config = faster_rcnn.detectron2(
        backbone=network, fpn_channels=32, fpn_norm="gn", anchor_sizes=MORE, anchor_ratios=(0.7, 1.4), rpn_conv_depth=3,
        roi_size=5, roi_sampling_ratio=2, roi_aligned=False, box_convs=2, box_conv_channels=16, box_norm="frozen_bn",
        box_fcs=1, box_fc_width=8, num_classes=3, score_floor=0.2, rpn_low=0.2, rpn_high=0.6, roi_iou=0.4,
    )  # fmt: skip
    made = to_detectron2(config)
    assert made.tensors["proposal_generator.rpn_head.conv.conv2.weight"].shape == (32, 32, 3, 3)
    pooled = made.tensors["roi_heads.box_head.fc1.weight"].reshape(8, 16, 5, 5)  # out, C, h, w
    ours = numbered(parameter_shapes(config))["box_head"]["fc1"]["kernel"].reshape(5, 5, 16, 8)
    np.testing.assert_array_equal(pooled.transpose(2, 3, 1, 0), ours)
    assert made.tensors["backbone.fpn_lateral2.norm.weight"].shape == (32,)
    found = made.about["config"]
    assert {name: found[f"MODEL.{name}"] for name in (
        "RESNETS.WIDTH_PER_GROUP", "RESNETS.RES2_OUT_CHANNELS", "RESNETS.STEM_OUT_CHANNELS", "RESNETS.STRIDE_IN_1X1",
        "RESNETS.NORM", "FPN.NORM", "ANCHOR_GENERATOR.ASPECT_RATIOS", "RPN.CONV_DIMS", "RPN.IOU_THRESHOLDS",
        "ROI_HEADS.IOU_THRESHOLDS", "ROI_BOX_HEAD.POOLER_RESOLUTION", "ROI_BOX_HEAD.POOLER_TYPE", "ROI_BOX_HEAD.NUM_FC",
    )} == {
        "RESNETS.WIDTH_PER_GROUP": 32, "RESNETS.RES2_OUT_CHANNELS": 128, "RESNETS.STEM_OUT_CHANNELS": 64,
        "RESNETS.STRIDE_IN_1X1": False, "RESNETS.NORM": "FrozenBN", "FPN.NORM": "GN",
        "ANCHOR_GENERATOR.ASPECT_RATIOS": [(0.7, 1.4)], "RPN.CONV_DIMS": [-1, -1, -1], "RPN.IOU_THRESHOLDS": [0.2, 0.6],
        "ROI_HEADS.IOU_THRESHOLDS": [0.4], "ROI_BOX_HEAD.POOLER_RESOLUTION": 5, "ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
        "ROI_BOX_HEAD.NUM_FC": 1,
    }  # fmt: skip
    np.testing.assert_allclose(found["MODEL.PIXEL_MEAN"] + found["MODEL.PIXEL_STD"], [51.0, 25.5])


def test_the_last_layers_of_detectron2_read_the_region_where_no_dense_layer_does():
    network = resnet.detectron2(depth=18)
    config = faster_rcnn.detectron2(
        backbone=network, fpn_channels=8, box_convs=1, box_conv_channels=4, box_fcs=0, roi_size=3, num_classes=2
    )
    made = to_detectron2(config)
    ours = numbered(parameter_shapes(config))["box_head"]
    for name, theirs in (("class_logits", "cls_score"), ("box_deltas", "bbox_pred")):
        region = made.tensors[f"roi_heads.box_predictor.{theirs}.weight"].reshape(-1, 4, 3, 3)  # out, C, h, w
        np.testing.assert_array_equal(region.transpose(2, 3, 1, 0).reshape(36, -1), ours[name]["kernel"])
    imported = convert_foreign(detectron2.interpret(made.tensors))
    assert (imported.model.roi_size, imported.model.box_fcs) == (3, 0)
    np.testing.assert_array_equal(imported.params["box_head"]["box_deltas"]["kernel"], ours["box_deltas"]["kernel"])


def test_an_efficientdet_of_its_own_is_described():
    sizes = efficientdet_config.octaves(2**0.5, 5)
    rounded = tuple(tuple(size * (1 + 1e-9) for size in level) for level in sizes)
    config = plain_d0(channels=16, anchor_sizes=rounded, anchor_ratios=(1.0, 4.0), soft_nms_sigma=0.5)
    about = to_effdet(config, canvas=(128, 128)).about
    assert about["name"] == "tf_efficientdet_d0" and about["first_label"] == 1
    assert about["config"]["anchor_scale"] == pytest.approx(2**0.5) and about["config"]["num_scales"] == 3
    assert about["config"]["aspect_ratios"] == [1.0, 0.25], "theirs are width / height"
    assert about["config"]["soft_nms"] is True and about["config"]["image_size"] == [128, 128]
    cells = 16**2 + 8**2 + 4**2 + 2**2 + 1
    assert about["config"]["max_detection_points"] == cells * 6 * 2, "effdet fails where it asks for more"
    assert about["image_mean"] == config.backbone.pixel_mean
    json.dumps(about)


def test_the_page_uses_what_is_written():
    """Every entry of detector.json that the page's code reads is there, for both kinds of detectors of torchvision."""
    settings, function, parts, effdets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for code in (settings, function, parts, effdets):
        compile(code, str(PAGE), "exec")
    one, two = (to_torchvision(config()).about for config in (retinanet.torchvision, faster_rcnn.torchvision))
    for section, entry in re.findall(r'(network|pyramid|arguments)\["(\w+)"\]', parts):
        assert entry in one[section] and (entry in two[section] or entry == "top")
    theirs = to_detectron2(faster_rcnn.detectron2()).about, to_effdet(plain_d0()).about
    for code, abouts in ((function, (one, two)), (settings, theirs[:1]), (effdets, theirs[1:])):
        for entry in re.findall(r'about\["(\w+)"\]', code):
            assert all(entry in about for about in abouts), entry
    assert set(re.findall(r'about\["(\w+)"\]', parts)) <= one.keys() | two.keys()
    assert set(re.findall(r'head\["(\w+)"\]', parts)) == one["head"].keys() | two["head"].keys()


# ---- Refused ---------------------------------------------------------------------------------------------------------

RESNET = resnet.ResNetConfig(num_classes=0)


@pytest.mark.parametrize(
    ("config", "where", "words"),
    [
        (faster_rcnn.torchvision(roi_aligned=True), "roi_aligned", ["roi_aligned=True", "roi_aligned=False"]),
        (faster_rcnn.torchvision(background="last"), "background", ["background=first"]),
        (faster_rcnn.torchvision(detection_min_size=0.0), "detection_min_size", ["detection_min_size=0.01"]),
        (faster_rcnn.torchvision(roi_sampling_ratio=0), "roi_sampling_ratio", ["roi_sampling_ratio=2"]),
        (faster_rcnn.torchvision(box_fcs=1), "box_fcs", ["box_fcs=2"]),
        (faster_rcnn.torchvision_v2(box_fcs=2), "box_fcs", ["box_fcs=1"]),
        (faster_rcnn.torchvision(fpn_norm="gn"), "fpn_norm", ["fpn_norm=none"]),
        (faster_rcnn.torchvision(anchor_offset=0.5), "anchor_offset", ["anchor_offset=0.0"]),
        (retinanet.plain(), "fpn", ["fpn=True"]),
        (retinanet.torchvision(head_width=16), "head_width", ["head_width=0"]),
        (retinanet.torchvision(head_norm="frozen_bn"), "head_norm", ["head_norm=none"]),
        (retinanet.torchvision(head_convs=9), "head_convs", ["head_convs=4"]),
        (retinanet.torchvision(norm_eps=1e-3), "norm_eps", ["norm_eps=1e-05"]),
        (retinanet.torchvision(soft_nms_sigma=0.5), "soft_nms_sigma", ["soft_nms_sigma=0.0"]),
        (retinanet.torchvision(box_weights=(1.0, 1.0, 2.0, 2.0)), "box_weights", ["box_weights=(1.0"]),
    ],
)  # fmt: skip
def test_settings_that_torchvision_does_not_have_are_named(config, where, words):
    with refused("torchvision", *words, where=f"model: model.{where}"):
        for_torchvision.to_torchvision(config, {}, {}, FOLDER)


@pytest.mark.parametrize(
    ("changes", "where", "words"),
    [
        ({"background": "first"}, "background", ["background=last"]),
        ({"anchor_rounded": True}, "anchor_rounded", ["anchor_rounded=False"]),
        ({"fpn_norm": "gn", "norm_groups": 16}, "norm_groups", ["norm_groups=32"]),
        ({"norm_eps": 1e-3}, "norm_eps", ["norm_eps=1e-05"]),
        ({"box_fcs": 0}, "box_fcs", ["box_fcs=2"]),
        ({"box_norm": "affine_bn"}, "box_norm", ["box_norm=none"]),
        ({"anchor_offset": 1.0}, "anchor_offset", ["anchor_offset=0.0"]),
        ({"rpn_low": 0.0}, "rpn_low", ["rpn_low=0.3"]),
        ({"roi_iou": 0.0}, "roi_iou", ["roi_iou=0.5"]),
        ({"rpn_conv_depth": 10}, "rpn_conv_depth", ["rpn_conv_depth=1"]),
        ({"detection_min_size": 1.0}, "detection_min_size", ["detection_min_size=0.0"]),
        ({"backbone": dataclasses.replace(RESNET, norm="none")}, "backbone.norm", ["backbone.norm=frozen_bn"]),
        ({"backbone": dataclasses.replace(RESNET, depth=18, width=32)}, "backbone.width", ["backbone.width=64"]),
        ({"backbone": dataclasses.replace(RESNET, norm="gn", norm_groups=16)}, "backbone.norm_groups", ["=32"]),
        ({"backbone": swin.named("tiny", num_classes=0)}, "backbone.name", ["resnet"]),
    ],
)
def test_settings_that_detectron2_does_not_have_are_named(changes, where, words):
    with refused("detectron2", *words, where=f"model: model.{where}"):
        for_detectron2.to_detectron2(faster_rcnn.detectron2(**changes), {}, FOLDER)


@pytest.mark.parametrize(
    ("network", "where"),
    [
        (dataclasses.replace(RESNET, width=32), "width"),
        (dataclasses.replace(RESNET, width=32, stem_width=64), "width"),
        (dataclasses.replace(RESNET, stride_in_1x1=True), "stride_in_1x1"),
        (dataclasses.replace(RESNET, norm="none"), "norm"),
        (dataclasses.replace(RESNET, norm_eps=1e-3), "norm_eps"),
        (efficientnet.named("b0", head=False, num_classes=0), "name"),
        (swin.named("tiny", num_classes=0), "name"),
    ],
)
def test_backbones_that_torchvision_does_not_have_are_named(network, where):
    with refused("torchvision", where=f"model: model.backbone.{where}"):
        for_torchvision.to_torchvision(retinanet.torchvision(backbone=network), {}, {}, FOLDER)


def test_all_settings_to_change_are_named_at_once():
    with refused("roi_aligned=False, background=first, detection_min_size=0.01", where="rpn_min_size"):
        for_torchvision.to_torchvision(faster_rcnn.torchvision(roi_aligned=True, background="last", rpn_min_size=0.0,
                                                       detection_min_size=0.0), {}, {}, FOLDER)  # fmt: skip


def test_the_strides_of_small_resnets_are_those_of_torchvision_however_they_are_set():
    network = dataclasses.replace(RESNET, depth=18, stride_in_1x1=True)
    assert "backbone.body.layer4.1.bn2.bias" in to_torchvision(retinanet.torchvision(backbone=network)).tensors


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"detection_nms_iou": 0.6}, "detection_nms_iou"),
        ({"anchor_sizes": ((8.0, 9.0, 10.0),) * 5}, "anchor_sizes"),
        ({"norm": "gn"}, "norm"),
        ({"padding": "symmetric"}, "padding"),
        ({"fusion": "sum"}, "fusion"),
        ({"activation": "relu6"}, "activation"),
        ({"soft_nms_sigma": 0.4}, "soft_nms_sigma"),
        ({"backbone": efficientnet.named("b1", head=False, num_classes=0, norm="affine_bn")}, "backbone.depth"),
        ({"backbone": efficientnet.named("b0", head=True, num_classes=0, norm="affine_bn")}, "backbone.head"),
        ({"backbone": efficientnet.named("b0", head=False, num_classes=0, norm="gn")}, "backbone.norm"),
    ],
)
def test_settings_that_effdet_does_not_have_are_named(changes, where):
    with refused("tf_efficientdet_d0", where=f"model: model.{where}"):
        to_effdet(plain_d0(**changes))


def test_detectors_of_another_kind_or_name_are_refused():
    for config in (retinanet.torchvision(), plain_d0(backbone=RESNET)):
        with refused("effdet", where=FOLDER):
            for_effdet.to_effdet(config, {}, "tf_efficientdet_d0", (256, 256), FOLDER)
    with refused("detectron2", "retinanet", where=FOLDER):
        for_detectron2.to_detectron2(retinanet.torchvision(), {}, FOLDER)
    with refused("torchvision", "efficientdet", where=FOLDER):
        for_torchvision.to_torchvision(plain_d0(), {}, {}, FOLDER)
    with refused("efficientdet_x", where="--name"):
        to_effdet(plain_d0(), "efficientdet_x")
    grey = efficientnet.named("b0", head=False, num_classes=0, norm="affine_bn", pixel_mean=(0.5,), pixel_std=(0.5,))
    with refused(3, 1, where="pixel_mean"):
        to_effdet(plain_d0(backbone=grey))


def test_tensors_that_would_be_read_otherwise_are_refused(monkeypatch):
    """What is written is read again: a rule that moves numbers wrongly is seen."""
    config = retinanet.torchvision(backbone=dataclasses.replace(RESNET, depth=18), fpn_channels=8, head_convs=1)
    rename = convert.rename

    def other(params, fmt):
        return {name: x + (name == "backbone.body.bn1.bias") for name, x in rename(params, fmt).items()}

    monkeypatch.setattr(convert, "rename", other)
    with refused(where=FOLDER):
        to_torchvision(config)
