"""Names and conventions of EfficientDets in effdet (R. Wightman's port), for TensorFlow's weights and its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from elk_jax import fields
from elk_jax.backbones.pixels import IMAGENET_MEAN, IMAGENET_STD
from elk_jax.detection import efficientdet_config
from elk_jax.detection.anchors import cell_anchors
from elk_jax.detection.efficientdet_config import VARIANTS, EfficientDetConfig
from elk_jax.errors import UserError
from elk_jax.weights import efficientnet as backbones
from elk_jax.weights import timm
from elk_jax.weights.convert import (
    Format,
    Layout,
    Rule,
    Understood,
    as_is,
    layer,
    norm,
    oihw_to_hwio,
    sizes,
    strip_wrappers,
)
from elk_jax.weights.reading import Tensors

NAMES = (
    "efficientdet_(d[0-5]|lite0)",
    "tf_efficientdet_(d[0-7]|d7x|lite[0-4]|lite3x)",
    "tf_efficientdet_(d[0-5])_ap",
)
SYMMETRIC = ("d0", "d1", "d2", "d3")
"""Names without `tf_` whose pyramid and heads pad as in PyTorch; the backbone does so for all names without `tf_`."""
LEVELS_FIRST = ("efficientdet_lite0",)
"""Names whose heads number their norms by level, then by convolution."""
IGNORED = (r".*\.num_batches_tracked",)
BENCH_ANCHORS = "anchors.boxes"
"""The end of a name in the file of a bench, which has the anchors beside its model."""
FIRST = 3


def understand(
    tensors: Tensors, name: str, changes: Mapping[str, Any], flag: str = "--model", ignore: Sequence[str] = ()
) -> Understood:
    """The detector `name` of effdet in a file, with `changes`. UserError for others. The classes are those of the file.

    flag: the flag with the name, for errors. ignore: as in `convert.strip_wrappers`.
    """
    match = next(filter(None, (re.fullmatch(pattern, name) for pattern in NAMES)), None)
    if match is None:
        todo = "give a name such as tf_efficientdet_d0"
        raise UserError(f"'{name}' is not a supported EfficientDet of effdet", where=flag, todo=todo)
    tensors, anchors = _without_bench(tensors, ignore)
    model = configure(match[1], name.startswith("tf_"), name.endswith("_ap"), tensors)
    ours = fields.as_dict(changes.get("backbone", {}), "model.backbone")
    settings = {**vars(model), **changes, "backbone": {**vars(model.backbone), **ours}}
    model = fields.build(EfficientDetConfig, settings, "model")
    _check_anchors(model, anchors)
    return Understood(tensors, model, format_of(model, name))


def _without_bench(tensors: Tensors, ignore: Sequence[str]) -> tuple[Tensors, np.ndarray | None]:
    """The tensors of the model in a file, with plain names, and the anchors beside it in the file of a bench."""
    anchors = next((tensor for name, tensor in tensors.items() if name.endswith(BENCH_ANCHORS)), None)
    inside = {name: tensor for name, tensor in tensors.items() if not name.endswith(BENCH_ANCHORS)}
    return strip_wrappers(inside, ignore), anchors


def _check_anchors(model: EfficientDetConfig, anchors: np.ndarray | None) -> None:
    """UserError if the anchors of a bench are not the model's, beyond the 2 % of effdet's rounded ratios. anchors:
    [A, 4], top, left, bottom, right in px, of the first cell first."""
    if anchors is None:
        return
    ours = cell_anchors(model.anchor_sizes[0], model.anchor_ratios) + model.strides[0] / 2
    theirs = anchors[: len(ours)]
    if theirs.shape != ours.shape or not np.allclose(theirs[:, [1, 0, 3, 2]], ours, rtol=0, atol=0.02 * np.ptp(ours)):
        what = f"the anchors in {BENCH_ANCHORS} are not the model's"
        raise UserError(what, todo="give theirs by --set=anchor_sizes=JSON and --set=anchor_ratios=JSON")


def configure(variant: str, ported: bool, adversarial: bool, tensors: Tensors) -> EfficientDetConfig:
    """The conventions of a name: `tf_` (ported) is from TensorFlow, `_ap` from its adversarial training."""
    published = efficientdet_config.named(variant)
    lite = variant.startswith("lite")
    half = ported and (lite or adversarial)
    network: dict[str, Any] = {"padding": "same", "norm_eps": 1e-3, "norm": "affine_bn"}
    if not ported:
        network |= {"padding": "symmetric", "norm_eps": 1e-5}
    if half:
        network |= {"pixel_mean": timm.HALF, "pixel_std": timm.HALF}
    elif lite:
        network |= {"pixel_mean": IMAGENET_MEAN, "pixel_std": IMAGENET_STD}
    if not ported and lite:
        scale, fusion = 4.0, "fast"
    else:
        scale, fusion = VARIANTS[variant][-1], published.fusion
    outputs, boxes = (sizes(tensors, f"{net}_net.predict.conv_pw.weight", 4)[0] for net in ("class", "box"))
    settings = {
        **vars(published),
        "backbone": {**vars(published.backbone), **network},
        "anchor_sizes": efficientdet_config.octaves(scale, published.levels),
        "fusion": fusion,
        "norm": "affine_bn",
        "padding": "symmetric" if not ported and variant in SYMMETRIC else "same",
        "biases": "class_net.conv_rep.0.conv_pw.bias" in tensors,
        "num_classes": outputs * 4 // max(boxes, 1),
    }
    return fields.build(EfficientDetConfig, settings, "model")


def xy_first(x: np.ndarray) -> np.ndarray:
    """Box outputs [A 4, ...]: from the order y, x, height, width to x, y, width, height."""
    return x.reshape(-1, 4, *x.shape[1:])[:, [1, 0, 3, 2]].reshape(x.shape)


def xy_first_kernel(x: np.ndarray) -> np.ndarray:
    """The kernel [A 4, in, h, w] of such outputs -> [h, w, in, A 4]."""
    return oihw_to_hwio(xy_first(x))


def format_of(config: EfficientDetConfig, name: str) -> Format:
    """The rules for every tensor of the detector `name`. Norms of the heads are read in either order of numbering."""
    body = backbones.format_of(config.backbone, "timm").rules
    rules = (
        *(Rule(rf"backbone\.{rule.pattern}", rule.target, rule.layout) for rule in body),
        *layer(r"fpn\.resample\.3\.conv\.conv", "fpn/p6", oihw_to_hwio),
        *norm(r"fpn\.resample\.3\.conv\.bn", "fpn/p6"),
    )
    last = config.levels - 1
    nodes = [("down", level) for level in reversed(range(last))] + [("up", level) for level in range(1, last + 1)]
    for number, (way, level) in enumerate(nodes):
        theirs, ours = rf"fpn\.cell\.(\d+)\.fnode\.{number}\.", rf"fpn/cell\1/{way}{level + FIRST}"
        rules += (
            Rule(rf"{theirs}combine\.edge_weights", f"{ours}/weights"),
            *_separable(rf"{theirs}after_combine\.conv", f"{ours}/conv"),
            *norm(rf"{theirs}after_combine\.conv\.bn", f"{ours}/conv/pointwise"),
        )
        for stage in range(3):
            resample, inputs = rf"{theirs}combine\.resample\.{stage}\.conv\.", f"{ours}/inputs{stage + FIRST}"
            rules += (*layer(rf"{resample}conv", inputs, oihw_to_hwio), *norm(rf"{resample}bn", inputs))
    for net, head in (("class_net", "class_head"), ("box_net", "box_head")):
        for i in range(config.head_convs):
            rules += _separable(rf"{net}\.conv_rep\.{i}", f"{head}/conv{i + 1}")
            for level in range(config.levels):
                orders = [rf"{net}\.bn_rep\.{i}\.{level}\.bn", rf"{net}\.bn_rep\.{level}\.{i}"]
                for norms in reversed(orders) if name in LEVELS_FIRST else orders:
                    rules += norm(norms, f"{head}/norms{i + 1}_{level + FIRST}")
    return Format(
        (
            *rules,
            *_separable(r"class_net\.predict", "class_head/logits"),
            *_separable(r"box_net\.predict", "box_head/deltas", xy_first_kernel, xy_first),
        ),
        IGNORED,
    )


def _separable(theirs: str, ours: str, kernel: Layout = oihw_to_hwio, bias: Layout = as_is) -> tuple[Rule, ...]:
    return (
        Rule(rf"{theirs}\.conv_dw\.weight", f"{ours}/depthwise", oihw_to_hwio),
        Rule(rf"{theirs}\.conv_pw\.weight", f"{ours}/pointwise/kernel", kernel),
        Rule(rf"{theirs}\.conv_pw\.bias", f"{ours}/pointwise/bias", bias),
    )
