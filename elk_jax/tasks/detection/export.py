"""A trained detector as programs that JAX runs without elk_jax, one for each canvas of its input (StableHLO).

  OUTPUT/detector.json                  what goes in and comes out, classes, input, operating points
  OUTPUT/detector_HEIGHTxWIDTH.bin      jax.export.deserialize(...).call(image, image_size), weights included

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
from elk_jax.weights import model_folder

PLATFORMS = ("cpu", "cuda", "tpu")
"""Which a program runs on, without being made anew."""
SETTINGS = "detector.json"
INPUTS = ("image", "image_size")
OUTPUTS = ("boxes", "scores", "labels", "valid")
"""Of a program, in their order."""


@dataclass(frozen=True)
class ExportSettings:
    """A detector has none of its own."""


def program(trained: Trained, canvas: Canvas, platforms: Sequence[str] = PLATFORMS) -> export.Exported:
    """(image [B, H, W, I] float32 in [0, 1], image_size [B, 2] float32) -> OUTPUTS.

    image: 0 right of and below what is of the image, of image_size (height, width). boxes [B, K, 4] float32 xyxy in px
    of it, scores [B, K] float32, best first, labels [B, K] int32 of the classes, valid [B, K] bool.
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


def export_folder(
    model: Path, output: Path, settings: ExportSettings = ExportSettings(), console: Console | None = None
) -> Path:
    """Write the programs of a detector's model folder into a new or empty folder.

    UserError for an ensemble, for a folder of another kind, and for an output that has something in it.
    """
    console = console or Console()
    trained = load_one(model)
    model_folder.check_fits(trained.params, model_folder.shapes_of(trained.detector.init), model)
    if output.exists() and any(output.iterdir()):
        raise UserError("the folder is not empty", where=output, todo="name a new one")
    description, programs = trained.description, {}
    made = {"detector_{}x{}.bin".format(*canvas): program(trained, canvas) for canvas in description.input.buckets}
    files.make_folder(output)
    for name, one in made.items():
        files.write_bytes(output / name, bytes(one.serialize()))
        programs[name] = {key: _shape(given) for key, given in zip(INPUTS, one.in_avals)}
        console.print(f"wrote {output / name}")
    about = {
        "programs": programs,
        "outputs": OUTPUTS,
        "platforms": PLATFORMS,
        "detector": trained.detector.name,
        "classes": description.classes,
        "input": asdict(description.input),
        "operating_points": [asdict(point) for point in description.operating_points],
        "promise": model_folder.promise(model),
        "jax": jax.__version__,
    }
    files.write_json(output / SETTINGS, about)
    console.print(f"wrote {output / SETTINGS}: inputs, outputs, classes, operating points")
    if views := description.input.flips:
        console.print(
            f"note: launch/predict.py looks at mirrored views too ({', '.join(views)}), and fuses their boxes"
        )
    return output


def _shape(given: Any) -> list[int | str]:
    """As JSON has it: "b" stands for any number of images."""
    return [side if isinstance(side, int) else str(side) for side in given.shape]
