"""Detectors for torchvision: tensors for `load_state_dict`, and the arguments of its models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from elk_jax.backbones.resnet import ResNetConfig, has_bottlenecks
from elk_jax.detection import detectors as built
from elk_jax.detection.anchors import cell_anchors
from elk_jax.errors import UserError
from elk_jax.weights import convert, model_folder, torchvision
from elk_jax.weights.detectors import PRESETS, convert_foreign
from elk_jax.weights.renamed.kinds import BATCH_NORMS, Choices, Kind, Renamed, alike, check_same, not_in, refuse_others

_DEEPEST = 8  # convolutions of a head: torchvision.format_of
_GROUPED = "gn"
_NETWORK_TRAINED = ("image_size", "remat", "dtype")
_TORCHVISION = {
    "retinanet": Kind(
        {
            "iou_high": "fg_iou_thresh",
            "iou_low": "bg_iou_thresh",
            "score_floor": "score_thresh",
            "level_candidates": "topk_candidates",
            "detection_nms_iou": "nms_thresh",
            "detections": "detections_per_img",
        },
        ("prior", "focal_alpha", "focal_gamma", "box_loss", "box_smooth_l1_beta"),
        {
            **dict.fromkeys(("num_classes", "background", "anchor_sizes", "anchor_ratios", "anchor_rounded")),
            **dict.fromkeys(("fpn_channels", "fpn_top", "norm_groups")),
            "head_convs": range(1, _DEEPEST + 1),
            "head_norm": ("none", _GROUPED),
        },
    ),
    "torchvision": Kind(
        {
            "rpn_high": "rpn_fg_iou_thresh",
            "rpn_low": "rpn_bg_iou_thresh",
            "rpn_samples": "rpn_batch_size_per_image",
            "rpn_positive_fraction": "rpn_positive_fraction",
            "rpn_pre_nms_train": "rpn_pre_nms_top_n_train",
            "rpn_pre_nms_test": "rpn_pre_nms_top_n_test",
            "rpn_post_nms_train": "rpn_post_nms_top_n_train",
            "rpn_post_nms_test": "rpn_post_nms_top_n_test",
            "rpn_nms_iou": "rpn_nms_thresh",
            "roi_samples": "box_batch_size_per_image",
            "roi_positive_fraction": "box_positive_fraction",
            "box_weights": "bbox_reg_weights",
            "score_floor": "box_score_thresh",
            "detection_nms_iou": "box_nms_thresh",
            "detections": "box_detections_per_img",
        },
        ("rpn_smooth_l1_beta", "roi_iou", "roi_append_gt", "roi_max_samples", "box_smooth_l1_beta"),
        {
            **dict.fromkeys(("num_classes", "anchor_sizes", "anchor_ratios", "anchor_rounded", "fpn_channels")),
            **dict.fromkeys(("norm_groups", "box_conv_channels", "box_fc_width", "detection_candidates")),
            "fpn_norm": ("none", *BATCH_NORMS),
            "rpn_conv_depth": range(1, _DEEPEST + 1),
            "roi_sampling_ratio": range(1, 65),
            "box_convs": range(_DEEPEST + 1),
        },
    ),
}
"""Kinds by the preset of the plain version."""
_CONSTRUCTORS = {
    "retinanet": "retinanet_resnet50_fpn",
    "retinanet_v2": "retinanet_resnet50_fpn_v2",
    "torchvision": "fasterrcnn_resnet50_fpn",
    "torchvision_v2": "fasterrcnn_resnet50_fpn_v2",
}


def to_torchvision(config: Any, params: model_folder.Params, resizing: Mapping[str, Any], where: object) -> Renamed:
    """A Faster R-CNN or RetinaNet with a ResNet-FPN, for torchvision's classes.

    resizing: arguments of torchvision's GeneralizedRCNNTransform. where: the model folder, for errors.
    """
    name = next((name for name in _TORCHVISION if type(PRESETS[name]()) is type(config)), None)
    if name is None:
        todo = "export a Faster R-CNN or a RetinaNet"
        raise UserError(f"torchvision has no detector of kind '{config.name}'", where=where, todo=todo)
    preset, kind = PRESETS[name](), _TORCHVISION[name]
    choices = {**kind.free(), "anchor_offset": (0.0,) if config.anchor_rounded else None}
    two_stages = hasattr(config, "box_convs")
    if two_stages:
        choices["box_fcs"] = (1,) if config.box_convs else (2,)
        choices["box_norm"] = ("none", *BATCH_NORMS) if config.box_convs else ("none",)
    network: Choices = {
        **dict.fromkeys(("depth", "norm_groups", "pixel_scale", "pixel_mean", "pixel_std", *_NETWORK_TRAINED)),
        "norm": (*BATCH_NORMS, _GROUPED),
        "stride_in_1x1": (False,) if has_bottlenecks(getattr(config.backbone, "depth", 0)) else None,
    }
    refuse_others(config.backbone, ResNetConfig(num_classes=0), network, "backbone.", "torchvision", where)
    refuse_others(config, preset, choices, "", "torchvision", where)
    fmt = torchvision.format_of(config.box_convs if two_stages else None)
    tensors = convert.rename(params, fmt)
    foreign = torchvision.interpret(tensors)
    check_same(convert_foreign(foreign, not_in(foreign, config)), config, params, where)
    parts = _two_stages(config) if two_stages else _one_stage(config)
    shared = {
        "constructor": _constructor(config, name, kind),
        "network": {
            "depth": config.backbone.depth,
            "channels": len(config.backbone.pixel_mean),
            "groups": _groups(config.backbone, "norm"),
        },
        "anchors": {
            "sizes": config.anchor_sizes,
            "aspect_ratios": [config.anchor_ratios] * len(config.anchor_sizes),
            "cells": _cells(config),
        },
    }
    arguments = {
        "num_classes": config.num_classes + (config.background == "first"),
        **{theirs: getattr(config, ours) for ours, theirs in kind.arguments.items()},
        **_torchvision_pixels(config.backbone),
        # torchvision divides the padded image; this equals the strides only if the image is divisible by them.
        **({} if config.anchor_rounded else {"size_divisible": max(built.build(config).strides)}),
        **resizing,
    }
    about = {**parts, **shared, "arguments": arguments, "first_label": int(config.background == "first")}
    return Renamed(tensors, about)


def _one_stage(config: Any) -> dict[str, Any]:
    return {
        "class": "RetinaNet",
        "pyramid": {"channels": config.fpn_channels, "norm": False, "top": config.fpn_top},
        "head": {"convs": config.head_convs, "groups": _groups(config, "head_norm")},
    }


def _two_stages(config: Any) -> dict[str, Any]:
    return {
        "class": "FasterRCNN",
        "pyramid": {"channels": config.fpn_channels, "norm": config.fpn_norm != "none"},
        "rpn": {"convs": config.rpn_conv_depth},
        "roi": {"sampling_ratio": config.roi_sampling_ratio},
        "head": {
            "convs": [config.box_conv_channels] * config.box_convs,
            "width": config.box_fc_width,
            "norm": config.box_norm != "none",
        },
    }


def _groups(config: Any, norm: str) -> int:
    """Groups of a group norm; 0 for other norms."""
    return config.norm_groups if getattr(config, norm) == _GROUPED else 0


def _torchvision_pixels(network: ResNetConfig) -> dict[str, list[float]]:
    """Mean and spread of images in [0, 1]."""
    return {
        "image_mean": [value / network.pixel_scale for value in network.pixel_mean],
        "image_std": [value / network.pixel_scale for value in network.pixel_std],
    }


def _cells(config: Any) -> list[list[list[float]]]:
    """Anchors [A, 4] of the first cell of every level: torchvision's own are in whole pixels, and at the corner."""
    cells = []
    for stride, sizes in zip(built.build(config).strides, config.anchor_sizes):
        first = cell_anchors(sizes, config.anchor_ratios, config.anchor_rounded)
        cells.append((first + np.float32(config.anchor_offset * stride)).tolist())
    return cells


def _constructor(config: Any, name: str, kind: Kind) -> str:
    """The function of torchvision that builds the same layers and anchors; "" if none does."""
    network = config.backbone
    if network.depth != 50 or network.norm not in BATCH_NORMS or len(network.pixel_mean) != 3:
        return ""
    layers = kind.choices.keys() - {"num_classes", "background", "detection_candidates"}
    for version in (name, f"{name}_v2"):
        theirs = PRESETS[version]()
        if all(alike(getattr(config, one), getattr(theirs, one)) for one in layers - _idle(theirs)):
            return _CONSTRUCTORS[version]
    return ""


def _idle(config: Any) -> set[str]:
    """Settings for layers that a detector does not have."""
    idle = set()
    if getattr(config, "head_norm", "none") != _GROUPED:
        idle.add("norm_groups")
    if not getattr(config, "box_convs", 1):
        idle.add("box_conv_channels")
    return idle
