"""Public weights of image classifiers as a model folder: read, converted and checked against the model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from elk_jax import files
from elk_jax.backbones.networks import NETWORKS, kinds
from elk_jax.errors import UserError
from elk_jax.fields import ByName
from elk_jax.output import Console
from elk_jax.weights import convert, efficientnet, model_folder, reading, swin
from elk_jax.weights.detectors import Origin, name_table, say

READERS = {"efficientnet": efficientnet.understand, "swin": swin.understand}
"""By the word that stands in the names of a kind of network, in all libraries."""


@dataclass(frozen=True)
class ImportedClassifier:
    """The content of `model.json` of an import."""

    architecture: str
    model: Annotated[Any, ByName(kinds)]
    source: Origin


class Classifier(NamedTuple):
    """A classifier's weights: params (nested) and the model they fit."""

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

    changes: settings of the model, over the library's. ignore: see `convert.convert`. UserError where file and model do
    not agree in every tensor.
    """
    kind = next((kind for kind in READERS if kind in name), None)
    if kind is None:
        todo = f"name it as the library does; there are {' and '.join(READERS)}"
        raise UserError(f"'{name}' is not a kind of classifier that is read here", where="--model", todo=todo)
    tensors, model, names = READERS[kind](convert.strip_wrappers(tensors), file_format, name, changes or {})
    convert.check_used(ignore, tensors, "--ignore")
    params, name_map = convert.convert(tensors, names, _shapes(model), ignore=ignore)
    return Classifier(params, model, name_map)


def import_file(
    path: str | os.PathLike,
    file_format: str,
    name: str,
    output: str | os.PathLike,
    *,
    changes: Mapping[str, Any] | None = None,
    ignore: Sequence[str] = (),
    console: Console | None = None,
) -> Classifier:
    """Read `path`, print the name map on `console` and write the model folder `output`. Nothing is written on error."""
    console = console or Console()
    imported = convert_tensors(reading.read_tensors(path), file_format, name, changes, ignore)
    folder = files.make_folder(output)
    model, rows = imported.model, imported.name_map.rows
    count = sum(int(np.size(leaf)) for leaf in model_folder.flatten(imported.params).values())
    console.print(name_table(imported.name_map))
    say(
        console,
        f"{name} of {file_format}, {model.num_classes} classes, published for {model.image_size} px",
        f"input (image - {_digits(model.pixel_mean)}) / {_digits(model.pixel_std)}, for red, green, blue in [0, 1]",
        f"{count:,} parameters in {len(rows)} tensors; ignored {len(imported.name_map.ignored)}; "
        "nothing left over or missing",
    )
    origin = Origin(file_format, Path(path).name, files.sha256(path))
    model_folder.save_params(folder, imported.params, ImportedClassifier(model.name, model, origin))
    say(console, f"wrote {folder / model_folder.PARAMS} and {model_folder.CONFIG}")
    return imported


def load(folder: str | os.PathLike) -> tuple[Any, model_folder.Params]:
    """The model and the parameters of an imported classifier. UserError for any other folder."""
    params, content = model_folder.load_params(folder)
    if content.architecture not in NETWORKS:
        todo = "name a folder of launch/import_weights.py --model=..."
        raise UserError(f"the weights are of '{content.architecture}', not a classifier's", where=folder, todo=todo)
    model = content.build(ImportedClassifier).model
    model_folder.check_fits(params, _shapes(model), folder)
    return model, params


def _digits(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:.4g}' for value in values)})"


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return model_folder.shapes_of(partial(NETWORKS[model.name].init, model))
