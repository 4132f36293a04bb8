"""Import of detectors of other libraries into a model folder: read, converted, checked against the model, explained."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from elk_jax import fields, files
from elk_jax.detection import detectors, faster_rcnn, retinanet
from elk_jax.detection.detectors import kinds
from elk_jax.errors import UserError
from elk_jax.fields import ByName
from elk_jax.output import Console
from elk_jax.weights import classifiers, convert, effdet, model_folder, reading, resnet
from elk_jax.weights.classifiers import Origin, name_table, say

PRESETS: dict[str, Callable[[], Any]] = {
    "detectron2": faster_rcnn.detectron2,
    "torchvision": faster_rcnn.torchvision,
    "torchvision_v2": faster_rcnn.torchvision_v2,
    "retinanet": retinanet.torchvision,
    "retinanet_v2": retinanet.torchvision_v2,
}
"""Configurations by the conventions of a file (`Foreign.preset`)."""


@dataclasses.dataclass(frozen=True)
class Imported:
    """The content of `model.json` of an import. absent: as in `Converted`."""

    architecture: str
    model: Annotated[Any, ByName(kinds)]
    classes: tuple[str, ...]
    absent: tuple[str, ...]
    source: Origin


@dataclasses.dataclass(frozen=True)
class Converted:
    """Converted weights: params (nested), the model that they fit, and the use of every tensor.

    absent: regular expressions of parameters that are not in `params` and are freshly initialised in training.
    """

    params: model_folder.Params
    model: Any
    name_map: convert.NameMap
    absent: tuple[str, ...]


def convert_foreign(
    foreign: convert.Foreign,
    changes: Mapping[str, Any] | None = None,
    drop: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> Converted:
    """The parameters of the detector in `foreign`. changes: settings of the detector that override inferred ones; those
    of its backbone are a section.

    drop, ignore: see `convert.convert`. Raises UserError unless file and model agree in every tensor.
    """
    preset, changes = PRESETS[foreign.preset](), changes or {}
    backbone = resnet.settings(foreign) | fields.as_dict(changes.get("backbone", {}), "model.backbone")
    settings = {**dataclasses.asdict(preset), **foreign.settings, **changes, "backbone": backbone}
    model = fields.build(type(preset), settings, "model")
    return convert_understood(convert.Understood(foreign.tensors, model, foreign.format), drop, ignore)


def convert_understood(found: convert.Understood, drop: Sequence[str] = (), ignore: Sequence[str] = ()) -> Converted:
    """The parameters of a detector whose model is known. drop, ignore, errors: as in `convert_foreign`."""
    shapes = parameter_shapes(found.model)
    convert.check_used(drop, shapes, "--drop")
    convert.check_used(ignore, found.tensors, "--ignore")
    params, name_map = convert.convert(found.tensors, found.format, shapes, drop, ignore)
    return Converted(params, found.model, name_map, tuple(drop))


def parameter_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter, without computing parameters."""
    return model_folder.shapes_of(detectors.build(model).init)


def import_file(
    path: str | os.PathLike,
    file_format: str,
    output: str | os.PathLike,
    *,
    changes: Mapping[str, Any] | None = None,
    classes: Sequence[str] = (),
    drop: Sequence[str] = (),
    ignore: Sequence[str] = (),
    norm_eps: float | None = None,
    console: Console | None = None,
    names: bool = False,
) -> Converted | classifiers.Classifier:
    """Read `path`, print a summary (with the name map if `names`), and write the model folder `output`.

    Nothing is written on error. A ResNet without a detector gives the folder of a network.
    """
    console = console or Console()
    foreign = resnet.foreign(convert.strip_wrappers(reading.read_tensors(path), ignore), file_format, norm_eps)
    origin = Origin(foreign.preset, Path(path).name, files.sha256(path))
    if foreign.backbone_only:
        for flag, given in (("--classes", classes), ("--drop", drop)):
            if given:
                raise UserError(f"{flag} applies to detectors, the file has none", where=flag, todo="leave it out")
        network = classifiers.convert_resnet(foreign, changes, ignore)
        title = f"ResNet-{network.model.depth}, conventions of {foreign.preset}"
        classifiers.write(network, title, origin, output, console, names)
        return network
    imported = convert_foreign(foreign, changes, drop, ignore)
    body = imported.model.backbone
    title = f"ResNet-{body.depth}, conventions of {foreign.preset}, norm {body.norm}"
    read = {*foreign.settings, *(f"backbone.{name}" for name in foreign.resnet)}
    _write(imported, title, origin, classes, output, console, names, read)
    frozen = "backbone.body.bn1.running_var" in foreign.tensors
    tracked = any(name.endswith("num_batches_tracked") for name in foreign.tensors)
    if foreign.preset in ("torchvision", "retinanet") and frozen and not tracked:
        note = "note: torchvision's published COCO_V1 detector was trained with norms of epsilon 0: --norm_eps=0"
        say(console, note)
    return imported


def import_effdet(
    path: str | os.PathLike,
    name: str,
    output: str | os.PathLike,
    *,
    changes: Mapping[str, Any] | None = None,
    classes: Sequence[str] = (),
    drop: Sequence[str] = (),
    ignore: Sequence[str] = (),
    console: Console | None = None,
    names: bool = False,
) -> Converted:
    """The same for an EfficientDet, called `name` in effdet."""
    console = console or Console()
    found = effdet.understand(reading.read_tensors(path), name, changes or {}, ignore=ignore)
    imported = convert_understood(found, drop, ignore)
    origin = Origin("effdet", Path(path).name, files.sha256(path))
    _write(imported, f"{name} of effdet, norm {imported.model.norm}", origin, classes, output, console, names)
    say(console, "note: effdet's anchors of ratios other than 1 are 1 % smaller; before training, boxes differ by this")
    return imported


def _assumed(model: Any, read: Collection[str]) -> str:
    """The settings, with values, that give the weights their meaning and are not among those `read` from the file."""
    names = ["backbone.pixel_mean", "backbone.pixel_std", "anchor_sizes", *detectors.build(model).conventions]
    shown = [name for name in dict.fromkeys(names) if name not in read]
    return ", ".join(f"{name}={attrgetter(name)(model)}" for name in shown)


def _write(
    imported: Converted,
    title: str,
    origin: Origin,
    classes: Sequence[str],
    output: str | os.PathLike,
    console: Console,
    names: bool,
    read: Collection[str] = (),
) -> None:
    """Print a summary and write the model folder. read: dotted names of the settings that the file shows."""
    model, name_map = imported.model, imported.name_map
    named = list(classes) or [f"class {i}" for i in range(model.num_classes)]
    if len(named) != model.num_classes:
        todo = "give a name for every class in the file, without background"
        raise UserError(f"{len(named)} names for {model.num_classes} classes", where="--classes", todo=todo)
    folder = files.make_folder(output)
    count = sum(int(np.size(leaf)) for leaf in model_folder.flatten(imported.params).values())
    if names:
        console.print(name_table(name_map))
    say(
        console,
        f"{model.name}, {model.num_classes} classes: {title}",
        f"{count:,} parameters in {len(name_map.rows)} tensors; ignored {len(name_map.ignored)}, "
        f"constant {len(name_map.filled)}, re-initialised {len(name_map.dropped)}; none unused or missing",
        f"not shown by the file: {_assumed(model, read)}; --set=NAME=JSON changes them",
    )
    description = Imported(model.name, model, tuple(named), imported.absent, origin)
    model_folder.save_params(folder, imported.params, description)
    say(console, f"wrote {folder / model_folder.PARAMS} and {model_folder.CONFIG}")
