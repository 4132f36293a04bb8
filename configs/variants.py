"""The variants of the experiments, and their common frame. An experiment file overrides only what differs.

Variants (the text after the colon of --config=configs/NAME.py:VARIANT; several are joined by commas):
  quick     default: ResNet-18-FPN with GroupNorm, from scratch on the embedded data: minutes on 2 CPU cores. A Faster
            R-CNN has a quarter of the width and images of 128 px; other detectors half of it and 256 px
  tiny      seconds, for tests
  small     ResNet-18-FPN at 384 px for a few hundred real images: about half an hour on 2 CPU cores
  paper     the published recipe: ResNet-101-FPN, frozen batch norm, SGD, 800 x 1333; for a GPU and imported weights
  fewshot   only the lesions of a few training patients (ELK: 26 patients, 104 lesions), drawn by the seed. With data
            that have their own subset, such as ELK's, which data_prep marks, use paper without fewshot, and
            --config.data.real.train_where=fewshot=true
  half      a ResNet-50 of half the width, to start from weights of such a network (data_prep/public_weights.py):
            faster than a ResNet-18 on a CPU
  lite0     an EfficientNet-Lite0, to start from public weights (data_prep/public_weights.py)
  lite1     EfficientNet-Lite1, larger; lite2: larger still
  swin      a Swin-T, to start from public weights as well
  thorough  images with small lesions more often, stronger changes of the grey values, tests at three sizes of the
            input, each mirrored too; small: at 512 px. With small,half, it found most in cross-validation
            (docs/results/cem.md#several-sizes-in-testing)
  retinanet a RetinaNet instead of the Faster R-CNN
  efficientdet  an EfficientDet instead of it; paper: D0
  medium    only painted lesions of the middle half of the real sizes (ELK's medium area)
  double    two painted lesions for each real one (ELK's 200 %)
  private   the training data are protected by differential privacy (elk_jax/privacy/settings.py)
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from ml_collections import ConfigDict, FieldReference

SIZES = ("quick", "tiny", "small", "paper")
BACKBONES = ("half", "lite0", "lite1", "lite2", "swin")
KINDS = ("retinanet", "efficientdet")
"""Detectors besides the Faster R-CNN."""
DETECTORS = (*KINDS, *BACKBONES, "thorough")
"""Words that change the recipe of a detector."""
RIVALS = (KINDS, BACKBONES)
"""Groups of words; a variant has at most one of each."""
DETECTOR_EXTRAS = ("fewshot", *DETECTORS)
PAINTING_EXTRAS = ("fewshot", "medium", "double")


def parse(
    variant: str | None,
    extras: tuple[str, ...] = DETECTOR_EXTRAS,
    sizes: tuple[str, ...] = SIZES,
    rivals: tuple[tuple[str, ...], ...] = RIVALS,
) -> tuple[str, frozenset[str]]:
    """'paper,fewshot' -> ('paper', {'fewshot'}). extras, sizes: those of the experiment. rivals: groups of words that
    exclude each other.

    Raises ValueError for an unknown word, and for two that exclude each other.
    """
    words = [word for word in (variant or "quick").split(",") if word]
    known = (*sizes, *extras)
    unknown = [word for word in words if word not in known]
    if unknown:
        raise ValueError(f"no variant '{unknown[0]}'; choose from {', '.join(known)}")
    chosen = [word for word in words if word in sizes] or ["quick"]
    for found in (chosen, *([word for word in words if word in group] for group in rivals)):
        if len(found) > 1:
            raise ValueError(f"'{found[0]}' and '{found[1]}' exclude each other")
    return chosen[0], frozenset(words) & frozenset(extras)


def experiment(name: str, **parts: Any) -> ConfigDict:
    """The frame of every experiment; `parts` are its data, recipes and stages, kept in the order given.

    Recipes and stages are dicts or dataclasses; a field that is a dataclass becomes a section.
    """
    return _sections({"name": name, "seed": 42, "mesh": {"data": -1, "fsdp": 1}, **parts})


def settings(dataclass: Any) -> dict[str, Any]:
    """The fields of a recipe as nested dicts, for `merge`. Fields of several types take any literal."""
    hints = typing.get_type_hints(type(dataclass))
    values = {field.name: getattr(dataclass, field.name) for field in dataclasses.fields(dataclass)}
    return {name: _setting(value, hints[name]) for name, value in values.items()}


def _setting(value: Any, hint: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return settings(value)
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return FieldReference(value, field_type=object) if union else value


def merge(recipe: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Change a nested dict in place and return it; a section with another kind (`name`) replaces the old one."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(recipe.get(key), dict) and "name" not in value:
            merge(recipe[key], value)
        elif isinstance(recipe.get(key), FieldReference) and not isinstance(value, FieldReference):
            recipe[key].set(value)
        else:
            recipe[key] = value
    return recipe


def _sections(value: Any) -> Any:
    """Nested dicts and dataclasses as ConfigDicts that keep their order. A stage's name is its key."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {key: child for key, child in settings(value).items() if (key, child) != ("name", "")}
    if not isinstance(value, dict):
        return value
    return ConfigDict({key: _sections(child) for key, child in value.items()}, sort_keys=False)
