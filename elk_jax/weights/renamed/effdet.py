"""Detectors for effdet: tensors for `load_state_dict`, and the settings of its models."""

from __future__ import annotations

from typing import Any

import numpy as np

from elk_jax.detection.efficientdet_config import EfficientDetConfig
from elk_jax.errors import UserError
from elk_jax.weights import convert, effdet, model_folder
from elk_jax.weights.detectors import convert_understood
from elk_jax.weights.renamed.kinds import BATCH_NORMS, Choices, Kind, Renamed, check_same, refuse_others

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
    refuse_others(config.backbone, published.backbone, _EFFDET_NETWORK, "backbone.", library, where)
    refuse_others(config, published, choices, "", library, where)
    changes = {one: getattr(config, one) for one in choices}
    changes["backbone"] = {one: getattr(config.backbone, one) for one in _EFFDET_NETWORK}
    check_same(convert_understood(effdet.understand(tensors, name, changes)), config, params, where)
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
