"""A detector as a model to train, and as a folder: weights, architecture, classes, input size, operating points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_jax.data.augment import Resize
from elk_jax.data.batches.buckets import Canvases
from elk_jax.data.batches.detection import LoaderConfig
from elk_jax.data.flips import Flip
from elk_jax.detection import detectors
from elk_jax.detection.detector import Detector
from elk_jax.errors import UserError
from elk_jax.evaluation.operating import Choice, ChosenOn, OperatingPoint
from elk_jax.fields import ByName
from elk_jax.training.model import Batch, Constants, MapImages, Metrics, Model, Params
from elk_jax.weights import model_folder
from elk_jax.weights.detectors import Imported

EARLIER = {**detectors.EARLIER, "input": {"crop_to_breast": False, "flips": ()}}
"""What model folders of earlier versions lack."""
LATER = {
    "input": {"resize": {"stretch": (), "rounding": "nearest", "pixels": "mean"}},
    "chosen_on": asdict(ChosenOn()),
}
"""What any model folder may lack."""
POINT = {one.name: one.default for one in fields(OperatingPoint) if one.default is not MISSING}
"""What the operating points of any model folder may lack."""


def trainable(detector: Detector, per_image: bool = False) -> Model:
    """A detector for the training loop. Its loss divides by counts of the whole batch.

    per_image: the loss is the mean over the images of the loss that each has on its own, which divides by its own
    counts. So images do not meet in it, as private training requires.
    """

    def loss(
        params: Params, constants: Constants, batch: Batch, rng: jax.Array, map_images: MapImages
    ) -> tuple[jax.Array, Metrics]:
        return (image_mean if per_image else detector.loss)(params, batch, rng, map_images)

    def image_mean(params: Params, batch: Batch, rng: jax.Array, map_images: MapImages) -> tuple[jax.Array, Metrics]:
        def of_image(image: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
            return detector.loss(params, jax.tree.map(lambda x: x[None], image), key, jax.vmap)

        counts = batch["valid"]
        images = {name: x for name, x in batch.items() if name != "valid"}
        found = map_images(of_image)(images, jax.random.split(rng, len(counts)))
        mean = lambda x: jnp.where(counts, x, 0).sum() / jnp.maximum(counts.sum(), 1)
        return jax.tree.map(mean, found)

    return Model(
        init=detector.init,
        loss=loss,
        predict=lambda params, constants, batch, map_images: detector.predict(params, batch, map_images),
        frozen=detector.frozen,
        statistics=detector.statistics,
        per_example=per_image,
    )


@dataclass(frozen=True)
class Input:
    """How images come into the detector. flips: mirrored views to detect in as well."""

    crop_to_breast: bool
    resize: Resize
    buckets: Canvases
    flips: tuple[Flip, ...]


@dataclass(frozen=True)
class Description:
    """The content of `model.json`. model: the settings of the detector. chosen_on: what its operating
    points were chosen on."""

    architecture: str
    model: Annotated[Any, ByName(detectors.kinds)]
    classes: tuple[str, ...]
    input: Input
    operating_points: tuple[OperatingPoint, ...]
    trained: model_folder.Training | None = None
    chosen_on: ChosenOn = field(default_factory=ChosenOn)

    def __post_init__(self) -> None:
        if len(self.classes) != self.model.num_classes:
            what = f"{len(self.classes)} names for {self.model.num_classes} classes"
            raise UserError(what, where="classes", todo="name every class of the model")


class Trained(NamedTuple):
    """A detector's model folder, read."""

    detector: Detector
    params: Params
    description: Description


def describe(
    detector: Detector,
    classes: Sequence[str],
    test_loader: LoaderConfig,
    crop_to_breast: bool,
    flips: Sequence[Flip],
    choice: Choice,
    trained: model_folder.Training | None = None,
) -> Description:
    """The description of a detector, with its operating points."""
    return Description(
        architecture=detector.name,
        model=detector.config,
        classes=tuple(classes),
        input=Input(crop_to_breast, test_loader.resize, test_loader.buckets, tuple(flips)),
        operating_points=choice.points,
        trained=trained,
        chosen_on=choice.on,
    )


def load(folder: Path) -> Trained:
    """Read a detector's model folder. UserError for a folder of another kind."""
    params, content = model_folder.load_params(folder)
    if content.architecture not in detectors.DETECTORS or "source" in content.entries:
        raise UserError(
            "not a trained detector", where=folder, todo="name the model folder of a detection stage: RUN/STAGE/model"
        )
    description = _present(content).build(Description, EARLIER, LATER)
    return Trained(detectors.build(description.model), params, description)


def stored(content: model_folder.Content) -> Description | Imported:
    """What a model folder says of the detector in it, trained here or imported."""
    if "source" in content.entries:
        return _present(content).build(Imported, detectors.EARLIER)
    return _present(content).build(Description, EARLIER, LATER)


def _present(content: model_folder.Content) -> model_folder.Content:
    model = {"model": detectors.in_present_form(content.entries["model"])} if "model" in content.entries else {}
    points = content.entries.get("operating_points")
    if isinstance(points, list):
        model["operating_points"] = [{**POINT, **point} if isinstance(point, Mapping) else point for point in points]
    return replace(content, entries={**content.entries, **model})
