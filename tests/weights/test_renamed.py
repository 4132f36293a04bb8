"""Detectors in the names of torchvision and effdet: every name, what is built from them, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from elk_jax.backbones import efficientnet, resnet, swin
from elk_jax.detection import detectors, efficientdet_config, faster_rcnn, retinanet
from elk_jax.detection.anchors import pyramid_anchors
from elk_jax.weights import convert, effdet, model_folder, renamed, torchvision
from elk_jax.weights.detectors import convert_foreign, convert_understood, parameter_shapes
from tests.refusals import refused

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "torch.md"
FOLDER = Path("model")
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
    return renamed.to_torchvision(config, numbered(parameter_shapes(config)), resizing or {}, FOLDER)


def to_effdet(config, name="tf_efficientdet_d0", canvas=(256, 128)):
    return renamed.to_effdet(config, numbered(parameter_shapes(config)), name, canvas, FOLDER)


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
    made = renamed.to_torchvision(imported.model, imported.params, {}, FOLDER)
    assert_same(made.tensors, tensors)
    version = "" if name.endswith("v1") else "_v2"
    kind = "retinanet" if name.startswith("retinanet") else "fasterrcnn"
    assert made.about["constructor"] == f"{kind}_resnet50_fpn{version}"
    assert made.about["arguments"]["num_classes"] == seeded.NUM_CLASSES + 1 and made.about["first_label"] == 1


@pytest.mark.parametrize(
    "name", ["tf_efficientdet_d0", "efficientdet_d0", "tf_efficientdet_lite0", "efficientdet_lite0"]
)
def test_the_tensors_of_effdet_come_back(name, compare, seeded):
    tensors, _ = compare.load(name, seeded)
    settings = compare.facts(name)["settings"]
    imported = convert_understood(effdet.understand(tensors, name, settings))
    made = renamed.to_effdet(imported.model, imported.params, name, (256, 256), FOLDER)
    assert_same(made.tensors, tensors)
    config = made.about["config"]
    assert (config["fpn_cell_repeats"], config["box_class_repeats"]) == (settings["cells"], settings["head_convs"])
    assert config["num_classes"] == seeded.NUM_CLASSES and config["aspect_ratios"] == [1.0, 2.0, 0.5]
    assert config["anchor_scale"] == (3.0 if name == "tf_efficientdet_lite0" else 4.0)


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
    "layout", [convert.as_is, convert.out_in_to_in_out, convert.chw_to_hwc, convert.oihw_to_hwio, effdet.xy_first,
               effdet.xy_first_kernel]
)  # fmt: skip
def test_every_layout_is_undone(layout):
    shape = {
        convert.as_is: (8,), effdet.xy_first: (8,), convert.out_in_to_in_out: (3, 5), convert.chw_to_hwc: (3, 98),
    }.get(layout, (8, 2, 3, 5))  # fmt: skip
    tensor = np.random.default_rng(0).random(shape, np.float32)
    fmt = convert.Format((convert.Rule("theirs", "ours", layout),))
    np.testing.assert_array_equal(convert.rename({"ours": layout(tensor)}, fmt)["theirs"], tensor)
