"""Normalisation of images for weights of timm, by the tag after a model's name, as in resnet50.a1_in1k."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from elk_jax.backbones.pixels import IMAGENET_MEAN, IMAGENET_STD
from elk_jax.errors import UserError

HALF = (0.5, 0.5, 0.5)
_PIXELS = {"half": (HALF, HALF), "imagenet": (IMAGENET_MEAN, IMAGENET_STD)}

Tags = Mapping[Literal["half", "imagenet"], str]
"""Mean and spread of the images -> a regular expression for the tags of such weights."""


def pixels(tag: str | None, tags: Tags, example: str) -> dict[str, Any]:
    """`pixel_mean` and `pixel_std` of a network. UserError for a tag that is not in `tags`. example: a complete
    name."""
    for kind, pattern in tags.items():
        if tag and re.fullmatch(pattern, tag):
            mean, std = _PIXELS[kind]
            return {"pixel_mean": mean, "pixel_std": std}
    what = f"the model's name has the unknown tag '{tag}'" if tag else "the model's name has no tag"
    todo = f"give it as in {example}: the tag determines the normalisation of images"
    raise UserError(what, where="--model", todo=todo)
