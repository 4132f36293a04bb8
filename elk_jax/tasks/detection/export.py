"""Export a trained detector for other programs: JAX without elk_jax (StableHLO), detectron2, torchvision, effdet.

  OUTPUT/detector_HEIGHTxWIDTH.bin      for JAX, one for each canvas of its input, weights included:
                                        jax.export.deserialize(...).call(image, image_size)
  OUTPUT/detector.safetensors           for the others: the state dict of a model
  OUTPUT/detector.json                  inputs and outputs, arguments for building a model, classes, input, thresholds;
                                        written last

For an ensemble, OUTPUT/member_1, member_2, ... have the files of one member each, and OUTPUT/detector.json says how
their boxes are fused.

Shape legend: B images, any number of them; I images of a breast (2 for pairs); K detections; H W of the canvas.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax import export

from elk_jax import files
from elk_jax.data.augment import Resize
from elk_jax.data.batches.buckets import Canvas
from elk_jax.errors import UserError
from elk_jax.output import Console
from elk_jax.tasks.detection.model import Description, Ensemble, EnsembleDescription, Input, Trained, in_words, load
from elk_jax.tasks.detection.predict import unlearned
from elk_jax.tasks.run import new_console
from elk_jax.weights import model_folder
from elk_jax.weights.renamed.detectron2 import to_detectron2
from elk_jax.weights.renamed.effdet import to_effdet
from elk_jax.weights.renamed.kinds import Renamed
from elk_jax.weights.renamed.torchvision import to_torchvision

PLATFORMS = ("cpu", "cuda", "tpu")
"""Platforms on which a program runs."""
SETTINGS = "detector.json"
TENSORS = "detector.safetensors"
INPUTS = ("image", "image_size")
OUTPUTS = ("boxes", "scores", "labels", "valid")
"""Outputs of a program, in order."""


@dataclass(frozen=True)
class ExportSettings:
    """format: a key of FORMATS. name: the name of the detector in effdet. UserError if it is missing, or given for
    another format."""

    format: str = "stablehlo"
    name: str = ""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UserError(f"format is '{self.format}'", where="format", todo=f"choose from {', '.join(FORMATS)}")
        if self.format == "effdet" and not self.name:
            raise UserError(
                "the format effdet needs a name for the detector", where="name", todo="give one: tf_efficientdet_d0"
            )
        if self.format != "effdet" and self.name:
            raise UserError(f"a name does not apply to the format {self.format}", where="name", todo="leave it out")


def export_folder(model: Path, output: Path, settings: ExportSettings, console: Console | None = None) -> None:
    """Write the model folder of a detector, or of an ensemble, in another format into a new or empty folder.

    UserError for a folder of another kind, for parameters that do not fit its settings, for a detector that the format
    does not support, and for an output folder that is not empty. After an error nothing is written.
    """
    console = console or new_console()
    trained, file = load(model), model / model_folder.CONFIG
    for member in trained.members:
        model_folder.check_fits(member.params, model_folder.shapes_of(member.detector.init), model)
    promise = model_folder.promise(model)
    with files.whole_folder(output, last=SETTINGS) as place:
        if isinstance(trained, Ensemble):
            names = [f"member_{number}" for number in range(1, len(trained.members) + 1)]
            for name, member in zip(names, trained.members):
                _write_one(member, files.make_folder(place / name), f"{file}, {name}", settings, promise)
            files.write_json(place / SETTINGS, {**about_members(trained.description, names), "privacy": promise})
        else:
            _write_one(trained, place, file, settings, promise)
        written = (path.relative_to(place) for path in place.rglob("*") if path.is_file())
        paths = sorted(written, key=lambda path: (path == Path(SETTINGS), path.parent, path.name == SETTINGS, path))
    for path in paths:
        console.print(f"wrote {output / path}")
    for note in notes(trained, settings):
        console.print(f"note: {note}")


def _write_one(trained: Trained, place: Path, file: object, settings: ExportSettings, promise: str) -> None:
    """The files of a detector. file: the model.json that has its settings, and which member's they are, for errors."""
    how = FORMATS[settings.format](trained, place, file, settings)
    files.write_json(place / SETTINGS, {**how, **about(trained.description), "privacy": promise})


def notes(trained: Trained | Ensemble, settings: ExportSettings) -> list[str]:
    """How the results of an exported detector may differ from those of the original, in words."""
    found = unlearned(trained, "the detector")
    if isinstance(trained, Ensemble):
        found.append(
            f"thresholds apply to the fused boxes of all {len(trained.members)} members in all their views: fuse them "
            f"as {SETTINGS} says, or choose new ones"
        )
    else:
        found += _notes_on_views(trained.description.input)
    canvases = (_notes_on_canvases(member, settings) for member in trained.members)
    return found + list(dict.fromkeys(itertools.chain.from_iterable(canvases)))


def _notes_on_views(entry: Input) -> list[str]:
    if not entry.flips and entry.scales == (1.0,):
        return []
    what = "the image" + (f" and its mirrored views ({', '.join(entry.flips)})" if entry.flips else "")
    what += in_words(entry.scales)
    return [
        f"thresholds apply to the fused boxes of {what}, but the export reads one image, at the size of training: "
        "choose new ones"
    ]


def _notes_on_canvases(trained: Trained, settings: ExportSettings) -> list[str]:
    entry, found = trained.description.input, list[str]()
    if settings.format == "stablehlo":
        return found
    strides = sorted(trained.detector.strides)
    step = strides[PADDED_FOR[settings.format]]
    uneven = [f"{height}x{width}" for height, width in entry.buckets if height % step or width % step]
    if uneven and not trained.detector.config.anchor_rounded:
        what = f"canvases of {', '.join(uneven)} px are padded to multiples of {step} px"
        found.append(f"{what}, which may change scores at the right and lower edges")
    if settings.format == "torchvision" and not torchvision_resizing(entry.resize):
        found.append(
            "torchvision's model must not resize its images: prepare them as described by `input` (docs/torch.md)"
        )
    return found


def write_programs(trained: Trained, folder: Path, file: object, settings: ExportSettings) -> dict[str, Any]:
    """Write the programs of a detector and return their entries for SETTINGS. file: its model.json, for errors."""
    shapes = {}
    for canvas in _canvases(trained, file):
        name = "detector_{}x{}.bin".format(*canvas)
        made = program(trained, canvas)
        files.write_bytes(folder / name, bytes(made.serialize()))
        shapes[name] = {key: _shape(given) for key, given in zip(INPUTS, made.in_avals)}
    return {"programs": shapes, "outputs": OUTPUTS, "platforms": PLATFORMS, "jax": jax.__version__}


def write_torchvision(trained: Trained, folder: Path, file: object, settings: ExportSettings) -> dict[str, Any]:
    """The same for a state dict of torchvision."""
    detector, params, description = trained
    resizing = torchvision_resizing(description.input.resize)
    return _write_tensors(to_torchvision(detector.config, params, resizing, file), folder)


def write_detectron2(trained: Trained, folder: Path, file: object, settings: ExportSettings) -> dict[str, Any]:
    """The same for a state dict of detectron2."""
    return _write_tensors(to_detectron2(trained.detector.config, trained.params, file), folder)


def write_effdet(trained: Trained, folder: Path, file: object, settings: ExportSettings) -> dict[str, Any]:
    """The same for a state dict of effdet, whose anchors are for one canvas that contains all canvases of the
    detector."""
    config, step = trained.detector.config, max(trained.detector.strides)
    height, width = (-(-max(sides) // step) * step for sides in zip(*_canvases(trained, file)))
    return _write_tensors(to_effdet(config, trained.params, settings.name, (height, width), file), folder)


FORMATS: dict[str, Callable[[Trained, Path, object, ExportSettings], dict[str, Any]]] = {
    "stablehlo": write_programs,
    "detectron2": write_detectron2,
    "torchvision": write_torchvision,
    "effdet": write_effdet,
}


PADDED_FOR = {"detectron2": -2, "torchvision": -1, "effdet": -1}
"""Format of a state dict -> the level, from the finest, to whose stride the library pads images. detectron2 takes its
last level from the one before, and pads for that."""


def torchvision_resizing(resize: Resize) -> dict[str, Any]:
    """Arguments of torchvision's transform that leave images of the detector's input size unchanged.

    {} if there are none, because the size depends on the canvas.
    """
    if resize.jitter:
        return {}
    if resize.stretch:
        height, width = resize.size(resize.stretch, resize.scale(resize.stretch, (0, 0)))
        return {"fixed_size": [width, height]}
    return {"min_size": resize.short_sides[-1], "max_size": resize.max_long_side or _NO_LIMIT}


_NO_LIMIT = 1_000_000  # px, of a longer side


def _write_tensors(made: Renamed, folder: Path) -> dict[str, Any]:
    files.write_bytes(folder / TENSORS, safetensors.numpy.save(made.tensors, {"format": "pt"}))
    return made.about


def _canvases(trained: Trained, file: object) -> tuple[Canvas, ...]:
    """The canvases of a detector's input at the size of training. UserError if it names none."""
    if not trained.description.input.buckets:
        what = "the detector has no fixed canvas: it derives one from its images"
        raise UserError(what, where=f"{file}: input.buckets", todo="train with loader.buckets")
    return trained.description.input.buckets


def program(trained: Trained, canvas: Canvas, platforms: Sequence[str] = PLATFORMS) -> export.Exported:
    """(image [B, H, W, I] float32 in [0, 1], image_size [B, 2] float32) -> OUTPUTS.

    image_size: (height, width) in px of each image within the canvas, which is 0 right of and below it. boxes [B, K, 4]
    float32 xyxy in px of the canvas; scores [B, K] float32, best first; labels [B, K] int32, class numbers; valid [B,
    K] bool, False for padding.
    """
    detector, params, _ = trained

    def detect(image: jax.Array, image_size: jax.Array) -> tuple[jax.Array, ...]:
        batch: Any = {"image": image, "image_size": image_size, "valid": jnp.ones(image.shape[0], bool)}
        found = detector.predict(params, batch)
        return tuple(found[name] for name in OUTPUTS)

    (images,) = export.symbolic_shape("b")
    shapes = ((images, *canvas, detector.tested_images), (images, 2))
    given = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    return export.export(jax.jit(detect), platforms=platforms)(*given)


def about(description: Description) -> dict[str, Any]:
    """The entries of SETTINGS of a detector that are common to all formats."""
    return {
        "detector": description.architecture,
        "classes": description.classes,
        "input": asdict(description.input),
        "thresholds": {
            "of_the_fused_boxes_of": ["image", *description.input.flips],
            "at_scales": description.input.scales,
            **_points(description),
        },
    }


def about_members(description: EnsembleDescription, names: Sequence[str]) -> dict[str, Any]:
    """The entries of SETTINGS of an ensemble. names: of the folders of its members.

    fusion: at each of `scales` of its input, the boxes of a member's views are fused from its IoU `input.same` on; then
    the boxes of all members and scales from `iou` on, with the weights of the members. Boxes below `score_floor` are
    left out (None, in folders of earlier versions: of any score).
    """
    return {
        "detector": description.architecture,
        "members": list(names),
        "classes": description.classes,
        "fusion": {
            "method": "weighted boxes",
            "iou": description.same,
            "weights": description.weights,
            "scales": description.scales,
            "score_floor": description.score_floor,
        },
        "thresholds": {"of_the_fused_boxes_of": list(names), **_points(description)},
    }


def _points(description: Description | EnsembleDescription) -> dict[str, Any]:
    return {
        "points": [asdict(point) for point in description.operating_points],
        "chosen_on": asdict(description.chosen_on),
    }


def _shape(given: Any) -> list[int | str]:
    """A shape for JSON: "b" is any number of images."""
    return [side if isinstance(side, int) else str(side) for side in given.shape]
