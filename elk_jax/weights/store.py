"""Our own model folder: `params.safetensors` (flat names a/b/c, float32) beside `model.json` (what they are for)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from elk_jax import files
from elk_jax.errors import UserError

PARAMS, CONFIG = "params.safetensors", "model.json"


def save_params(folder: str | os.PathLike, params: Any, config: Mapping[str, Any]) -> None:
    """Write a model folder: nested dict of arrays, and JSON-able facts about them. model.json is written last."""
    folder = files.make_folder(folder)
    flat = {name: np.ascontiguousarray(value) for name, value in flatten_dict(params, sep="/").items()}
    files.write_bytes(folder / PARAMS, save(flat))
    files.write_json(folder / CONFIG, dict(config))


def load_params(folder: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a model folder as (nested dict of arrays, config). Raises UserError when it is none or is damaged."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or not (folder / PARAMS).is_file():
        raise UserError(
            "no model here",
            where=folder,
            todo=f"name a folder with {PARAMS} and {CONFIG}: RUN/STAGE/model, or what launch/import_weights.py wrote",
        )
    config = files.read_json(folder / CONFIG)
    try:
        return unflatten_dict(load_file(folder / PARAMS), sep="/"), config
    except SafetensorError as error:
        raise UserError(f"damaged weights: {error}", where=folder / PARAMS, todo="make the model again") from error


def restore_into(template: Any, loaded: Any, drop: Sequence[str] = ()) -> Any:
    """The tree of `template` with the values of `loaded`.

    drop: regular expressions of parameters that keep the template's value where `loaded` has another shape or none.
    Raises UserError, naming tensors and shapes, for anything else that is missing, left over or of another shape.
    """
    wanted, given = flatten_dict(template, sep="/"), flatten_dict(loaded, sep="/")
    problems = [f"{name} is left over" for name in given if name not in wanted]
    result = {}
    for name, value in wanted.items():
        fits = name in given and given[name].shape == value.shape
        if not fits and not any(re.search(pattern, name) for pattern in drop):
            have = f"has shape {tuple(given[name].shape)} and not" if name in given else "is missing, of shape"
            problems.append(f"{name} {have} {tuple(value.shape)}")
        result[name] = np.asarray(given[name], value.dtype) if fits else value
    if problems:
        raise UserError(
            f"the weights do not fit the model: {'; '.join(problems[:3])}"
            + (f" and {len(problems) - 3} more" if len(problems) > 3 else ""),
            todo="use the settings of the model that the weights come from (its model.json)",
        )
    return unflatten_dict(result, sep="/")
