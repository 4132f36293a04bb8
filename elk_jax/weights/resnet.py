"""ResNets as classifiers, with the names of torchvision, timm, detectron2 and Caffe2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from elk_jax import fields
from elk_jax.backbones import resnet
from elk_jax.backbones.resnet import ResNetConfig
from elk_jax.errors import UserError
from elk_jax.weights import detectron2, timm, torchvision
from elk_jax.weights.convert import Foreign, Understood, pixels_of, sizes
from elk_jax.weights.reading import Tensors

NAMES = r"resnet(\d+)(?:\.(\w+))?"
"""Names in torchvision, and in timm with the tag of the weights. timm's other ResNets have a different stem."""
_TAGS: timm.Tags = {
    "half": r"ra4_\w+",
    "imagenet": r"(a1h?|a2|a3|b1k|b2k|c1|c2|d|am|ra|ram|bt|tv2?|gluon|fb_(ssl_yfcc100m|swsl_ig1b)_ft)_in1k|bamboo",
}


def foreign(tensors: Tensors, file_format: str, norm_eps: float | None = None) -> Foreign:
    """Recognise `tensors` as a ResNet or a detector with one, with the names of "detectron2" or "torchvision".

    norm_eps: see `torchvision.interpret`.
    """
    if file_format == "torchvision":
        return torchvision.interpret(tensors, norm_eps=torchvision.EPS if norm_eps is None else norm_eps)
    if norm_eps is not None:
        raise UserError("--norm_eps applies only to the torchvision format", todo="leave it out")
    return detectron2.interpret(tensors)


def understand(tensors: Tensors, file_format: str, name: str, changes: Mapping[str, Any]) -> Understood:
    """The model of a file: `name` in the library `file_format`, with `changes`. UserError for others."""
    match = re.fullmatch(NAMES, name)
    if match is None or file_format not in ("torchvision", "timm") or (file_format == "torchvision" and match[2]):
        todo = "give resnet50 of torchvision, resnet50.a1_in1k of timm, or leave --model out for detectron2"
        raise UserError(f"'{name}' is not a supported ResNet of {file_format}", where="--model", todo=todo)
    found = foreign(tensors, "torchvision")
    pixels = {}
    if file_format == "timm":
        tagged = timm.pixels(match[2], _TAGS, "resnet50.a1_in1k")
        pixels = pixels_of(_channels(found), tagged["pixel_mean"], tagged["pixel_std"])
    return of(found, {"depth": int(match[1]), **pixels, **changes})


def of(found: Foreign, changes: Mapping[str, Any]) -> Understood:
    """The network of a file without a detector. changes: fields of ResNetConfig that override inferred ones."""
    model = fields.build(ResNetConfig, {**settings(found), **changes}, "model")
    return Understood(found.tensors, model, found.format)


def settings(found: Foreign) -> dict[str, Any]:
    """The fields of ResNetConfig according to the conventions of a file."""
    preset = resnet.detectron2() if found.preset == "detectron2" else ResNetConfig()
    pixels = pixels_of(_channels(found), preset.pixel_mean, preset.pixel_std)
    return {**asdict(preset), **pixels, **found.resnet}


def _channels(found: Foreign) -> int:
    """Channels of the images that the network of a file reads."""
    stem = f"{detectron2.BODY}stem.conv1.weight" if found.preset == "detectron2" else f"{torchvision.BODY}conv1.weight"
    return sizes(found.tensors, stem, 4)[1]
