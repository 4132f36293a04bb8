"""A detector as a model to train, and as a folder: weights, architecture, classes, input size, operating points."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from elk_jax.data.batches.detection import LoaderConfig
from elk_jax.detection import detectors
from elk_jax.detection.detector import Detector
from elk_jax.errors import UserError
from elk_jax.training.model import Model, Params
from elk_jax.weights import model_folder


def trainable(detector: Detector) -> Model:
    """A detector for the training loop. Its loss divides by counts of the whole batch."""
    return Model(
        init=detector.init,
        loss=lambda params, constants, batch, rng, map_images: detector.loss(params, batch, rng, map_images),
        predict=lambda params, constants, batch, map_images: detector.predict(params, batch, map_images),
        frozen=detector.frozen,
        per_example=False,
    )


class Trained(NamedTuple):
    """A detector's model folder, read."""

    detector: Detector
    params: Params
    description: dict[str, Any]  # the content of model.json


def describe(
    detector: Detector,
    classes: Sequence[str],
    test_loader: LoaderConfig,
    crop_to_breast: bool,
    flips: Sequence[str],
    evaluation: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of `model.json`. evaluation: of the validation split, which gives the operating points."""
    return {
        "architecture": detector.name,
        "model": dataclasses.asdict(detector.config),
        "classes": list(classes),
        "input": {
            "crop_to_breast": crop_to_breast,
            "resize": dataclasses.asdict(test_loader.resize),
            "buckets": list(test_loader.buckets),
            "flips": list(flips),
        },
        "operating_points": [
            {"false_positives_per_image": point["rate"], "threshold": point["threshold"]}
            for point in evaluation["operating_points"]
        ],
    }


def load(folder: Path) -> Trained:
    """Read a detector's model folder. UserError for a folder of another kind."""
    params, description = model_folder.load_params(folder)
    parts = ("model", "classes", "input")
    if description.get("architecture") not in detectors.DETECTORS or not all(part in description for part in parts):
        raise UserError(
            "not a trained detector", where=folder, todo="name the model folder of a detection stage: RUN/STAGE/model"
        )
    return Trained(detectors.stored(description, folder / model_folder.CONFIG), params, description)
