"""Weights of other libraries as a model folder: read, converted, checked against the model and explained."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich.table import Table

from elk_jax import fields, files
from elk_jax.detection import faster_rcnn
from elk_jax.detection.detectors import kinds
from elk_jax.detection.faster_rcnn import FasterRCNNConfig
from elk_jax.errors import UserError
from elk_jax.fields import ByName
from elk_jax.output import Console
from elk_jax.weights import convert, detectron2, model_folder, reading, torchvision

ALL_BUT_BACKBONE = "^(?!backbone/)"

_PRESETS = {
    "detectron2": faster_rcnn.detectron2,
    "torchvision": faster_rcnn.torchvision,
    "torchvision_v2": faster_rcnn.torchvision_v2,
}


@dataclasses.dataclass(frozen=True)
class Origin:
    """The file of an import. format: whose names and conventions."""

    format: str
    file: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class Imported:
    """The content of `model.json` of an import. classes: () of a backbone; absent: as in `Converted`."""

    architecture: str
    model: Annotated[Any, ByName(kinds)]
    classes: tuple[str, ...]
    absent: tuple[str, ...]
    source: Origin


@dataclasses.dataclass(frozen=True)
class Converted:
    """Converted weights: params (nested), the model they fit, and what became of every tensor.

    absent: regular expressions of parameters that are not in `params` and start afresh in training.
    """

    params: model_folder.Params
    model: FasterRCNNConfig
    name_map: convert.NameMap
    absent: tuple[str, ...]


def understand(tensors: reading.Tensors, file_format: str, norm_eps: float | None = None) -> convert.Foreign:
    """What `tensors` are, in the names of "detectron2" or "torchvision". norm_eps: see `torchvision.interpret`."""
    if file_format == "torchvision":
        return torchvision.interpret(tensors, norm_eps=torchvision.EPS if norm_eps is None else norm_eps)
    if norm_eps is not None:
        raise UserError("--norm_eps is of the torchvision format", todo="leave it out")
    return detectron2.interpret(tensors)


def convert_foreign(
    foreign: convert.Foreign,
    changes: Mapping[str, Any] | None = None,
    drop: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> Converted:
    """The parameters of the model that `foreign` is of. `changes`: fields of FasterRCNNConfig, over what is inferred.

    drop, ignore: see `convert.convert`. Raises UserError when file and model do not agree in every tensor.
    """
    preset = dataclasses.asdict(_PRESETS[foreign.preset]())
    model = fields.build(FasterRCNNConfig, {**preset, **foreign.settings, **(changes or {})}, "model")
    shapes = parameter_shapes(model)
    if foreign.backbone_only:
        shapes = {path: shape for path, shape in shapes.items() if path.startswith("backbone/")}
    convert.check_used(drop, shapes, "--drop")
    convert.check_used(ignore, foreign.tensors, "--ignore")
    params, name_map = convert.convert(foreign.tensors, foreign.format, shapes, drop, ignore)
    rest = (ALL_BUT_BACKBONE,) if foreign.backbone_only else ()
    return Converted(params, model, name_map, (*rest, *drop))


def parameter_shapes(model: FasterRCNNConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter, without computing any."""
    return model_folder.shapes_of(faster_rcnn.detector(model).init)


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
) -> Converted:
    """Read `path`, print the name map on `console` and write the model folder `output`. Nothing is written on error."""
    console = console or Console()
    foreign = understand(reading.read_tensors(path), file_format, norm_eps)
    imported = convert_foreign(foreign, changes, drop, ignore)
    count = imported.model.num_classes
    names = list(classes) or [f"class {i}" for i in range(count)]
    if not foreign.backbone_only and len(names) != count:
        todo = "name every class of the file, without background"
        raise UserError(f"{len(names)} names for {count} classes", where="--classes", todo=todo)
    folder = files.make_folder(output)
    console.print(name_table(imported.name_map))
    say(console, *summary(foreign, imported))
    description = Imported(
        architecture="resnet" if foreign.backbone_only else imported.model.name,
        model=imported.model,
        classes=() if foreign.backbone_only else tuple(names),
        absent=imported.absent,
        source=Origin(foreign.preset, Path(path).name, files.sha256(path)),
    )
    model_folder.save_params(folder, imported.params, description)
    say(console, f"wrote {folder / model_folder.PARAMS} and {model_folder.CONFIG}")
    return imported


def say(console: Console, *lines: str) -> None:
    """Print lines as they are."""
    for line in lines:
        console.print(line, soft_wrap=True)


def name_table(name_map: convert.NameMap) -> Table:
    """Foreign name and shape, our path and shape, layout: one row per tensor."""
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


def summary(foreign: convert.Foreign, imported: Converted) -> list[str]:
    """Lines on what was found: model, counts, and what the user should know."""
    model, name_map = imported.model, imported.name_map
    count = sum(int(np.size(leaf)) for leaf in model_folder.flatten(imported.params).values())
    kind = "backbone alone" if foreign.backbone_only else f"Faster R-CNN, {model.num_classes} classes"
    lines = [
        f"{kind}: ResNet-{model.depth}, conventions of {foreign.preset}, norm {model.norm}",
        f"{count:,} parameters in {len(name_map.rows)} tensors; ignored {len(name_map.ignored)}, "
        f"constant {len(name_map.filled)}, re-initialised {len(name_map.dropped)}; nothing left over or missing",
    ]
    frozen = "backbone.body.bn1.running_var" in foreign.tensors
    tracked = any(name.endswith("num_batches_tracked") for name in foreign.tensors)
    if foreign.preset == "torchvision" and not foreign.backbone_only and frozen and not tracked:
        lines.append("note: torchvision's published COCO_V1 detector was trained with norms of epsilon 0: --norm_eps=0")
    return lines
