"""Names of detectron2's Faster R-CNN with a ResNet-FPN, and of its pre-trained backbones.

Full detectors: `backbone.bottom_up.*`, `backbone.fpn_*`, `proposal_generator.*`, `roi_heads.*`. Backbones only: the
same names without `backbone.bottom_up.` (detectron2's conversions of other libraries), or Caffe2's (`conv1_w`,
`res2_0_branch2a_w`, `res2_0_branch2a_bn_s`), whose batch statistics are folded into scale and bias.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from elk_jax.detection.anchors import cell_anchors
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

BODY = "backbone.bottom_up."
_BODY = re.escape(BODY)
RPN, ROI = "proposal_generator", "roi_heads"
EPS = 1e-5  # epsilon of the model's norms; variance 1 - EPS makes a folded norm exact

PIXELS = ("pixel_mean", "pixel_std")
CELLS = f"{RPN}.anchor_generator.cell_anchors."
_CELLS = rf"{re.escape(CELLS)}(\d+)"
IGNORED = (
    *PIXELS,  # settings, as are the anchors
    _CELLS,
    r".*\.num_batches_tracked",
    rf"({_BODY})?(stem\.)?(linear|fc)\.(weight|bias)",  # the classifier of a backbone
    rf"({_BODY})?(fc1000|pred)_[wb]",
)


def interpret(tensors: Tensors) -> Foreign:
    """Recognise the tensors of a file. UserError unless they are a ResNet with detectron2's or Caffe2's names."""
    tensors = strip_wrappers(tensors)
    caffe2 = "conv1_w" in tensors
    if caffe2:
        tensors = _from_caffe2(tensors)
    if "stem.conv1.weight" in tensors:
        tensors = {BODY + name: tensor for name, tensor in tensors.items()}
    backbone_only = not any(name.startswith((f"{RPN}.", f"{ROI}.", "backbone.fpn_")) for name in tensors)
    resnet = _backbone_settings(tensors, caffe2)
    resnet |= {name: _tidy(tensors[name]) for name in PIXELS if name in tensors}
    settings = {} if backbone_only else _detector_settings(tensors) | _anchor_settings(tensors)
    folded = caffe2 and not any(name.endswith(".running_mean") for name in tensors)
    constants = ((r".*/norm/mean", 0.0), (r".*/norm/var", 1.0 - EPS)) if folded else ()
    fmt = format_of(
        settings.get("rpn_conv_depth", 1), settings.get("roi_size", 7), settings.get("box_fcs", 2), constants
    )
    return Foreign(tensors, fmt, "detectron2", resnet, settings, backbone_only)


def format_of(
    rpn_conv_depth: int, roi_size: int, box_fcs: int, constants: tuple[tuple[str, float], ...] = ()
) -> Format:
    """The rules for a Faster R-CNN with this number of convolutions in its RPN, pooled regions of this side and this
    number of dense layers in its box head, and for ResNets. constants: as in `Format`."""
    return Format((*_body_rules(), *_detector_rules(rpn_conv_depth, roi_size, box_fcs)), IGNORED, constants)


def _backbone_settings(tensors: Tensors, caffe2: bool) -> dict[str, Any]:
    resnet = resnet_settings(tensors, f"{BODY}stem.conv1.weight", [f"{BODY}res{stage}" for stage in (2, 3, 4, 5)])
    if f"{BODY}stem.conv1.norm.weight" not in tensors:
        return {**resnet, "norm": "none"}
    constant = caffe2 or f"{BODY}stem.conv1.norm.running_mean" in tensors
    return {**resnet, "norm": "frozen_bn" if constant else "gn"}


def _detector_settings(tensors: Tensors) -> dict[str, Any]:
    def norm_of(name: str) -> str:
        if f"{name}.norm.weight" not in tensors:
            return "none"
        return "affine_bn" if f"{name}.norm.running_mean" in tensors else "gn"

    convs = indices(tensors, r"roi_heads\.box_head\.conv(\d)\.weight")
    fcs = indices(tensors, r"roi_heads\.box_head\.fc(\d)\.weight")
    channels = sizes(tensors, "backbone.fpn_lateral2.weight", 4)[0]
    settings = {
        "fpn_channels": channels,
        "fpn_norm": norm_of("backbone.fpn_lateral2"),
        "rpn_conv_depth": max(1, len(indices(tensors, r"proposal_generator\.rpn_head\.conv\.conv(\d)\.weight"))),
        "box_convs": len(convs),
        "box_norm": norm_of("roi_heads.box_head.conv1"),
        "box_fcs": len(fcs),
        "num_classes": sizes(tensors, "roi_heads.box_predictor.cls_score.weight", 2)[0] - 1,
    }
    if convs:
        channels = settings["box_conv_channels"] = sizes(tensors, f"roi_heads.box_head.conv{len(convs)}.weight", 4)[0]
    first = f"roi_heads.{'box_head.fc1' if fcs else 'box_predictor.cls_score'}.weight"
    settings["roi_size"] = pooled_size(tensors, first, channels)
    if fcs:
        settings["box_fc_width"] = sizes(tensors, first, 2)[0]
    return settings


def _anchor_settings(tensors: Tensors) -> dict[str, Any]:
    """Sizes and ratios of the anchors, which older versions of detectron2 write into their files; {} without them."""
    names = [f"{CELLS}{level}" for level in indices(tensors, _CELLS)]
    sizes_of, ratios_of = [], []
    for name in names:
        if sizes(tensors, name, 2)[1] != 4:
            raise UserError(f"{name} {tensors[name].shape} are not boxes", todo="use another file")
        boxes = tensors[name].astype(np.float64)
        width, height = (boxes[:, 2:] - boxes[:, :2]).T
        with np.errstate(invalid="ignore", divide="ignore"):
            size, ratio = np.sqrt(width * height), height / width
        count = int(np.isclose(size, size[:1], rtol=1e-3).sum()) or 1  # the ratios of a size stand together
        sizes_of.append(_tidy(size[::count]))
        ratios_of.append(_tidy(ratio[:count]))
        made = cell_anchors(sizes_of[-1], ratios_of[0])
        if made.shape != boxes.shape or not np.allclose(made, boxes, rtol=1e-3, atol=0):
            what = f"the anchors {name} are not every size with every ratio, {ratios_of[0]}, about one point"
            raise UserError(what, todo="use a detector with the same ratios on every level")
    return {"anchor_sizes": tuple(sizes_of), "anchor_ratios": ratios_of[0]} if names else {}


def _tidy(numbers: np.ndarray) -> tuple[float, ...]:
    """Settings that were rounded to float32, with the digits that this leaves."""
    return tuple(float(f"{number:.6g}") for number in numbers.reshape(-1).tolist())


def _from_caffe2(tensors: Tensors) -> Tensors:
    """Rename a ResNet from Caffe2 to detectron2, and fold the bias of its first convolution into the norm."""
    renamed = {_caffe2_name(name): tensor for name, tensor in tensors.items()}
    bias = renamed.pop("stem.conv1.bias", None)
    if bias is not None and "stem.conv1.norm.bias" in renamed:
        scale = find(renamed, "stem.conv1.norm.weight")
        renamed["stem.conv1.norm.bias"] = renamed["stem.conv1.norm.bias"] + scale * bias
    return renamed


def _caffe2_name(name: str) -> str:
    norm_parts = {"bn_s": "weight", "bn_b": "bias", "bn_rm": "running_mean", "bn_riv": "running_var"}
    kind = {"w": "weight", "b": "bias", **{theirs: f"norm.{ours}" for theirs, ours in norm_parts.items()}}
    kinds = "|".join(kind)
    if match := re.fullmatch(rf"(?:res_)?conv1_({kinds})", name):
        return f"stem.conv1.{kind[match[1]]}"
    if match := re.fullmatch(rf"res(\d)_(\d+)_branch(1|2a|2b|2c)_({kinds})", name):
        part = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}[match[3]]
        return f"res{match[1]}.{match[2]}.{part}.{kind[match[4]]}"
    return name


def _body_rules() -> tuple[Rule, ...]:
    return (
        *layer(_BODY + r"stem\.conv1", "backbone/stem/conv", oihw_to_hwio),
        *norm(_BODY + r"stem\.conv1\.norm", "backbone/stem/conv"),
        *layer(_BODY + r"res(\d)\.(\d+)\.(conv\d|shortcut)", r"backbone/res\1_\2/\3", oihw_to_hwio),
        *norm(_BODY + r"res(\d)\.(\d+)\.(conv\d|shortcut)\.norm", r"backbone/res\1_\2/\3"),
    )


def _detector_rules(rpn_conv_depth: int, roi_size: int, box_fcs: int) -> tuple[Rule, ...]:
    pooled = chw_to_hwc(roi_size)
    last = out_in_to_in_out if box_fcs else pooled  # without dense layers, the last layers read the region
    conv, several = r"proposal_generator\.rpn_head\.conv", range(rpn_conv_depth if rpn_conv_depth > 1 else 0)
    return (
        *layer(r"backbone\.fpn_(lateral|output)(\d)", r"fpn/\1\2", oihw_to_hwio),
        *norm(r"backbone\.fpn_(lateral|output)(\d)\.norm", r"fpn/\1\2"),
        *(rule for i in several for rule in layer(rf"{conv}\.conv{i}", f"rpn/conv{i + 1}", oihw_to_hwio)),
        *layer(conv, "rpn/conv1", oihw_to_hwio),
        *layer(r"proposal_generator\.rpn_head\.objectness_logits", "rpn/objectness", oihw_to_hwio),
        *layer(r"proposal_generator\.rpn_head\.anchor_deltas", "rpn/deltas", oihw_to_hwio),
        *layer(r"roi_heads\.box_head\.conv(\d)", r"box_head/conv\1", oihw_to_hwio),
        *norm(r"roi_heads\.box_head\.conv(\d)\.norm", r"box_head/conv\1"),
        *layer(r"roi_heads\.box_head\.fc1", "box_head/fc1", pooled),
        *layer(r"roi_heads\.box_head\.fc(\d)", r"box_head/fc\1", out_in_to_in_out),
        *layer(r"roi_heads\.box_predictor\.cls_score", "box_head/class_logits", last),
        *layer(r"roi_heads\.box_predictor\.bbox_pred", "box_head/box_deltas", last),
    )
