"""Detectors of other libraries as a model folder: read, converted, checked against the model and explained."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from elk_jax import fields, files
from elk_jax.detection import detectors, faster_rcnn, retinanet
from elk_jax.detection.detectors import kinds
from elk_jax.errors import UserError
from elk_jax.fields import ByName
from elk_jax.output import Console
from elk_jax.weights import classifiers, convert, model_folder, reading, resnet
from elk_jax.weights.classifiers import Origin, name_table, say

_PRESETS: dict[str, Callable[[], Any]] = {
    "detectron2": faster_rcnn.detectron2,
    "torchvision": faster_rcnn.torchvision,
    "torchvision_v2": faster_rcnn.torchvision_v2,
    "retinanet": retinanet.torchvision,
    "retinanet_v2": retinanet.torchvision_v2,
}


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
    """Converted weights: params (nested), the model they fit, and what became of every tensor.

    absent: regular expressions of parameters that are not in `params` and start afresh in training.
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
    """The parameters of the detector that `foreign` is of. `changes`: settings of the detector, over what is inferred;
    those of its backbone are a section.

    drop, ignore: see `convert.convert`. Raises UserError when file and model do not agree in every tensor.
    """
    preset, changes = _PRESETS[foreign.preset](), changes or {}
    backbone = resnet.settings(foreign) | fields.as_dict(changes.get("backbone", {}), "model.backbone")
    settings = {**dataclasses.asdict(preset), **foreign.settings, **changes, "backbone": backbone}
    model = fields.build(type(preset), settings, "model")
    shapes = parameter_shapes(model)
    convert.check_used(drop, shapes, "--drop")
    convert.check_used(ignore, foreign.tensors, "--ignore")
    params, name_map = convert.convert(foreign.tensors, foreign.format, shapes, drop, ignore)
    return Converted(params, model, name_map, tuple(drop))


def parameter_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter, without computing any."""
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
) -> Converted | classifiers.Classifier:
    """Read `path`, print the name map on `console` and write the model folder `output`. Nothing is written on error.

    The folder of a ResNet without a detector is that of a network.
    """
    console = console or Console()
    foreign = resnet.foreign(reading.read_tensors(path), file_format, norm_eps)
    origin = Origin(foreign.preset, Path(path).name, files.sha256(path))
    if foreign.backbone_only:
        for flag, given in (("--classes", classes), ("--drop", drop)):
            if given:
                raise UserError(f"{flag} is of detectors, the file has none", where=flag, todo="leave it out")
        network = classifiers.convert_resnet(foreign, changes, ignore)
        title = f"ResNet-{network.model.depth}, conventions of {foreign.preset}"
        classifiers.write(network, title, origin, output, console)
        return network
    imported = convert_foreign(foreign, changes, drop, ignore)
    count = imported.model.num_classes
    names = list(classes) or [f"class {i}" for i in range(count)]
    if len(names) != count:
        todo = "name every class of the file, without background"
        raise UserError(f"{len(names)} names for {count} classes", where="--classes", todo=todo)
    folder = files.make_folder(output)
    console.print(name_table(imported.name_map))
    say(console, *summary(foreign, imported))
    description = Imported(
        architecture=imported.model.name,
        model=imported.model,
        classes=tuple(names),
        absent=imported.absent,
        source=origin,
    )
    model_folder.save_params(folder, imported.params, description)
    say(console, f"wrote {folder / model_folder.PARAMS} and {model_folder.CONFIG}")
    return imported


def summary(foreign: convert.Foreign, imported: Converted) -> list[str]:
    """Lines on what was found: model, counts, and what the user should know."""
    model, name_map = imported.model, imported.name_map
    count = sum(int(np.size(leaf)) for leaf in model_folder.flatten(imported.params).values())
    resnet = model.backbone
    lines = [
        f"{model.name}, {model.num_classes} classes: ResNet-{resnet.depth}, conventions of {foreign.preset}, "
        f"norm {resnet.norm}",
        f"{count:,} parameters in {len(name_map.rows)} tensors; ignored {len(name_map.ignored)}, "
        f"constant {len(name_map.filled)}, re-initialised {len(name_map.dropped)}; nothing left over or missing",
    ]
    frozen = "backbone.body.bn1.running_var" in foreign.tensors
    tracked = any(name.endswith("num_batches_tracked") for name in foreign.tensors)
    if foreign.preset in ("torchvision", "retinanet") and frozen and not tracked:
        lines.append("note: torchvision's published COCO_V1 detector was trained with norms of epsilon 0: --norm_eps=0")
    return lines
