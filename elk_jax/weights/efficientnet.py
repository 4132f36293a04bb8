"""Names and conventions of published EfficientNets: of torchvision, timm, and the PyTorch ports by L. Melas-Kyriazi.

torchvision: `features.0.0.weight`, `features.1.0.block.*`. timm: `conv_stem.weight`, `blocks.0.0.*`. The ports
`efficientnet_pytorch` and `efficientnet_lite_pytorch`: `_conv_stem.weight`, `_blocks.0.*`, numbered over all stages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from elk_jax import fields
from elk_jax.backbones import efficientnet
from elk_jax.backbones.efficientnet import VARIANTS, Block, EfficientNetConfig
from elk_jax.errors import UserError
from elk_jax.weights import timm
from elk_jax.weights.convert import (
    Format,
    Rule,
    Understood,
    layer,
    norm,
    oihw_to_hwio,
    out_in_to_in_out,
    pixels_of,
    sizes,
)
from elk_jax.weights.reading import Tensors

IGNORED = (r".*\.num_batches_tracked",)
_TAGS: timm.Tags = {
    "half": r"ap_in1k|ra4_\w+",
    "imagenet": r"(ns_jft_|aa_|ra_|ra2_|ft_|sw_in12k_ft_)?in1k|sw_in12k",
}


def understand(tensors: Tensors, file_format: str, name: str, changes: Mapping[str, Any]) -> Understood:
    """The model of a file: `name` in the library `file_format`, with `changes`. UserError for others."""
    if file_format not in FORMATS:
        todo = f"choose one of {', '.join(FORMATS)}"
        raise UserError(f"EfficientNets in the format '{file_format}' are not supported", where="--format", todo=todo)
    model = configure(tensors, file_format, name, changes)
    return Understood(tensors, model, format_of(model, file_format))


def configure(tensors: Tensors, file_format: str, name: str, changes: Mapping[str, Any]) -> EfficientNetConfig:
    """The model of a file: `name` in the library `file_format`, with `changes`. UserError for an unknown name.

    Head and classes are those of the file.
    """
    match = re.fullmatch(r"(tf_)?efficientnet[-_](b\d|lite\d)(?:\.(\w+))?", name)
    if match is None or match[2] not in VARIANTS or (file_format != "timm" and (match[1] or match[3])):
        known = {"torchvision": "efficientnet_b0", "timm": "tf_efficientnet_b0.ns_jft_in1k"}
        todo = f"give a name such as {known.get(file_format, 'efficientnet-lite0')}"
        raise UserError(
            f"{file_format} has no EfficientNet '{name}' of the kinds read here", where="--model", todo=todo
        )
    head, classifier = _ENDS[file_format]
    settings: dict[str, Any] = {"head": f"{head[0]}.weight" in tensors, "num_classes": 0}
    if f"{classifier}.weight" in tensors:
        settings["num_classes"] = sizes(tensors, f"{classifier}.weight", 2)[0]
    published = efficientnet.named(match[2])
    settings |= _CONVENTIONS[file_format](match[1] or "", match[2], match[3])
    stem = f"{_STEMS[file_format][0]}.weight"
    if stem in tensors:
        mean, std = (settings.get(name, getattr(published, name)) for name in ("pixel_mean", "pixel_std"))
        settings |= pixels_of(sizes(tensors, stem, 4)[1], mean, std)
    return fields.build(EfficientNetConfig, {**vars(published), **settings, **changes}, "model")


def _torchvision(_: str, variant: str, tag: str | None) -> dict[str, Any]:
    return {"padding": "symmetric", "norm_eps": 1e-3 if variant in ("b5", "b6", "b7") else 1e-5}


def _timm(prefix: str, variant: str, tag: str | None) -> dict[str, Any]:
    if prefix:
        conventions: dict[str, Any] = {"padding": "same", "norm_eps": 1e-3}
    else:
        conventions = {"padding": "symmetric", "norm_eps": 1e-5}
    if prefix and variant.startswith("lite"):
        return conventions | {"pixel_mean": timm.HALF, "pixel_std": timm.HALF}
    return conventions | timm.pixels(tag, _TAGS, "tf_efficientnet_b0.ns_jft_in1k")


_CONVENTIONS: dict[str, Callable[[str, str, str | None], dict[str, Any]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "efficientnet_pytorch": lambda prefix, variant, tag: {},
}
"""Format -> (prefix of the name, variant, tag) -> settings that override those of `efficientnet.named`."""

_ENDS = {
    "torchvision": (("features.8.0", "features.8.1"), "classifier.1"),
    "timm": (("conv_head", "bn2"), "classifier"),
    "efficientnet_pytorch": (("_conv_head", "_bn1"), "_fc"),
}
"""Names of the head's convolution and norm, and of the classifier."""

_STEMS = {
    "torchvision": ("features.0.0", "features.0.1"),
    "timm": ("conv_stem", "bn1"),
    "efficientnet_pytorch": ("_conv_stem", "_bn0"),
}


def format_of(config: EfficientNetConfig, file_format: str) -> Format:
    """The rules for every tensor of the model, with the names of a library."""
    head, classifier = _ENDS[file_format]
    rules = _conv_norm(*_STEMS[file_format], "backbone/stem")
    for number, block in enumerate(efficientnet.blocks(config)):
        prefix, parts, squeeze = _BLOCKS[file_format](block, number)
        for part, (conv, batch_norm) in parts.items():
            rules += _conv_norm(f"{prefix}.{conv}", f"{prefix}.{batch_norm}", f"backbone/{block.path}/{part}")
        for part, theirs in zip(("reduce", "expand"), squeeze, strict=True):
            path = f"backbone/{block.path}/squeeze/{part}"
            rules += layer(re.escape(f"{prefix}.{theirs}"), path, oihw_to_hwio)
    rules += (*_conv_norm(*head, "head"), *layer(re.escape(classifier), "classifier", out_in_to_in_out))
    return Format(rules, IGNORED, partial=False)


def _conv_norm(conv: str, batch_norm: str, path: str) -> tuple[Rule, ...]:
    return (*layer(re.escape(conv), path, oihw_to_hwio), *norm(re.escape(batch_norm), path))


Names = tuple[str, dict[str, tuple[str, str]], tuple[str, str]]
"""The prefix of a block, its convolutions with their norms, and the two layers of squeeze-and-excitation."""


def _torchvision_block(block: Block, number: int) -> Names:
    parts = ("expand", "depthwise", "squeeze", "project")[block.expanded == block.inputs :]
    place = {part: str(number) for number, part in enumerate(parts)}
    convs = {part: (f"{at}.0", f"{at}.1") for part, at in place.items() if part != "squeeze"}
    squeeze = place["squeeze"]
    return f"features.{block.stage}.{block.index}.block", convs, (f"{squeeze}.fc1", f"{squeeze}.fc2")


def _timm_block(block: Block, number: int) -> Names:
    convs = {"depthwise": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")}
    if block.expanded != block.inputs:
        convs = {"expand": ("conv_pw", "bn1"), "depthwise": ("conv_dw", "bn2"), "project": ("conv_pwl", "bn3")}
    return f"blocks.{block.stage - 1}.{block.index}", convs, ("se.conv_reduce", "se.conv_expand")


def _port_block(block: Block, number: int) -> Names:
    parts = {
        "expand": ("_expand_conv", "_bn0"),
        "depthwise": ("_depthwise_conv", "_bn1"),
        "project": ("_project_conv", "_bn2"),
    }
    return f"_blocks.{number}", parts, ("_se_reduce", "_se_expand")


_BLOCKS: dict[str, Callable[[Block, int], Names]] = {
    "torchvision": _torchvision_block,
    "timm": _timm_block,
    "efficientnet_pytorch": _port_block,
}

FORMATS = tuple(_BLOCKS)
