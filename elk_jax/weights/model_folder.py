"""A model on disk: a folder with `params.safetensors` (flat a/b/c names, float32) and `model.json`.

An import writes one, a training leaves one, and `init_from` of a training stage reads one. `model.json` names the
`architecture`; the modules of that architecture own its other entries.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from elk_jax import files
from elk_jax.errors import UserError
from elk_jax.weights.reading import read_safetensors

PARAMS = "params.safetensors"
CONFIG = "model.json"

Params = Any
"""A nested dict of arrays."""


def save_params(folder: str | os.PathLike, params: Params, config: Mapping[str, Any]) -> None:
    """Write `params` (nested dict of arrays, kept as float32) and `config` (plain JSON values) into `folder`.

    Both files are written atomically, model.json last: a folder that has one is whole. Raises UserError when the
    folder cannot be written or the disk is full.
    """
    folder = files.make_folder(folder)
    flat = {name: np.array(leaf, np.float32, order="C") for name, leaf in flatten(params).items()}
    (folder / CONFIG).unlink(missing_ok=True)
    files.write_bytes(folder / PARAMS, safetensors.numpy.save(flat))
    files.write_json(folder / CONFIG, config)


def load_params(folder: str | os.PathLike) -> tuple[Params, dict[str, Any]]:
    """(params, config) as `save_params` wrote them. UserError for any other folder."""
    folder = Path(folder)
    config = _config(folder)
    if not (folder / PARAMS).is_file():
        raise no_model(folder)
    return nest(read_safetensors(folder / PARAMS)), config


def architecture_of(folder: str | os.PathLike) -> str:
    """The architecture that a model folder names; "" where it names none. UserError for any other folder."""
    return str(_config(Path(folder)).get("architecture", ""))


def kept_step(folder: Path, otherwise: int) -> int:
    """The training step, the last or the best, whose weights a model folder holds; `otherwise` without a folder."""
    return int(_trained(folder).get("step", otherwise))


def find(workdir: Path, stage: str | None, architectures: Collection[str], called: str) -> Path:
    """The model folder that a user means: `workdir` itself, or that of a stage of a run folder.

    stage: of the run; None: the last one that trained one of the `architectures`. called: such a model, in words.
    UserError where there is none.
    """
    for folder in (workdir, workdir / "model"):
        if (folder / CONFIG).is_file():
            if stage is not None:
                raise UserError(f"a model folder has no stage '{stage}'", where=folder, todo="leave --stage out")
            return folder
    config = files.read_json(workdir / "config.json") if (workdir / "config.json").is_file() else None
    stages = config.get("stages") if isinstance(config, dict) else None
    if not isinstance(stages, dict):
        todo = "train first: see launch/train.py"
        raise UserError("neither a run folder nor a model folder", where=workdir, todo=todo)
    folders = {name: workdir / name / "model" for name in stages}
    trained = [n for n, f in folders.items() if (f / CONFIG).is_file() and architecture_of(f) in architectures]
    if not trained:
        raise UserError(f"no stage of this run has trained {called}", where=workdir, todo="start launch/train.py again")
    if stage is not None and stage not in trained:
        todo = f"choose one of {', '.join(trained)}"
        raise UserError(f"stage '{stage}' has not trained {called}", where=workdir, todo=todo)
    return folders[stage or trained[-1]]


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        raise no_model(folder)
    config = files.read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise UserError("not the description of a model", where=folder / CONFIG, todo="write the folder again")
    return config


def no_model(folder: Path) -> UserError:
    """For a folder that is not a model folder."""
    return UserError(
        "no model here",
        where=folder,
        todo=f"name a folder with {PARAMS} and {CONFIG}: RUN/STAGE/model, or what launch/import_weights.py wrote",
    )


def restore_into(template: Params, loaded: Params, drop: Sequence[str] = (), where: object = "") -> Params:
    """`template` with its leaves replaced by those of `loaded` of the same name, in the template's types.

    drop: regular expressions (re.search on a/b/c names). Parameters that match keep the template's fresh values
    where `loaded` has none of the same shape (another number of classes, a backbone without a detector), and may
    be left over in `loaded`. All others must agree: a name that is missing or left over, or another shape, is a
    UserError with names and shapes. where: the folder of `loaded`, for that error.
    """
    wanted, given = flatten(template), flatten(loaded)
    patterns = compile_patterns(drop, "drop")
    required = [name for name in wanted if not matches(patterns, name)]
    shapes = {name: tuple(np.shape(leaf)) for name, leaf in given.items()}
    needed = {name: tuple(wanted[name].shape) for name in required}
    missing = [f"{name} {shape}" for name, shape in needed.items() if name not in given]
    left_over = [f"{n} {shapes[n]}" for n in given if n not in wanted and not matches(patterns, n)]
    other = [
        f"{name} is {shapes[name]} in the weights and {shape} in the model"
        for name, shape in needed.items()
        if shapes.get(name, shape) != shape
    ]
    differences = ("the weights lack", missing), ("the model has no place for", left_over), ("shapes differ:", other)
    for what, names in differences:
        if names:
            todo = (
                "start from weights of the same architecture, or set the recipe's `model` "
                f"(--config.RECIPE.model.KEY=VALUE) to the values in {CONFIG} of the weights"
            )
            raise UserError(f"{what} {first_few(names)}", where=where, todo=todo)
    matching = {name: shapes.get(name) == tuple(leaf.shape) for name, leaf in wanted.items()}
    return nest({n: np.asarray(given[n], leaf.dtype) if matching[n] else leaf for n, leaf in wanted.items()})


def check_same(before: Any, now: Any, fields: Collection[str], where: Path, recipe: str) -> None:
    """UserError for the first of `fields` that a training would change in the model whose weights it starts from.

    before, now: the settings of the model of the weights and of the recipe, dataclasses; a field that only one of them
    has is not compared. where: the folder of the weights. The error lists all settings to change, of the recipe's name.
    """
    old, new = (flatten(dataclasses.asdict(model)) for model in (before, now))
    differing = [key for key in new if key in old and key.split("/")[0] in fields and old[key] != new[key]]
    if differing:
        named = {key: key.replace("/", ".") for key in differing}
        settings = [f"--config.{recipe}.model.{named[key]}={shlex.quote(str(old[key]))}" for key in differing]
        first = differing[0]
        what = f"the weights were trained with {named[first]} {old[first]!r}, the recipe has {new[first]!r}"
        raise UserError(what, where=where, todo=f"set {' '.join(settings)}")


def flatten(params: Params) -> dict[str, Any]:
    """Nested dict -> {'a/b/c': leaf}, in the order of the dict."""
    return dict(_leaves("", params))


def _leaves(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, Mapping):
        yield prefix, node
        return
    for name, child in node.items():
        yield from _leaves(f"{prefix}/{name}" if prefix else str(name), child)


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{'a/b/c': leaf} -> nested dict."""
    nested: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return nested


def compile_patterns(patterns: Sequence[str], where: str) -> list[re.Pattern]:
    """Regular expressions from the user's setting `where`; a broken one is a UserError."""
    try:
        return [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        what = f"not a regular expression: {error.pattern!r}, {error}"
        raise UserError(what, where=where, todo="repair it") from error


def matches(patterns: Sequence[re.Pattern], name: str) -> bool:
    """Whether any of the patterns is found in `name`."""
    return any(pattern.search(name) for pattern in patterns)


def first_few(items: Sequence[str], most: int = 4) -> str:
    """'a, b, c, d and 7 more'."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def seen_patients(folder: Path) -> frozenset[str]:
    """Hashes (`data.sources.patients`) of all patients that a model was trained on; none of one that keeps none."""
    return frozenset(_trained(folder).get("patients", ()))


def _trained(folder: Path) -> Mapping[str, Any]:
    trained = _config(folder).get("trained") if (folder / CONFIG).is_file() else None
    return trained if isinstance(trained, Mapping) else {}
