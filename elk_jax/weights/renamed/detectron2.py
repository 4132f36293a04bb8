"""Faster R-CNNs for detectron2: the state dict of `build_model(cfg)`, and the entries of `cfg`."""

from __future__ import annotations

from typing import Any

from elk_jax.backbones.norms import BATCH_NORM
from elk_jax.backbones.resnet import ResNetConfig, has_bottlenecks
from elk_jax.errors import UserError
from elk_jax.weights import convert, detectron2, model_folder
from elk_jax.weights.detectors import PRESETS, convert_foreign
from elk_jax.weights.renamed.kinds import BATCH_NORMS, Choices, Kind, Renamed, check_same, not_in, refuse_others

_FASTER_RCNN = Kind(
    {
        "num_classes": "MODEL.ROI_HEADS.NUM_CLASSES",
        "fpn_channels": "MODEL.FPN.OUT_CHANNELS",
        "anchor_sizes": "MODEL.ANCHOR_GENERATOR.SIZES",
        "anchor_offset": "MODEL.ANCHOR_GENERATOR.OFFSET",
        "rpn_samples": "MODEL.RPN.BATCH_SIZE_PER_IMAGE",
        "rpn_positive_fraction": "MODEL.RPN.POSITIVE_FRACTION",
        "rpn_smooth_l1_beta": "MODEL.RPN.SMOOTH_L1_BETA",
        "rpn_pre_nms_train": "MODEL.RPN.PRE_NMS_TOPK_TRAIN",
        "rpn_pre_nms_test": "MODEL.RPN.PRE_NMS_TOPK_TEST",
        "rpn_post_nms_train": "MODEL.RPN.POST_NMS_TOPK_TRAIN",
        "rpn_post_nms_test": "MODEL.RPN.POST_NMS_TOPK_TEST",
        "rpn_nms_iou": "MODEL.RPN.NMS_THRESH",
        "rpn_min_size": "MODEL.PROPOSAL_GENERATOR.MIN_SIZE",
        "roi_samples": "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
        "roi_positive_fraction": "MODEL.ROI_HEADS.POSITIVE_FRACTION",
        "roi_append_gt": "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT",
        "roi_size": "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION",
        "roi_sampling_ratio": "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO",
        "box_convs": "MODEL.ROI_BOX_HEAD.NUM_CONV",
        "box_conv_channels": "MODEL.ROI_BOX_HEAD.CONV_DIM",
        "box_fcs": "MODEL.ROI_BOX_HEAD.NUM_FC",
        "box_fc_width": "MODEL.ROI_BOX_HEAD.FC_DIM",
        "box_weights": "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS",
        "box_smooth_l1_beta": "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA",
        "score_floor": "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
        "detection_nms_iou": "MODEL.ROI_HEADS.NMS_THRESH_TEST",
        "detections": "TEST.DETECTIONS_PER_IMAGE",
    },
    (),
    {
        **dict.fromkeys(("anchor_ratios", "rpn_high", "rpn_low", "roi_iou", "roi_aligned")),
        **dict.fromkeys(("roi_max_samples", "detection_candidates")),  # limits that detectron2 does not have
        "rpn_conv_depth": range(1, 10),
        "box_convs": range(10),
    },
)
_GROUPS = 32  # of every group norm
_NORMS = {"none": "", "gn": "GN", "frozen_bn": "FrozenBN", "affine_bn": "FrozenBN", BATCH_NORM: "BN"}
_PIXELS = 255.0  # the largest value of an image


def to_detectron2(config: Any, params: model_folder.Params, where: object) -> Renamed:
    """A Faster R-CNN with a ResNet-FPN, for `build_model`. where: the model folder, for errors."""
    preset = PRESETS["detectron2"]()
    if type(preset) is not type(config):
        what = f"a detector of kind '{config.name}' cannot be exported for detectron2"
        raise UserError(what, where=where, todo="export a Faster R-CNN")
    over_zero = {name: None if getattr(config, name) else (getattr(preset, name),) for name in ("rpn_low", "roi_iou")}
    basic = not has_bottlenecks(getattr(config.backbone, "depth", 50))
    norms = ("none", "gn", *BATCH_NORMS)
    network: Choices = {
        **dict.fromkeys(("depth", "stem_width", "stride_in_1x1", "pixel_scale", "pixel_mean", "pixel_std")),
        **dict.fromkeys(("image_size", "remat", "dtype")),
        "width": (ResNetConfig().width,) if basic else None,
        "norm": norms[1:],
        "norm_groups": (_GROUPS,) if getattr(config.backbone, "norm", "") == "gn" else None,
    }
    choices: Choices = {
        **_FASTER_RCNN.free(),
        **over_zero,
        "anchor_offset": None if config.anchor_offset < 1 else (preset.anchor_offset,),
        "fpn_norm": norms,
        "box_norm": norms if config.box_convs else ("none",),
        "box_fcs": range(0 if config.box_convs else 1, 10),
        "norm_groups": (_GROUPS,) if "gn" in (config.fpn_norm, config.box_norm) else None,
    }
    refuse_others(config.backbone, preset.backbone, network, "backbone.", "detectron2", where)
    refuse_others(config, preset, choices, "", "detectron2", where)
    tensors = convert.rename(params, detectron2.format_of(config.rpn_conv_depth, config.roi_size, config.box_fcs))
    foreign = detectron2.interpret(tensors)
    check_same(convert_foreign(foreign, not_in(foreign, config)), config, params, where)
    entries = {
        "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
        "MODEL.MASK_ON": False,
        **_network(config.backbone),
        **_parts(config),
        **{theirs: getattr(config, ours) for ours, theirs in _FASTER_RCNN.arguments.items()},
    }
    return Renamed(tensors, {"config": entries, "first_label": 0})


def _network(network: ResNetConfig) -> dict[str, Any]:
    """The entries of the ResNet; pixels in 0..255."""
    return {
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.RESNETS.DEPTH": network.depth,
        "MODEL.RESNETS.WIDTH_PER_GROUP": network.width,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": network.width * (4 if has_bottlenecks(network.depth) else 1),
        "MODEL.RESNETS.STEM_OUT_CHANNELS": network.stem_width or network.width,
        "MODEL.RESNETS.STRIDE_IN_1X1": network.stride_in_1x1,
        "MODEL.RESNETS.NORM": _NORMS[network.norm],
        "MODEL.PIXEL_MEAN": [value * _PIXELS / network.pixel_scale for value in network.pixel_mean],
        "MODEL.PIXEL_STD": [value * _PIXELS / network.pixel_scale for value in network.pixel_std],
    }


def _parts(config: Any) -> dict[str, Any]:
    """The entries of the pyramid and the heads that are not settings of ours, or are written otherwise."""
    levels = ["p2", "p3", "p4", "p5", "p6"]
    return {
        "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.FPN.NORM": _NORMS[config.fpn_norm],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [config.anchor_ratios],
        "MODEL.RPN.IN_FEATURES": levels,
        "MODEL.RPN.CONV_DIMS": [-1] * config.rpn_conv_depth,
        "MODEL.RPN.IOU_THRESHOLDS": [config.rpn_low, config.rpn_high],
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES": levels[:-1],
        "MODEL.ROI_HEADS.IOU_THRESHOLDS": [config.roi_iou],
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NORM": _NORMS[config.box_norm],
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2" if config.roi_aligned else "ROIAlign",
    }
