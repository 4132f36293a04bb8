"""Names of torchvision's Faster R-CNN with a ResNet-FPN (v1 and v2), and of plain ResNets (torchvision, timm).

Full detectors: `backbone.body.*`, `backbone.fpn.*`, `rpn.head.*`, `roi_heads.*`, with the names since 0.13 or the
older ones (`inner_blocks.0.weight`, `rpn.head.conv.weight`). Backbones alone: `conv1.weight`, `bn1.*`, `layer1.0.*`.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from elk_jax.errors import UserError
from elk_jax.weights.convert import (
    Foreign,
    Format,
    Rule,
    chw_to_hwc,
    find,
    indices,
    layer,
    norm,
    oihw_to_hwio,
    out_in_to_in_out,
    resnet_settings,
    sizes,
    strip_wrappers,
)
from elk_jax.weights.reading import Tensors

BODY = "backbone.body."
_BODY = re.escape(BODY)
IGNORED = (r".*\.num_batches_tracked", rf"{_BODY}fc\.(weight|bias)")
EPS = 1e-5  # epsilon of the model's norms


def interpret(tensors: Tensors, norm_eps: float = EPS) -> Foreign:
    """Recognise the tensors of a file. UserError unless they are a ResNet with torchvision's names.

    norm_eps: epsilon of the batch norms in training (0 for torchvision's published COCO_V1 detector); if it is not the
    model's EPS, it is folded into the scales.
    """
    tensors = strip_wrappers(tensors)
    if "conv1.weight" in tensors:
        tensors = {BODY + name: tensor for name, tensor in tensors.items()}
    backbone_only = not any(name.startswith(("rpn.", "roi_heads.", "backbone.fpn.")) for name in tensors)
    settings: dict[str, Any] = resnet_settings(
        tensors, f"{BODY}conv1.weight", [f"{BODY}layer{i}" for i in (1, 2, 3, 4)]
    )
    settings |= {} if backbone_only else _detector_settings(tensors)
    v2 = settings.get("box_convs", 0) > 0
    preset = "torchvision_v2" if v2 else "torchvision"
    # Version 2 of the detector trains its norms; in version 1 and in backbones they are constant.
    settings["norm"] = "affine_bn" if v2 else "frozen_bn"
    if norm_eps != EPS:
        tensors = fold_eps(tensors, norm_eps)
    return Foreign(tensors, Format(_rules(), IGNORED), preset, settings, backbone_only)


def fold_eps(tensors: Tensors, norm_eps: float) -> Tensors:
    """The tensors with scales of batch norms changed so that EPS gives the same results as `norm_eps`.

    scale / sqrt(var + norm_eps) = scale' / sqrt(var + EPS).
    """
    folded = dict(tensors)
    for name, var in tensors.items():
        if name.endswith(".running_var"):
            scale = name.removesuffix("running_var") + "weight"
            with np.errstate(divide="ignore", invalid="ignore"):  # var 0: convert() reports the infinity
                ratio = np.sqrt((var.astype(np.float64) + EPS) / (var.astype(np.float64) + norm_eps))
            folded[scale] = find(tensors, scale) * ratio
    return folded


def _detector_settings(tensors: Tensors) -> dict[str, Any]:
    names = [f"backbone.fpn.inner_blocks.0{suffix}.weight" for suffix in ("", ".0")]
    lateral = next((name for name in names if name in tensors), None)
    if lateral is None:
        raise UserError("the file has no feature pyramid", todo="use a Faster R-CNN with an FPN, or a plain ResNet")
    has_norm = "backbone.fpn.inner_blocks.0.1.running_mean" in tensors
    outputs, width = sizes(tensors, "roi_heads.box_predictor.cls_score.weight", 2)
    convs = indices(tensors, r"roi_heads\.box_head\.(\d)\.0\.weight")
    settings = {
        "fpn_channels": sizes(tensors, lateral, 4)[0],
        "fpn_norm": "affine_bn" if has_norm else "none",
        "rpn_conv_depth": max(1, len(indices(tensors, r"rpn\.head\.conv\.(\d)\.0\.weight"))),
        "box_convs": len(convs),
        "box_norm": "affine_bn" if "roi_heads.box_head.0.1.running_mean" in tensors else "none",
        "box_fcs": 1 if convs else 2,
        "box_fc_width": width,
        "num_classes": outputs - 1,
    }
    if convs:
        settings["box_conv_channels"] = sizes(tensors, "roi_heads.box_head.0.0.weight", 4)[0]
    return settings


def _rules() -> tuple[Rule, ...]:
    return (
        *layer(_BODY + r"conv1", "backbone/stem/conv", oihw_to_hwio),
        *norm(_BODY + r"bn1", "backbone/stem/conv"),
        *(rule for stage in (1, 2, 3, 4) for rule in _stage(stage)),
        *(rule for level in (0, 1, 2, 3) for rule in _level(level)),
        *layer(r"rpn\.head\.conv", "rpn/conv1", oihw_to_hwio),
        *(rule for i in range(8) for rule in layer(rf"rpn\.head\.conv\.{i}\.0", f"rpn/conv{i + 1}", oihw_to_hwio)),
        *layer(r"rpn\.head\.cls_logits", "rpn/objectness", oihw_to_hwio),
        *layer(r"rpn\.head\.bbox_pred", "rpn/deltas", oihw_to_hwio),
        *(
            rule
            for i in range(8)
            for rule in layer(rf"roi_heads\.box_head\.{i}\.0", f"box_head/conv{i + 1}", oihw_to_hwio)
        ),
        *(rule for i in range(8) for rule in norm(rf"roi_heads\.box_head\.{i}\.1", f"box_head/conv{i + 1}")),
        *layer(r"roi_heads\.box_head\.(?:fc6|\d)", "box_head/fc1", chw_to_hwc),
        *layer(r"roi_heads\.box_head\.fc7", "box_head/fc2", out_in_to_in_out),
        *layer(r"roi_heads\.box_predictor\.cls_score", "box_head/class_logits", out_in_to_in_out),
        *layer(r"roi_heads\.box_predictor\.bbox_pred", "box_head/box_deltas", out_in_to_in_out),
    )


def _stage(stage: int) -> tuple[Rule, ...]:
    block, ours = rf"{_BODY}layer{stage}\.(\d+)\.", rf"backbone/res{stage + 1}_\1/"
    return (
        *layer(block + r"conv(\d)", ours + r"conv\2", oihw_to_hwio),
        *norm(block + r"bn(\d)", ours + r"conv\2"),
        *layer(block + r"downsample\.0", ours + "shortcut", oihw_to_hwio),
        *norm(block + r"downsample\.1", ours + "shortcut"),
    )


def _level(level: int) -> tuple[Rule, ...]:
    rules: tuple[Rule, ...] = ()
    for theirs, ours in (("inner", f"fpn/lateral{level + 2}"), ("layer", f"fpn/output{level + 2}")):
        block = rf"backbone\.fpn\.{theirs}_blocks\.{level}"
        rules += (*layer(rf"{block}(?:\.0)?", ours, oihw_to_hwio), *norm(rf"{block}\.1", ours))
    return rules
