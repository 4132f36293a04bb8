"""What a library can build of a detector, and the checks of an export that is made for it.

Each library has a function (settings, params, ...) -> Renamed. A detector that the library cannot build is refused. The
tensors are read back by the rules of an import, which must give the same parameters and settings.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from elk_jax.backbones.norms import BATCH_NORM
from elk_jax.errors import UserError
from elk_jax.weights import convert, model_folder
from elk_jax.weights.detectors import Converted
from elk_jax.weights.reading import Tensors

BATCH_NORMS = ("frozen_bn", "affine_bn", BATCH_NORM)
"""Norms that are the same layer except in training."""
Choices = Mapping[str, Collection[Any] | None]
"""Setting -> the values that a library supports; None: all."""


@dataclass(frozen=True)
class Renamed:
    """tensors: the state dict. about: JSON values from which the library builds the model, with its own argument names
    if it has them."""

    tensors: Tensors
    about: dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """What a library can build of one kind of detector.

    arguments: setting -> the library's name, for settings passed unchanged. trained: settings that matter only in
    training, and are not written. choices: for further settings; those in no list must be the library's own.
    """

    arguments: Mapping[str, str]
    trained: tuple[str, ...]
    choices: Choices

    def free(self) -> Choices:
        """Choices for all settings that may differ from the library's own."""
        return {**dict.fromkeys((*self.arguments, *self.trained)), **self.choices}


def refuse_others(config: Any, theirs: Any, choices: Choices, section: str, library: str, where: object) -> None:
    """UserError with the settings of `config` that the library does not support. theirs: its own settings."""
    other = {}
    for name, value in vars(config).items():
        allowed = choices.get(name, (getattr(theirs, name, None),))
        if name != "backbone" and allowed is not None and value not in allowed:
            own = getattr(theirs, name, None)
            other[name] = (value, own if own in allowed else next(iter(allowed)))
        if name in other and name == "name":
            break  # another kind has other settings
    if other:
        said = ", ".join(f"{section}{name}={value}" for name, (value, _) in other.items())
        wanted = ", ".join(f"{section}{name}={value}" for name, (_, value) in other.items())
        first = f"{where}: model.{section}{next(iter(other))}"
        raise UserError(f"{library} has no detector with {said}", where=first, todo=f"train one with {wanted}")


def alike(one: Any, other: Any) -> bool:
    """Whether two values of a setting give the same detections."""
    return one == other or (one in BATCH_NORMS and other in BATCH_NORMS)


def check_same(again: Converted, config: Any, params: model_folder.Params, where: object) -> None:
    """UserError unless an import of the output gives the settings and parameters that were exported."""
    ours, theirs = model_folder.flatten(params), model_folder.flatten(again.params)
    same = ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)
    if again.model != config or not same:
        differ = [name for name, value in vars(config).items() if getattr(again.model, name) != value]
        what = f"the tensors would be read as a different model ({', '.join(differ) or 'its parameters'} differ)"
        raise UserError(what, where=where, todo="export the model in another format")


def not_in(foreign: convert.Foreign, config: Any) -> dict[str, Any]:
    """The settings that do not follow from names and shapes: `changes` for `convert_foreign`."""
    norms = [name for name in foreign.settings if name.endswith("_norm")]
    unclear = {name for name in norms if alike(foreign.settings[name], getattr(config, name))}
    if config.background == "none":
        unclear.add("num_classes")  # an import takes the first output as the background
    network = {name: value for name, value in vars(config.backbone).items() if name not in foreign.resnet}
    outside = {name: value for name, value in vars(config).items() if name not in foreign.settings or name in unclear}
    return {**outside, "backbone": {**network, "norm": config.backbone.norm}}
