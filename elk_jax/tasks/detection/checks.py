"""Values that a Faster R-CNN cannot have, named before anything is computed."""

from __future__ import annotations

import math
from typing import Any

from elk_jax.detection.faster_rcnn import FasterRCNNConfig
from elk_jax.errors import UserError
from elk_jax.precision import DTYPES

LEVELS = 5  # P2..P6
CHOICES = {
    "depth": (18, 34, 50, 101),
    "norm": ("frozen_bn", "affine_bn", "gn", "none"),
    "fpn_norm": ("frozen_bn", "affine_bn", "gn", "none"),
    "box_norm": ("frozen_bn", "affine_bn", "gn", "none"),
    "dtype": DTYPES,
    "background": ("first", "last"),
}
SWITCHES = ("stride_in_1x1", "anchor_rounded", "roi_append_gt", "roi_aligned")
COUNTS_FROM_ONE = (
    "num_classes", "width", "norm_groups", "fpn_channels", "rpn_samples", "rpn_pre_nms_train", "rpn_pre_nms_test",
    "rpn_post_nms_train", "rpn_post_nms_test", "roi_samples", "roi_size", "roi_max_samples", "box_conv_channels",
    "box_fc_width", "detections", "detection_candidates",
)  # fmt: skip
COUNTS_FROM_ZERO = ("stem_width", "rpn_conv_depth", "roi_sampling_ratio", "box_convs", "box_fcs")
FRACTIONS = (
    "rpn_high", "rpn_low", "rpn_positive_fraction", "rpn_nms_iou", "roi_iou", "roi_positive_fraction", "score_floor",
    "detection_nms_iou",
)  # fmt: skip
NOT_NEGATIVE = (
    "norm_eps", "anchor_offset", "rpn_smooth_l1_beta", "rpn_min_size", "box_smooth_l1_beta", "detection_min_size",
)  # fmt: skip


def check_model(config: FasterRCNNConfig) -> None:
    """Raise UserError for the first value that cannot be."""
    for name, allowed in CHOICES.items():
        _require(getattr(config, name) in allowed, config, name, f"choose one of {allowed}")
    for name in SWITCHES:
        _require(isinstance(getattr(config, name), bool), config, name, "give True or False")
    for name in COUNTS_FROM_ONE:
        _require(_is_count(getattr(config, name), 1), config, name, "give a whole number of at least 1")
    for name in COUNTS_FROM_ZERO:
        _require(_is_count(getattr(config, name), 0), config, name, "give a whole number of at least 0")
    for name in FRACTIONS:
        _require(_is_number(getattr(config, name), 0, 1), config, name, "give a number from 0 to 1")
    for name in NOT_NEGATIVE:
        _require(_is_number(getattr(config, name), 0), config, name, "give a number of at least 0")
    _require(config.rpn_low <= config.rpn_high, config, "rpn_low", f"give at most rpn_high = {config.rpn_high}")
    _require(_is_positive(config.pixel_scale), config, "pixel_scale", "give a number above 0")
    _check_tuples(config)
    _check_groups(config)


def _check_tuples(config: FasterRCNNConfig) -> None:
    means = config.pixel_mean
    _require(_is_filled(means) and all(map(_is_number, means)), config, "pixel_mean", "give one number per channel")
    _require(
        _is_filled(config.pixel_std, len(means)) and all(map(_is_positive, config.pixel_std)),
        config,
        "pixel_std",
        f"give {len(means)} numbers above 0, as many as pixel_mean has",
    )
    sizes, per_level = config.anchor_sizes, f"give {LEVELS} tuples of equally many sizes above 0, one per level"
    _require(_is_filled(sizes, LEVELS) and all(map(_is_filled, sizes)), config, "anchor_sizes", per_level)
    _require(len({len(level) for level in sizes}) == 1, config, "anchor_sizes", per_level)
    _require(all(_is_positive(size) for level in sizes for size in level), config, "anchor_sizes", per_level)
    ratios, weights = config.anchor_ratios, config.box_weights
    positive = "give numbers above 0"
    _require(_is_filled(ratios) and all(map(_is_positive, ratios)), config, "anchor_ratios", positive)
    _require(_is_filled(weights, 4) and all(map(_is_positive, weights)), config, "box_weights", f"{positive}, four")
    remat = config.remat
    _require(isinstance(remat, tuple) and set(remat) <= {2, 3, 4, 5}, config, "remat", "give some of 2, 3, 4, 5, or ()")


def _check_groups(config: FasterRCNNConfig) -> None:
    """GroupNorm splits channels evenly. Every width of the ResNet behind its stem is a multiple of `width`."""
    grouped = {
        "width": config.norm == "gn",
        "stem_width": config.norm == "gn" and config.stem_width > 0,
        "fpn_channels": config.fpn_norm == "gn",
        "box_conv_channels": config.box_norm == "gn" and config.box_convs > 0,
    }
    for name in (name for name, is_grouped in grouped.items() if is_grouped):
        channels = getattr(config, name)
        _require(
            channels % config.norm_groups == 0, config, "norm_groups", f"give a divisor of model.{name} = {channels}"
        )


def _require(holds: bool, config: FasterRCNNConfig, name: str, todo: str) -> None:
    if not holds:
        raise UserError(f"{name} is {getattr(config, name)!r}", where=f"model.{name}", todo=todo)


def _is_filled(value: Any, length: int = 0) -> bool:
    """A tuple of this length, or of any but 0."""
    return isinstance(value, tuple) and (len(value) == length if length else len(value) > 0)


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and least <= value <= most


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0
