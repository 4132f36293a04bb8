"""A trained detector as a folder: weights, architecture, classes, input size and operating points in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from elk_jax.data import breast
from elk_jax.data.batches import detection as loader
from elk_jax.data.flips import check_flips, flip_boxes, flipped
from elk_jax.data.sources.source import ImageSource
from elk_jax.detection import detectors
from elk_jax.detection.detectors import DETECTORS
from elk_jax.errors import UserError
from elk_jax.evaluation import detections, fusion
from elk_jax.evaluation.detections import Detections, ImageResult, join
from elk_jax.images.schema import ImageInfo
from elk_jax.tasks.detection import settings as detection
from elk_jax.tasks.watching import watched
from elk_jax.training import mesh as meshes
from elk_jax.weights import model_folder as store


def describe(
    model: Any,
    classes: Sequence[str],
    test_loader: loader.LoaderConfig,
    crop_to_breast: bool,
    flips: Sequence[str],
    evaluation: Mapping[str, Any],
) -> dict[str, Any]:
    """What `model.json` says. `evaluation` is that of the validation split: thresholds are chosen there."""
    return {
        "architecture": model.name,
        "model": dataclasses.asdict(model),
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


def load(folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    """A model folder as (settings of the detector, params, the whole description). UserError for another model."""
    params, description = store.load_params(folder)
    parts = ("model", "classes", "input")
    if description.get("architecture") not in DETECTORS or not all(part in description for part in parts):
        raise UserError(
            "not a trained detector",
            where=folder,
            todo="name the model folder of a detection stage: RUN/STAGE/model",
        )
    return detection.model_config(description["model"]), params, description


def find(workdir: Path, stage: str | None = None) -> Path:
    """The detector that a user means: a model folder itself, or a stage (default: the last) of a run folder."""
    return store.find(workdir, stage, DETECTORS)


def test_loader(description: Mapping[str, Any], infos: Sequence) -> loader.LoaderConfig:
    """How a trained model wants its images; a canvas of its own for images that fit none of the training's."""
    entry = description["input"]
    resize = detection.resize_config(entry["resize"])
    buckets = tuple((int(height), int(width)) for height, width in entry["buckets"])
    return loader.LoaderConfig(
        batch_size=max(2, jax.device_count()),
        resize=resize,
        augmentation=loader.NO_AUGMENTATION,
        buckets=buckets if _all_fit(infos, buckets, resize) else (),
    )


def _all_fit(infos: Sequence, buckets: Sequence[tuple[int, int]], resize) -> bool:
    try:
        loader.plan.assign_buckets(infos, buckets, resize, loader.NO_AUGMENTATION)
    except UserError:
        return False
    return bool(buckets)


def detect_with(
    folder: Path, source: ImageSource, mesh: Mesh, score_floor: float = 0.0, flips: Sequence[str] | None = None
) -> list[ImageResult]:
    """Run a model folder over a source, at the input size it was trained for.

    flips: mirrored views to detect in as well; None for those that the model was described with.
    """
    config, params, description = load(folder)
    if tuple(description["classes"]) != source.classes:
        raise UserError(
            f"the model knows the classes {description['classes']}, the data has {list(source.classes)}",
            where=source.name,
            todo="evaluate on data with the classes of the training",
        )
    task = detection.build_task(detectors.build(dataclasses.replace(config, score_floor=score_floor)), mesh)
    predictor, params = detection.compile_predictor(task, mesh), meshes.place(params, mesh)
    shown = show(source, bool(description["input"].get("crop_to_breast")))
    batches = test_loader(description, shown.source.infos)
    flips = check_flips(description["input"].get("flips", ()) if flips is None else flips)
    return detect_shown(predictor, params, shown, batches, mesh, score_floor, flips)


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a detector sees of a source, and how it comes back: the same in training's validation as in testing."""

    source: ImageSource
    whole: tuple[ImageInfo, ...]
    windows: tuple[breast.Window, ...] | None  # of `source` in the whole images; None where these are shown


def show(source: ImageSource, crop_to_breast: bool) -> Shown:
    """`source` as a detector sees it; decodes every image once where breasts are cut out."""
    if not crop_to_breast:
        return Shown(source, source.infos, None)
    seen, windows = breast.crop_to_breast(without_truth(source), watched("  finding the breasts"))
    return Shown(seen, source.infos, windows)


def detect_shown(
    predictor: detection.Predictor,
    params: Any,
    shown: Shown,
    config: loader.LoaderConfig,
    mesh: Mesh,
    score_floor: float = 0.0,
    flips: Sequence[str] = (),
    progress: bool = True,
) -> list[ImageResult]:
    """Detections and truth in the pixels of the whole images.

    flips: mirrored views, whose detections are fused with those of the images as they are.
    """
    detect = lambda source: detection.detect_all(predictor, params, source, config, mesh, score_floor, progress)
    results = detect(shown.source)
    if flips:
        views = [_unflipped(detect(flipped(shown.source, flip)), flip) for flip in flips]
        results = detections.above(fusion.fuse([results, *views]), score_floor)
    return results if shown.windows is None else _uncut(results, shown.whole, shown.windows)


def without_truth(source: ImageSource) -> ImageSource:
    """The same images as if nothing were known of them: the truth must not decide what a detector is shown."""
    none: dict[str, Any] = {
        "boxes": np.zeros((0, 4), np.float32),
        "labels": np.zeros(0, np.int32),
        "ignore": np.zeros(0, bool),
    }
    return dataclasses.replace(source, infos=tuple(dataclasses.replace(info, **none) for info in source.infos))


def _unflipped(results: Sequence[ImageResult], flip: str) -> list[ImageResult]:
    """Results of mirrored images, in the pixels of the images."""
    return [dataclasses.replace(r, boxes=flip_boxes(r.boxes, r.width, r.height, flip)) for r in results]


def _uncut(
    results: Sequence[ImageResult], infos: Sequence[ImageInfo], windows: Sequence[breast.Window]
) -> list[ImageResult]:
    """Results on breasts cut out of their images, in the pixels of the whole images."""
    origin = {info.image_id: np.array([*window[:2], *window[:2]], float) for info, window in zip(infos, windows)}
    found = {r.image_id: Detections(r.boxes + origin[r.image_id], r.scores, r.labels) for r in results}
    return join(infos, found)
