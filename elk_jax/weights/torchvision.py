"""Names of torchvision's Faster R-CNN and RetinaNet with a ResNet-FPN (v1 and v2), and of plain ResNets (also timm's).

Full detectors: `backbone.body.*`, `backbone.fpn.*`, then `rpn.head.*` and `roi_heads.*`, or `head.*`, with the names
since 0.13 or the older ones (`inner_blocks.0.weight`, `rpn.head.conv.weight`). Backbones only: `conv1.weight`,
`bn1.*`, `layer1.0.*`.
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
    pooled_size,
    resnet_settings,
    sizes,
    strip_wrappers,
)
from elk_jax.weights.reading import Tensors

BODY = "backbone.body."
_BODY = re.escape(BODY)
RETINANET = "head.classification_head."
IGNORED = (r".*\.num_batches_tracked",)
EPS = 1e-5  # epsilon of the model's norms


def interpret(tensors: Tensors, norm_eps: float = EPS) -> Foreign:
    """Recognise the tensors of a file. UserError unless they are a ResNet with torchvision's names.

    norm_eps: epsilon of the batch norms in training (0 for torchvision's published COCO_V1 detector); if it is not the
    model's EPS, it is folded into the scales.
    """
    tensors = strip_wrappers(tensors)
    if "conv1.weight" in tensors:
        tensors = {BODY + name: tensor for name, tensor in tensors.items()}
    backbone_only = not any(name.startswith(("rpn.", "roi_heads.", "head.", "backbone.fpn.")) for name in tensors)
    resnet = resnet_settings(tensors, f"{BODY}conv1.weight", [f"{BODY}layer{i}" for i in (1, 2, 3, 4)])
    is_retinanet = any(name.startswith(RETINANET) for name in tensors)
    settings: dict[str, Any] = {}
    if not backbone_only:
        settings = _retinanet_settings(tensors) if is_retinanet else _detector_settings(tensors)
    v2 = settings.get("box_convs", 0) > 0 or settings.get("head_norm", "none") != "none"
    preset = ("retinanet" if is_retinanet else "torchvision") + ("_v2" if v2 else "")
    # Version 2 of the detector trains its norms; in version 1 and in plain backbones they are constant.
    resnet["norm"] = "affine_bn" if v2 else "frozen_bn"
    classifier = f"{BODY}fc.weight"
    resnet["num_classes"] = sizes(tensors, classifier, 2)[0] if backbone_only and classifier in tensors else 0
    if norm_eps != EPS:
        tensors = fold_eps(tensors, norm_eps)
    fmt = format_of(None if is_retinanet else settings.get("box_convs", 0), settings.get("roi_size", 7))
    return Foreign(tensors, fmt, preset, resnet, settings, backbone_only)


def format_of(box_convs: int | None, roi_size: int = 7) -> Format:
    """The rules for a Faster R-CNN with this number of convolutions in its box head, and pooled regions of this side,
    and for ResNets; None: for a RetinaNet."""
    behind = _retinanet_rules() if box_convs is None else _detector_rules(box_convs, roi_size)
    return Format((*_body_rules(), *behind), IGNORED)


def fold_eps(tensors: Tensors, norm_eps: float) -> Tensors:
    """The tensors with the scales of batch norms changed so that EPS gives the same results as `norm_eps`.

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


def _pyramid_width(tensors: Tensors) -> int:
    return _lateral(tensors, 0)[0]


def _lateral(tensors: Tensors, level: int) -> tuple[int, ...]:
    """The shape of a lateral convolution of the pyramid."""
    names = [f"backbone.fpn.inner_blocks.{level}{suffix}.weight" for suffix in ("", ".0")]
    lateral = next((name for name in names if name in tensors), None)
    if lateral is None:
        raise UserError("the file has no feature pyramid", todo="use a detector with an FPN, or a plain ResNet")
    return sizes(tensors, lateral, 4)


def _top(tensors: Tensors, width: int) -> dict[str, str]:
    """The map from which P6 of a RetinaNet is computed; {} if C5 is as wide as the pyramid, so that shapes do not show
    it."""
    inputs, c5 = sizes(tensors, "backbone.fpn.extra_blocks.p6.weight", 4)[1], _lateral(tensors, 2)[1]
    return {} if c5 == width else {"fpn_top": "p5" if inputs == width else "c5"}


def _retinanet_settings(tensors: Tensors) -> dict[str, Any]:
    width = _pyramid_width(tensors)
    boxes = sizes(tensors, "head.regression_head.bbox_reg.weight", 4)[0]
    outputs = sizes(tensors, f"{RETINANET}cls_logits.weight", 4)[0]
    if not boxes or boxes % 4 or outputs * 4 % boxes:
        raise UserError(f"{outputs} outputs for classes and {boxes} for boxes", todo="use another file")
    convs = indices(tensors, rf"{re.escape(RETINANET)}conv\.(\d)\.0\.weight")
    older = indices(tensors, rf"{re.escape(RETINANET)}conv\.(\d)\.weight")
    return {
        "fpn_channels": width,
        **_top(tensors, width),
        "head_convs": len(convs) or len(older),
        "head_norm": "gn" if f"{RETINANET}conv.0.1.weight" in tensors else "none",
        "num_classes": outputs * 4 // boxes - 1,
    }


def _detector_settings(tensors: Tensors) -> dict[str, Any]:
    channels = _pyramid_width(tensors)
    has_norm = "backbone.fpn.inner_blocks.0.1.running_mean" in tensors
    outputs, width = sizes(tensors, "roi_heads.box_predictor.cls_score.weight", 2)
    convs = indices(tensors, r"roi_heads\.box_head\.(\d)\.0\.weight")
    settings = {
        "fpn_channels": channels,
        "fpn_norm": "affine_bn" if has_norm else "none",
        "rpn_conv_depth": max(1, len(indices(tensors, r"rpn\.head\.conv\.(\d)\.0\.weight"))),
        "box_convs": len(convs),
        "box_norm": "affine_bn" if "roi_heads.box_head.0.1.running_mean" in tensors else "none",
        "box_fcs": 1 if convs else 2,
        "box_fc_width": width,
        "num_classes": outputs - 1,
    }
    if convs:
        channels = settings["box_conv_channels"] = sizes(tensors, f"roi_heads.box_head.{len(convs) - 1}.0.weight", 4)[0]
    first = f"roi_heads.box_head.{_first_fc(len(convs))}.weight"
    settings["roi_size"] = pooled_size(tensors, first, channels)
    return settings


def _body_rules() -> tuple[Rule, ...]:
    return (
        *layer(_BODY + r"conv1", "backbone/stem/conv", oihw_to_hwio),
        *norm(_BODY + r"bn1", "backbone/stem/conv"),
        *(rule for stage in (1, 2, 3, 4) for rule in _stage(stage)),
        *layer(_BODY + r"fc", "classifier", out_in_to_in_out),
    )


def _retinanet_rules() -> tuple[Rule, ...]:
    rules = (
        *(rule for level in (0, 1, 2) for rule in _level(level, 3)),
        *layer(r"backbone\.fpn\.extra_blocks\.(p6|p7)", r"fpn/\1", oihw_to_hwio),
        *layer(r"head\.classification_head\.cls_logits", "class_head/logits", oihw_to_hwio),
        *layer(r"head\.regression_head\.bbox_reg", "box_head/deltas", oihw_to_hwio),
    )
    for theirs, ours in ((re.escape(RETINANET), "class_head"), (r"head\.regression_head\.", "box_head")):
        for i in range(8):
            conv = rf"{theirs}conv\."
            rules += (
                *layer(rf"{conv}(?:{i}\.0|{2 * i})", f"{ours}/conv{i + 1}", oihw_to_hwio),
                *norm(rf"{conv}{i}\.1", f"{ours}/conv{i + 1}"),
            )
    return rules


def _first_fc(box_convs: int) -> str:
    """The name of the first dense layer of a box head."""
    return f"{box_convs + 1}" if box_convs else "fc6"  # after the convolutions and a layer that flattens their map


def _detector_rules(box_convs: int, roi_size: int) -> tuple[Rule, ...]:
    return (
        *(rule for level in (0, 1, 2, 3) for rule in _level(level, 2)),
        *(rule for i in range(8) for rule in layer(rf"rpn\.head\.conv\.{i}\.0", f"rpn/conv{i + 1}", oihw_to_hwio)),
        *layer(r"rpn\.head\.conv", "rpn/conv1", oihw_to_hwio),
        *layer(r"rpn\.head\.cls_logits", "rpn/objectness", oihw_to_hwio),
        *layer(r"rpn\.head\.bbox_pred", "rpn/deltas", oihw_to_hwio),
        *(
            rule
            for i in range(8)
            for rule in layer(rf"roi_heads\.box_head\.{i}\.0", f"box_head/conv{i + 1}", oihw_to_hwio)
        ),
        *(rule for i in range(8) for rule in norm(rf"roi_heads\.box_head\.{i}\.1", f"box_head/conv{i + 1}")),
        *layer(rf"roi_heads\.box_head\.{_first_fc(box_convs)}", "box_head/fc1", chw_to_hwc(roi_size)),
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


def _level(level: int, first: int) -> tuple[Rule, ...]:
    rules: tuple[Rule, ...] = ()
    for theirs, ours in (("inner", f"fpn/lateral{level + first}"), ("layer", f"fpn/output{level + first}")):
        block = rf"backbone\.fpn\.{theirs}_blocks\.{level}"
        rules += (*layer(rf"{block}(?:\.0)?", ours, oihw_to_hwio), *norm(rf"{block}\.1", ours))
    return rules
