"""The detection task: a detector as a `Task`, its data by configuration, and inference over a whole source."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from elk_jax.data.augment import Augmentation, Resize
from elk_jax.data.batches import detection as loader
from elk_jax.data.sources import source as sources
from elk_jax.data.transforms import short_side_scale
from elk_jax.detection import anchors, detectors
from elk_jax.detection.detector import Detector
from elk_jax.errors import UserError
from elk_jax.evaluation.detections import ImageResult, join_batches
from elk_jax.images.schema import ImageInfo
from elk_jax.progress import Progress
from elk_jax.tasks.settings import build
from elk_jax.tasks.watching import watched
from elk_jax.training import mesh as meshes
from elk_jax.training.model import Params, Task


def build_task(detector: Detector, mesh: Mesh) -> Task:
    """A detector for the training loop; its per-image stages stay on their shard of the mesh."""
    map_images = meshes.shard_map_images(mesh)
    return Task(
        init=detector.init,
        loss=lambda params, batch, rng: detector.loss(params, batch, rng, map_images),
        predict=lambda params, batch: detector.predict(params, batch, map_images),
        frozen=detector.frozen,
    )


# ---- From configuration to plain values ---------------------------------------------------------------------------


def model_config(settings: Mapping[str, Any], **changes: Any) -> Any:
    """`recipe.model`, with `changes`, as the settings of the detector that it names. UserError as `fields.build`."""
    return detectors.config_from({**settings, **changes}, "model")


def planned_anchor_sizes(
    infos: Sequence[ImageInfo], config: loader.LoaderConfig, levels: int
) -> tuple[tuple[float], ...]:
    """Anchor sizes from the lesions of `infos` at the size that images have in the network (`config`: testing's)."""
    canvases = config.buckets or loader.plan.choose_buckets(infos, config.resize, config.augmentation)
    buckets = loader.plan.assign_buckets(infos, canvases, config.resize, config.augmentation)

    def scale(info: ImageInfo, canvas: tuple[int, int]) -> float:
        if config.resize.jitter:
            return min(canvas[0] / info.height, canvas[1] / info.width)
        return short_side_scale((info.height, info.width), config.resize.short_sides[-1], config.resize.max_long_side)

    boxes = [info.boxes[~info.ignore] * scale(info, canvases[bucket]) for info, bucket in zip(infos, buckets)]
    return anchors.plan_sizes(np.concatenate(boxes), levels)


def resize_config(settings: Mapping[str, Any]) -> Resize:
    return build(Resize, settings, "resize")


def loader_config(settings: Mapping[str, Any], weights: Sequence[float] = ()) -> loader.LoaderConfig:
    """`recipe.loader` as a LoaderConfig (`lesion_share` below 0: images with lesions are not preferred).

    weights: `stage.weights`, for a recipe serves stages of different mixes.
    """
    if "weights" in settings:
        raise UserError("weights of a mix in a recipe", where="loader.weights", todo="set config.stages.NAME.weights")
    values = dict(settings) | {"weights": weights}
    values["resize"] = resize_config(values.get("resize", {}))
    values["augmentation"] = build(Augmentation, values.get("augmentation", {}), "loader.augmentation")
    if values.get("lesion_share", -1) < 0:
        values["lesion_share"] = None
    return build(loader.LoaderConfig, values, "loader")


def test_loader_config(recipe: Mapping[str, Any]) -> loader.LoaderConfig:
    """The same canvases and batch size, the fixed size of testing, nothing random."""
    training = loader_config(recipe["loader"])
    return dataclasses.replace(
        training,
        resize=resize_config(recipe["test_resize"]),
        augmentation=loader.NO_AUGMENTATION,
        weights=(),
        lesion_share=None,
        max_boxes=0,
    )


def open_data(data: ConfigDict, names: Sequence[str], split: str, seed: int) -> sources.ImageSource:
    """The named sources of `config.data` as one. Those for training hold what `train_where` and `patients` leave."""
    opened = []
    for name in names:
        entry = data[name]
        if not entry.spec:
            raise UserError(
                f"data source '{name}' is not set", where=f"config.data.{name}.spec", todo="give coco:FILE.json"
            )
        where = parse_where(f"{entry.where},{entry.train_where}" if split == "train" else entry.where)
        keep, watch = sources.KEPT_BYTES, watched("  opening")
        source = sources.open_source(
            entry.spec,
            split,
            where,
            entry.clean_boxes,
            data.on_error,
            keep,
            watch,
            entry.ignore_over,
            entry.get("split_shares", ()),  # a run folder of before there were these keys lacks them
            entry.get("bit_depth", 0),
        )
        if entry.patients and split == "train":
            source = sources.fewshot(source, entry.patients, seed)
        opened.append(dataclasses.replace(source, name=name))
    return opened[0] if len(opened) == 1 else sources.concatenate(opened)


def parse_where(text: str) -> dict[str, Any]:
    """'is_mass=true,view=MLO|CC' -> {'is_mass': True, 'view': ('MLO', 'CC')}: values are JSON, else text."""
    found: dict[str, Any] = {}
    for condition in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = condition.partition("=")
        if not equals or not key:
            raise UserError(f"'{condition}' is no condition", where="where", todo="write field=value,field=value")
        if key in found:
            raise UserError(f"the field '{key}' is named twice", where="where", todo="write field=value|value")
        values = tuple(_json_or_text(v) for v in value.split("|"))
        found[key] = values if len(values) > 1 else values[0]
    return found


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


# ---- Inference over a source --------------------------------------------------------------------------------------

Predictor = Callable[[Params, Mapping[str, jax.Array]], dict[str, jax.Array]]


def compile_predictor(task: Task, mesh: Mesh) -> Predictor:
    """(params, placed batch) -> predictions with the batch's own `index`, `scale`, `valid` beside, on every process."""

    def predict(params, batch):
        found = task.predict(params, batch)
        return {"predictions": found, "batch": {key: batch[key] for key in ("index", "scale", "valid")}}

    return jax.jit(predict, out_shardings=meshes.replicated(mesh))


def detect(
    predictor: Predictor,
    params: Params,
    batches: Iterable[Mapping[str, Any]],
    infos: Sequence[ImageInfo],
    mesh: Mesh,
    score_floor: float = 0.0,
    progress: Callable[[int], None] = lambda images: None,
) -> list[ImageResult]:
    """Run a detector over evaluation batches and join its detections with the truth, in the source's own pixels.

    progress is called after every batch with the number of its images.
    """
    needed = ("image", "image_size", "index", "scale", "valid")

    def outputs():
        waiting = None  # fetch a batch's result while the next one is computed
        for batch in batches:
            running = predictor(params, meshes.put_batch({key: batch[key] for key in needed}, mesh))
            if waiting is not None:
                yield fetch(waiting)
            waiting = running
        if waiting is not None:
            yield fetch(waiting)

    def fetch(result):
        host = jax.device_get(result)
        progress(int(host["batch"]["valid"].sum()))
        return host["batch"], host["predictions"]

    return join_batches(infos, outputs(), score_floor)


def detect_all(
    predictor: Predictor,
    params: Params,
    source: sources.ImageSource,
    config: loader.LoaderConfig,
    mesh: Mesh,
    score_floor: float = 0.0,
    show: bool = True,
) -> list[ImageResult]:
    """`detect` over a whole source, with a progress bar of its own unless `show` is False."""
    batches = loader.eval_batches(source, config, jax.process_index(), jax.process_count())
    if not show:
        return detect(predictor, params, batches, source.infos, mesh, score_floor)
    with Progress("  detecting", len(source), unit="image") as bar:
        advance = lambda images: bar.update(bar.done + images)
        return detect(predictor, params, batches, source.infos, mesh, score_floor, advance)
