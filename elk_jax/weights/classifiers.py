"""Import of public classifier weights into a model folder: read, converted and checked against the model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from rich.table import Table

from elk_jax import fields, files
from elk_jax.backbones.networks import NETWORKS, kinds
from elk_jax.detection.detectors import in_present_form
from elk_jax.errors import UserError
from elk_jax.fields import ByName
from elk_jax.output import Console
from elk_jax.weights import convert, efficientnet, model_folder, reading, resnet, swin

READERS = {"efficientnet": efficientnet.understand, "swin": swin.understand, "resnet": resnet.understand}
"""Readers by the word that occurs in the names of a kind of network in all libraries."""


TRAINED = "classifier"
"""The architecture of networks trained with elk_jax."""


@dataclass(frozen=True)
class Origin:
    """The file of an import. format: the library whose names and conventions it uses."""

    format: str
    file: str
    sha256: str


@dataclass(frozen=True)
class ImportedClassifier:
    """The content of `model.json` of an import. A network without a classifier has no classes."""

    architecture: str
    model: Annotated[Any, ByName(kinds)]
    source: Origin


class Classifier(NamedTuple):
    """A classifier's weights: params (nested) and the model that they fit."""

    params: model_folder.Params
    model: Any
    name_map: convert.NameMap


def convert_tensors(
    tensors: reading.Tensors,
    file_format: str,
    name: str,
    changes: Mapping[str, Any] | None = None,
    ignore: Sequence[str] = (),
) -> Classifier:
    """The parameters of the model called `name` in the library `file_format`, from its tensors.

    changes: settings of the model that override the library's. ignore: see `convert.convert`. UserError unless file and
    model agree in every tensor.
    """
    kind = next((kind for kind in READERS if kind in name), None)
    if kind is None:
        todo = f"use the library's name of a {' or '.join(READERS)}"
        raise UserError(f"'{name}' is not a supported kind of classifier", where="--model", todo=todo)
    return _converted(READERS[kind](convert.strip_wrappers(tensors, ignore), file_format, name, changes or {}), ignore)


def convert_resnet(
    foreign: convert.Foreign, changes: Mapping[str, Any] | None = None, ignore: Sequence[str] = ()
) -> Classifier:
    """The same for a ResNet whose depth and widths follow from the tensors."""
    return _converted(resnet.of(foreign, changes or {}), ignore)


def _converted(found: convert.Understood, ignore: Sequence[str]) -> Classifier:
    convert.check_used(ignore, found.tensors, "--ignore")
    params, name_map = convert.convert(found.tensors, found.format, shapes(found.model), ignore=ignore)
    return Classifier(params, found.model, name_map)


def import_file(
    path: str | os.PathLike,
    file_format: str,
    name: str,
    output: str | os.PathLike,
    *,
    changes: Mapping[str, Any] | None = None,
    ignore: Sequence[str] = (),
    console: Console | None = None,
    names: bool = False,
) -> Classifier:
    """Read `path`, print a summary (with the name map if `names`), and write the model folder `output`.

    Nothing is written on error.
    """
    console = console or Console()
    imported = convert_tensors(reading.read_tensors(path), file_format, name, changes, ignore)
    origin = Origin(file_format, Path(path).name, files.sha256(path))
    write(imported, f"{name} of {file_format}", origin, output, console, names)
    return imported


def write(
    imported: Classifier, title: str, origin: Origin, output: str | os.PathLike, console: Console, names: bool
) -> None:
    """Print a summary (with the name map if `names`), and write the model folder `output`."""
    folder = files.make_folder(output)
    model, rows = imported.model, imported.name_map.rows
    count = sum(int(np.size(leaf)) for leaf in model_folder.flatten(imported.params).values())
    pixels = [f"{name} {_digits(value)}" for name, value in vars(model).items() if name.startswith("pixel_")]
    if names:
        console.print(name_table(imported.name_map))
    say(
        console,
        f"{title}, {model.num_classes} classes, published for {model.image_size} px",
        f"input: {', '.join(pixels)}",
        f"{count:,} parameters in {len(rows)} tensors; ignored {len(imported.name_map.ignored)}; "
        "none unused or missing",
    )
    model_folder.save_params(folder, imported.params, ImportedClassifier(model.name, model, origin))
    say(console, f"wrote {folder / model_folder.PARAMS} and {model_folder.CONFIG}")


def load(folder: str | os.PathLike) -> tuple[Any, model_folder.Params]:
    """The model and the parameters of an imported classifier. UserError for any other folder."""
    params, content = model_folder.load_params(folder)
    if content.architecture not in NETWORKS:
        todo = "give a folder written by launch/import_weights.py --model=..."
        raise UserError(f"weights of '{content.architecture}', not of a classifier", where=folder, todo=todo)
    model = stored(content).model
    model_folder.check_fits(params, shapes(model), folder)
    return model, params


def stored(content: model_folder.Content) -> ImportedClassifier:
    """The description in the folder of an imported network. UserError as in `Content.build`."""
    entries: dict[str, Any] = dict(content.entries)
    before = entries.get("model")
    if "absent" in entries and isinstance(before, Mapping) and "backbone" not in before:
        # a ResNet that an earlier version described as a detector without its heads
        kept = {name: entries[name] for name in ("architecture", "source") if name in entries}
        entries = kept | {"model": in_present_form(before).get("backbone")}
    return replace(content, entries=entries).build(ImportedClassifier)


def network_of(content: model_folder.Content) -> Any:
    """The settings of the network in a model folder, imported or trained; None for any other folder."""
    if content.architecture in NETWORKS:
        return stored(content).model
    if content.architecture != TRAINED:
        return None
    where = f"{content.file}: model"
    settings = fields.as_dict(content.entries.get("model"), where)
    return fields.build_named(kinds(), settings, where, complete=content.whole)


def name_table(name_map: convert.NameMap) -> Table:
    """A table of foreign name and shape, our path and shape, and layout: one row per tensor."""
    table = Table(header_style="bold")
    for title in ("in the file", "shape", "here", "shape", "layout"):
        table.add_column(title, overflow="fold")
    for row in name_map.rows:
        theirs, ours = ("x".join(map(str, shape)) or "1" for shape in (row.foreign_shape, row.shape))
        table.add_row(row.foreign, theirs, row.path, ours, row.layout if row.layout != "as_is" else "")
    for path, value in name_map.filled:
        table.add_row("(not in the file)", "", path, "", f"constant {value:g}")
    for path in name_map.dropped:
        table.add_row("(dropped)", "", path, "", "re-initialised in training")
    for name in name_map.ignored:
        table.add_row(name, "", "(ignored)", "", "")
    return table


def say(console: Console, *lines: str) -> None:
    """Print lines literally."""
    for line in lines:
        console.print(line, soft_wrap=True)


def _digits(value: float | Sequence[float]) -> str:
    if isinstance(value, Sequence):
        return f"({', '.join(f'{one:.4g}' for one in value)})"
    return f"{value:g}"


@lru_cache(maxsize=32)
def shapes(model: Any) -> Mapping[str, tuple[int, ...]]:
    """Path -> shape of every parameter of a network; traced once per settings."""
    return model_folder.shapes_of(partial(NETWORKS[model.name].init, model))
