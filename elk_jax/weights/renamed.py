"""Detectors with the names of torchvision and effdet: tensors for `load_state_dict`, and arguments of the model.

The inverse of `detectors`. Each library has a function (settings, params, ...) -> Renamed. A detector that the library
cannot build is refused. The tensors are read back by the rules of an import, which must give the same parameters and
settings.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from elk_jax.backbones.norms import BATCH_NORM
from elk_jax.backbones.resnet import ResNetConfig, has_bottlenecks
from elk_jax.detection import detectors as built
from elk_jax.detection.anchors import cell_anchors
from elk_jax.detection.efficientdet_config import EfficientDetConfig
from elk_jax.errors import UserError
from elk_jax.weights import convert, effdet, model_folder, torchvision
from elk_jax.weights.detectors import PRESETS, Converted, convert_foreign, convert_understood
from elk_jax.weights.reading import Tensors

BATCH_NORMS = ("frozen_bn", "affine_bn", BATCH_NORM)
"""Norms that are the same layer except in training."""
Choices = Mapping[str, Collection[Any] | None]
"""Setting -> the values that a library supports; None: all."""


@dataclass(frozen=True)
class Renamed:
    """tensors: the state dict. about: JSON values from which the library builds the model, with its own argument names
    if it has them."""

    tensors: Tensors
    about: dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """What a library can build of one kind of detector.

    arguments: setting -> the library's name, for settings passed unchanged. trained: settings that matter only in
    training, and are not written. choices: for further settings; those in no list must be the library's own.
    """

    arguments: Mapping[str, str]
    trained: tuple[str, ...]
    choices: Choices

    def free(self) -> Choices:
        """Choices for all settings that may differ from the library's own."""
        return {**dict.fromkeys((*self.arguments, *self.trained)), **self.choices}


# ---- torchvision -----------------------------------------------------------------------------------------------------

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
    _refuse_others(config.backbone, ResNetConfig(num_classes=0), network, "backbone.", "torchvision", where)
    _refuse_others(config, preset, choices, "", "torchvision", where)
    fmt = torchvision.format_of(config.box_convs if two_stages else None)
    tensors = convert.rename(params, fmt)
    foreign = torchvision.interpret(tensors)
    _check_same(convert_foreign(foreign, _not_in(foreign, config)), config, params, where)
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
        if all(_alike(getattr(config, one), getattr(theirs, one)) for one in layers - _idle(theirs)):
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


def _not_in(foreign: convert.Foreign, config: Any) -> dict[str, Any]:
    """The settings that do not follow from names and shapes: `changes` for `convert_foreign`."""
    norms = [name for name in foreign.settings if name.endswith("_norm")]
    unclear = {name for name in norms if _alike(foreign.settings[name], getattr(config, name))}
    if config.background == "none":
        unclear.add("num_classes")  # an import takes the first output as the background
    network = {name: value for name, value in vars(config.backbone).items() if name not in foreign.resnet}
    outside = {name: value for name, value in vars(config).items() if name not in foreign.settings or name in unclear}
    return {**outside, "backbone": {**network, "norm": config.backbone.norm}}


# ---- effdet ----------------------------------------------------------------------------------------------------------

_EFFDET = Kind(
    {
        "num_classes": "num_classes",
        "channels": "fpn_channels",
        "cells": "fpn_cell_repeats",
        "head_convs": "box_class_repeats",
        "biases": "redundant_bias",
        "detections": "max_det_per_image",
        "focal_alpha": "alpha",
        "focal_gamma": "gamma",
        "box_smooth_l1_beta": "delta",
        "box_loss_weight": "box_loss_weight",
    },
    ("prior", "iou_high", "iou_low", "box_loss"),
    {
        **dict.fromkeys(("anchor_ratios", "score_floor", "level_candidates", "norm_groups")),
        "norm": BATCH_NORMS,
        "soft_nms_sigma": (0.0, 0.5),
    },
)
_EFFDET_NETWORK: Choices = {
    **dict.fromkeys(("norm_groups", "pixel_mean", "pixel_std")),
    **dict.fromkeys(("image_size", "drop_path", "dropout", "frozen_stages", "dtype")),
    "norm": BATCH_NORMS,
}
_MOST_POINTS = 5000  # effdet's max_detection_points


def to_effdet(config: Any, params: model_folder.Params, name: str, canvas: tuple[int, int], where: object) -> Renamed:
    """An EfficientDet, for effdet's model `name`. canvas: (height, width) in px for which its anchors are made."""
    if not isinstance(config, EfficientDetConfig) or config.backbone.name != "efficientnet":
        what = f"effdet has no detector of kind '{config.name}' with a backbone '{config.backbone.name}'"
        raise UserError(what, where=where, todo="export an EfficientDet with an EfficientNet")
    tensors = convert.rename(params, effdet.format_of(config, name))
    published = effdet.understand(tensors, name, {}, "--name").model
    scale, scales = config.anchor_sizes[0][0] / config.strides[0], len(config.anchor_sizes[0])
    sizes = tuple(tuple(scale * stride * 2 ** (o / scales) for o in range(scales)) for stride in config.strides)
    equal = np.allclose(sizes, config.anchor_sizes, rtol=1e-6, atol=0)
    choices = {
        **_EFFDET.free(),
        "anchor_sizes": (config.anchor_sizes if equal else sizes,),
        "detection_nms_iou": None if config.soft_nms_sigma else (published.detection_nms_iou,),
    }
    if len(config.backbone.pixel_mean) != 3:
        raise UserError(
            f"effdet's {name} takes 3 channels, but the detector takes {len(config.backbone.pixel_mean)}",
            where=f"{where}: model.backbone.pixel_mean",
            todo="train with three means and spreads",
        )
    library = f"effdet's {name}"
    _refuse_others(config.backbone, published.backbone, _EFFDET_NETWORK, "backbone.", library, where)
    _refuse_others(config, published, choices, "", library, where)
    changes = {one: getattr(config, one) for one in choices}
    changes["backbone"] = {one: getattr(config.backbone, one) for one in _EFFDET_NETWORK}
    _check_same(convert_understood(effdet.understand(tensors, name, changes)), config, params, where)
    anchors = sum(
        -(-canvas[0] // stride) * -(-canvas[1] // stride) * scales * len(config.anchor_ratios)
        for stride in config.strides
    )
    settings = {
        **{theirs: getattr(config, ours) for ours, theirs in _EFFDET.arguments.items()},
        "image_size": list(canvas),
        "anchor_scale": scale,
        "num_scales": scales,
        "aspect_ratios": [1 / ratio for ratio in config.anchor_ratios],  # width / height
        "soft_nms": config.soft_nms_sigma > 0,
        "max_detection_points": min(_MOST_POINTS, anchors * config.num_classes),
    }
    about = {
        "name": name,
        "config": settings,
        "image_mean": config.backbone.pixel_mean,
        "image_std": config.backbone.pixel_std,
        "score_floor": config.score_floor,
        "first_label": 1,
    }
    return Renamed(tensors, about)


# ---- Checks ----------------------------------------------------------------------------------------------------------


def _refuse_others(config: Any, theirs: Any, choices: Choices, section: str, library: str, where: object) -> None:
    """UserError with the settings of `config` that the library does not support. theirs: its own settings."""
    other = {}
    for name, value in vars(config).items():
        allowed = choices.get(name, (getattr(theirs, name, None),))
        if name != "backbone" and allowed is not None and value not in allowed:
            own = getattr(theirs, name, None)
            other[name] = (value, own if own in allowed else next(iter(allowed)))
        if name in other and name == "name":
            break  # another kind has other settings
    if other:
        said = ", ".join(f"{section}{name}={value}" for name, (value, _) in other.items())
        wanted = ", ".join(f"{section}{name}={value}" for name, (_, value) in other.items())
        first = f"{where}: model.{section}{next(iter(other))}"
        raise UserError(f"{library} has no detector with {said}", where=first, todo=f"train one with {wanted}")


def _alike(one: Any, other: Any) -> bool:
    """Whether two values of a setting give the same detections."""
    return one == other or (one in BATCH_NORMS and other in BATCH_NORMS)


def _check_same(again: Converted, config: Any, params: model_folder.Params, where: object) -> None:
    """UserError unless an import of the output gives the settings and parameters that were exported."""
    ours, theirs = model_folder.flatten(params), model_folder.flatten(again.params)
    same = ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)
    if again.model != config or not same:
        differ = [name for name, value in vars(config).items() if getattr(again.model, name) != value]
        what = f"the tensors would be read as a different model ({', '.join(differ) or 'its parameters'} differ)"
        raise UserError(what, where=where, todo="export the model in another format")
