"""The measured program: a detector with its compiled training step and inference, on phantom images.

Shapes: B batch, H W canvas (the image size rounded up to a multiple of 32, as torchvision pads), M padded lesions.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks import measure
from elk_jax.data.batches import detection as loader
from elk_jax.data.sources import source as sources
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.detection import detectors, efficientdet_config, faster_rcnn_config, retinanet_config
from elk_jax.detection.efficientdet_config import EfficientDetConfig
from elk_jax.detection.faster_rcnn_config import FasterRCNNConfig
from elk_jax.detection.retinanet_config import RetinaNetConfig
from elk_jax.errors import UserError
from elk_jax.tasks.detection.model import trainable
from elk_jax.training import mesh as meshes
from elk_jax.training import prediction
from elk_jax.training.loop import Intervals, train
from elk_jax.training.model import Params
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.schedules import WarmupMultistep
from elk_jax.training.state import TrainState
from elk_jax.training.step.gradient import gradient
from elk_jax.training.step.step import on_mesh
from elk_jax.training.writer import read_metrics

RECIPE = TrainingRecipe(
    optimizer=OptimizerConfig(
        name="sgd",
        momentum=0.9,
        weight_decay=1e-4,
        frozen=(r"backbone/stem", r"backbone/res2"),  # torchvision's default: three trainable stages
    ),
    schedule=WarmupMultistep(base=1e-4, warmup_steps=0),
)
TINY = {
    "fpn_channels": 16, "box_fc_width": 32, "roi_samples": 16, "detections": 10,
    "rpn_samples": 32, "rpn_pre_nms_train": 64, "rpn_pre_nms_test": 64, "rpn_post_nms_train": 32,
    "rpn_post_nms_test": 32,
}  # fmt: skip
"""Settings of a detector with few channels, for tests."""
CONVENTIONS = {"torchvision": faster_rcnn_config.torchvision, "detectron2": faster_rcnn_config.detectron2}


def faster_rcnn(
    depth: int, dtype: str, *, conventions: str = "torchvision", tiny: bool = False, remat: tuple[int, ...] = ()
) -> FasterRCNNConfig:
    """A detector of one class with a ResNet. tiny: few channels and 18 layers, for tests."""
    preset = CONVENTIONS[conventions]
    backbone = dataclasses.replace(preset().backbone, depth=depth, dtype=dtype, remat=remat)
    if tiny:
        return preset(backbone=dataclasses.replace(backbone, depth=18, width=8), **TINY)
    return preset(backbone=backbone)


def retinanet(depth: int, dtype: str, *, version: int = 1, tiny: bool = False) -> RetinaNetConfig:
    """torchvision's RetinaNet of this version with one class.

    Random weights give low scores, so all scores enter the NMS.
    """
    preset = retinanet_config.torchvision_v2 if version == 2 else retinanet_config.torchvision
    backbone = dataclasses.replace(preset().backbone, depth=depth, dtype=dtype)
    if tiny:
        few = {"fpn_channels": 16, "norm_groups": 8, "detections": 10}
        return preset(backbone=dataclasses.replace(backbone, depth=18, width=8), score_floor=0.0, **few)
    return preset(backbone=backbone, score_floor=0.0)


def efficientdet(variant: str, dtype: str, *, tiny: bool = False) -> EfficientDetConfig:
    """effdet's EfficientDet with one class and constant statistics of its norms. All scores enter the NMS, as above."""
    published = efficientdet_config.named(variant)
    backbone = dataclasses.replace(published.backbone, norm="affine_bn", dtype=dtype, drop_path=0.0)
    few: dict[str, Any] = {"channels": 16, "cells": 1, "head_convs": 1, "detections": 10} if tiny else {}
    return dataclasses.replace(published, backbone=backbone, norm="affine_bn", score_floor=0.0, **few)


def recipe_of(config: Any) -> TrainingRecipe:
    """RECIPE; for an EfficientDet all parameters are trained, as in effdet."""
    if not isinstance(config, EfficientDetConfig):
        return RECIPE
    return dataclasses.replace(RECIPE, optimizer=dataclasses.replace(RECIPE.optimizer, frozen=()))


@dataclasses.dataclass(frozen=True)
class Data:
    """Training images, the settings of the loader, and one batch on the host, the same for both sides."""

    source: sources.ImageSource
    config: loader.LoaderConfig
    batch: dict[str, np.ndarray]


def parse_size(text: str) -> tuple[int, int]:
    """'800x1333' -> (800, 1333)."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) >= 64 for part in parts):
        raise UserError(f"size is '{text}'", where="--size", todo="give HEIGHTxWIDTH, at least 64, for example 512x512")
    return int(parts[0]), int(parts[1])


def phantom_loader(
    size: tuple[int, int], batch_size: int, threads: int, images: int = 40
) -> tuple[sources.ImageSource, loader.LoaderConfig]:
    """Phantoms with the shorter side, loaded as in the recipes."""
    source = open_source(SourceSpec(f"phantom:size={min(size)},count={images},seed=5"), "train")
    canvas = (-(-size[0] // 32) * 32, -(-size[1] // 32) * 32)
    return source, loader.LoaderConfig(batch_size=batch_size, buckets=(canvas,), threads=threads)


def phantom_data(size: tuple[int, int], batch_size: int, threads: int, images: int = 40) -> Data:
    """Phantoms, and one batch of them with a lesion in every image, whose whole canvas of `size` counts as image."""
    source, config = phantom_loader(size, batch_size, threads, images)
    batches = loader.train_batches(source, dataclasses.replace(config, lesion_share=1.0), seed=0)
    batch = next(batch for batch in batches if batch["gt_valid"].any(1).all())
    batches.close()
    batch["image_size"][:] = size
    return Data(source, config, {key: np.asarray(value) for key, value in batch.items()})


def phantom_batches(size: tuple[int, int], batch_size: int, count: int) -> list[dict[str, np.ndarray]]:
    """The first `count` batches of an epoch of phantoms."""
    batches = loader.train_batches(*phantom_loader(size, batch_size, threads=2, images=max(40, 4 * batch_size)), seed=0)
    try:
        return [{key: np.asarray(value) for key, value in next(batches).items()} for _ in range(count)]
    finally:
        batches.close()


class Subject:
    """A detector to time: `step()` is one update, `infer()` one batch of detections; both return without waiting.

    The programs are compiled on construction: see compile_seconds, train_cost, inference_cost, step_memory.
    """

    def __init__(self, config: Any, data: Data, mesh: Mesh, params: Params | None = None):
        model = trainable(detectors.build(config))
        self.mesh, self.training = mesh, gradient(model, recipe_of(config), mesh)
        program = on_mesh(self.training, mesh)
        self.batch = meshes.put_batch(data.batch, mesh)
        self.params = meshes.place(model.init(jax.random.key(0)) if params is None else params, mesh)
        self.state: TrainState = program.init(meshes.place(self.params, mesh))  # a copy, as the step takes its buffers
        start = time.perf_counter()
        lowered = program.update.lower(self.state, {}, self.batch)
        self.compiled_update = lowered.compile()
        middle = time.perf_counter()
        lowered_predict = prediction.on_mesh(model, mesh).lower(self.params, {}, self.batch)
        self.compiled_predict = lowered_predict.compile()
        self.compile_seconds = {"train": middle - start, "inference": time.perf_counter() - middle}
        self.train_cost, self.inference_cost = lowered.cost_analysis(), lowered_predict.cost_analysis()
        self.step_memory = measure.program_bytes(self.compiled_update)
        self.metrics: dict[str, jax.Array] = {}

    def step(self) -> Any:
        self.state, self.metrics = self.compiled_update(self.state, {}, self.batch)
        return self.state, self.metrics

    def infer(self) -> Any:
        return self.compiled_predict(self.params, {}, self.batch)[0]


def run_loop(subject: Subject, data: Data, steps: int) -> dict[str, Any]:
    """Train with the actual loop and loader: share of the time spent waiting for data, and compilations of the step.

    The first `steps` steps warm up, the next `steps` count.
    """
    batches = loader.train_batches(data.source, data.config, seed=1)
    lesion_free = [0]

    class Watched:
        def __next__(self):
            batch = next(batches)
            lesion_free[0] += int((~batch["gt_valid"].any(1)).sum())
            return batch

        get_state, set_state = batches.get_state, batches.set_state

    with tempfile.TemporaryDirectory() as folder:
        try:
            result = train(
                subject.training,
                workdir=folder,
                data_iterator=Watched(),
                total_steps=2 * steps,
                mesh=subject.mesh,
                initial_params=subject.params,
                intervals=Intervals(log=steps, checkpoint=0),
                tensorboard=False,
                title="real loop",
            )
        finally:
            batches.close()
        last = read_metrics(Path(folder) / "metrics.jsonl")[-1]
    height, width = data.config.buckets[0]
    return {
        "steps": steps,
        "data_wait_share": last["time/data_wait_share"],
        "images_per_second": last["time/images_per_second"],
        "compilations": {f"{height}x{width}": result.compilations},
        "lesion_free_images": lesion_free[0],
        "loss": last["train/loss"],
    }
