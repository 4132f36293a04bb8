"""A trained detector as programs that JAX runs without elk_jax, one for each canvas of its input (StableHLO).

  OUTPUT/detector_HEIGHTxWIDTH.bin      jax.export.deserialize(...).call(image, image_size), weights included
  OUTPUT/detector.json                  what goes in and comes out, classes, input, thresholds; it is written last

Shape legend: B images, any number of them; I images of a breast (2 for pairs); K detections; H W of the canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from elk_jax import files
from elk_jax.data.batches.buckets import Canvas
from elk_jax.errors import UserError
from elk_jax.output import Console
from elk_jax.tasks.detection.model import Trained, load_one
from elk_jax.tasks.run import new_console
from elk_jax.weights import model_folder

PLATFORMS = ("cpu", "cuda", "tpu")
"""A program runs on each of these."""
SETTINGS = "detector.json"
INPUTS = ("image", "image_size")
OUTPUTS = ("boxes", "scores", "labels", "valid")
"""Of a program, in their order."""


@dataclass(frozen=True)
class ExportSettings:
    """No settings: a detector is exported as it is."""


def export_folder(
    model: Path, output: Path, settings: ExportSettings = ExportSettings(), console: Console | None = None
) -> None:
    """Write the programs of a detector's model folder into a new or empty folder.

    UserError for an ensemble, for a folder of another kind, for parameters that do not fit its settings, for a detector
    that names no canvas, and for an output that has something in it. After an error nothing is written.
    """
    console = console or new_console()
    trained = load_one(model)
    description = trained.description
    model_folder.check_fits(trained.params, model_folder.shapes_of(trained.detector.init), model)
    if not description.input.buckets:
        what = "the detector names no canvas: it takes one from its images"
        raise UserError(what, where=f"{model / model_folder.CONFIG}: input.buckets", todo="train with loader.buckets")
    with files.whole_folder(output, last=SETTINGS) as place:
        shapes = {}
        for canvas in description.input.buckets:
            name = "detector_{}x{}.bin".format(*canvas)
            made = program(trained, canvas)
            files.write_bytes(place / name, bytes(made.serialize()))
            shapes[name] = {key: _shape(given) for key, given in zip(INPUTS, made.in_avals)}
        files.write_json(place / SETTINGS, about(trained, shapes, model_folder.promise(model)))
    for name in (*shapes, SETTINGS):
        console.print(f"wrote {output / name}")
    if views := description.input.flips:
        what = f"the image and its mirrored views ({', '.join(views)})"
        console.print(f"note: thresholds are of the fused boxes of {what}; a program sees one image: choose them anew")


def program(trained: Trained, canvas: Canvas, platforms: Sequence[str] = PLATFORMS) -> export.Exported:
    """(image [B, H, W, I] float32 in [0, 1], image_size [B, 2] float32) -> OUTPUTS.

    image_size: (height, width) in px of each image within the canvas, which is 0 right of and below it. boxes
    [B, K, 4] float32 xyxy in px of the canvas, scores [B, K] float32, best first, labels [B, K] int32, the number of a
    class, valid [B, K] bool: the others are fillers.
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


def about(trained: Trained, shapes: dict[str, Any], privacy: str) -> dict[str, Any]:
    """The content of SETTINGS. shapes: of the inputs of each program. privacy: what the training promises, in words."""
    _, _, description = trained
    return {
        "programs": shapes,
        "outputs": OUTPUTS,
        "platforms": PLATFORMS,
        "jax": jax.__version__,
        "detector": description.architecture,
        "classes": description.classes,
        "input": asdict(description.input),
        "thresholds": {
            "of_the_fused_boxes_of": ["image", *description.input.flips],
            "points": [asdict(point) for point in description.operating_points],
            "chosen_on": asdict(description.chosen_on),
        },
        "privacy": privacy,
    }


def _shape(given: Any) -> list[int | str]:
    """As JSON has it: "b" stands for any number of images."""
    return [side if isinstance(side, int) else str(side) for side in given.shape]
