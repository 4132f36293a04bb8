"""The detection task: a Faster R-CNN as a `Task`, its data by configuration, and inference over a whole source."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from elk_jax import fields
from elk_jax.data.augment import Augmentation, Resize
from elk_jax.data.batches import detection as loader
from elk_jax.data.sources import source as sources
from elk_jax.data.sources.open import list_source, open_source
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.data.transforms import short_side_scale
from elk_jax.detection import anchors, faster_rcnn
from elk_jax.detection.faster_rcnn import FasterRCNN, FasterRCNNConfig
from elk_jax.errors import UserError
from elk_jax.evaluation.detections import ImageResult, join_batches
from elk_jax.images.schema import ImageInfo
from elk_jax.progress import Progress, progress_bar
from elk_jax.tasks.detection.checks import check_model
from elk_jax.tasks.settings import build
from elk_jax.training import mesh as meshes
from elk_jax.training.model import Params, Task


def build_task(config: FasterRCNNConfig, mesh: Mesh) -> Task:
    """A Faster R-CNN for the training loop; its per-image stages stay on their shard of the mesh."""
    model = FasterRCNN(config)
    map_images = meshes.shard_map_images(mesh)
    return Task(
        init=lambda rng: faster_rcnn.init(model, rng),
        loss=lambda params, batch, rng: faster_rcnn.loss(model, params, batch, rng, map_images),
        predict=lambda params, batch: faster_rcnn.predict(model, params, batch, map_images),
        frozen=faster_rcnn.frozen(config),
    )


# ---- From configuration to plain values ---------------------------------------------------------------------------


def model_config(settings: Mapping[str, Any], **changes: Any) -> FasterRCNNConfig:
    """`recipe.model` as a FasterRCNNConfig. Raises UserError for unknown fields and for values that cannot be."""
    config = build(FasterRCNNConfig, {**settings, **changes}, "model")
    check_model(config)
    return config


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
    return _joined(data, names, partial(open_source, split=split, on_error=data.on_error, seed=seed))


def list_data(data: ConfigDict, names: Sequence[str], split: str, seed: int) -> sources.ImageSource:
    """`open_data` without a look at the image files: for a few images of sources that a stage has opened before."""
    return _joined(data, names, partial(list_source, split=split, seed=seed))


def _joined(
    data: ConfigDict, names: Sequence[str], open_one: Callable[..., sources.ImageSource]
) -> sources.ImageSource:
    opened = []
    for name in names:
        spec = fields.build(SourceSpec, data[name], f"config.data.{name}")
        opened.append(open_one(spec, name=name, progress=progress_bar("  opening")))
    return opened[0] if len(opened) == 1 else sources.concatenate(opened)


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
