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
from configs import base
from elk_jax.data.batches import detection as loader
from elk_jax.data.sources import source as sources
from elk_jax.detection.faster_rcnn_config import FasterRCNNConfig
from elk_jax.errors import UserError
from elk_jax.tasks.detection import settings as detection
from elk_jax.training import mesh as meshes
from elk_jax.training import optimizer as optimizers
from elk_jax.training import schedules
from elk_jax.training.loop import train
from elk_jax.training.model import Params, Task
from elk_jax.training.state import TrainState, create
from elk_jax.training.step.gradient import gradient_step
from elk_jax.training.writer import read_metrics

OPTIMIZER = {
    "name": "sgd",
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "clip_norm": 0.0,
    "frozen": (r"backbone/stem", r"backbone/res2"),  # torchvision's default: three trainable stages
}
SCHEDULE = {"name": "warmup_multistep", "base": 1e-4, "warmup_steps": 0}


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


def phantom_data(size: tuple[int, int], batch_size: int, threads: int, images: int = 40) -> Data:
    """Phantoms of the shorter side, loaded as in the recipes; in the fixed batch all of `size` counts as image."""
    source = sources.open_source(f"phantom:size={min(size)},count={images},seed=5", "train")
    canvas = tuple(-(-side // 32) * 32 for side in size)
    recipe = base.detector("quick")["loader"]
    config = detection.loader_config({**recipe, "batch_size": batch_size, "buckets": (canvas,), "threads": threads})
    batches = loader.train_batches(source, config, seed=0)
    batch = next(batch for batch in batches if batch["gt_valid"].any(1).all())
    batches.close()
    batch["image_size"][:] = size
    return Data(source, config, {key: np.asarray(value) for key, value in batch.items()})


class Subject:
    """A detector to time: `step()` is one update, `infer()` one batch of detections; both return without waiting.

    The programs are compiled on construction: see compile_seconds, train_cost, inference_cost, step_memory.
    """

    def __init__(self, config: FasterRCNNConfig, data: Data, mesh: Mesh, params: Params | None = None):
        self.task: Task = detection.build_task(config, mesh)
        self.mesh = mesh
        self.batch = meshes.put_batch(data.batch, mesh)
        abstract = jax.eval_shape(self.task.init, jax.random.key(0))
        rate = schedules.build(SCHEDULE, 10**6)
        tx = optimizers.build(OPTIMIZER, rate, abstract, self.task.frozen)
        self.params = meshes.place(self.task.init(jax.random.key(0)) if params is None else params, mesh)
        state = create(self.params, tx, ema=False)
        layout = meshes.tree_shardings(state, mesh)
        self.state: TrainState = meshes.place(state, mesh)  # with its own buffers, which the step donates
        self.update = gradient_step(
            self.task.loss,
            tx,
            schedule=rate,
            trainable=optimizers.trainable_mask(abstract, OPTIMIZER, self.task.frozen),
            out_shardings=(layout, meshes.replicated(mesh)),
        )
        start = time.perf_counter()
        lowered = self.update.lower(self.state, self.batch)
        self.compiled_update = lowered.compile()
        middle = time.perf_counter()
        lowered_predict = jax.jit(self.task.predict).lower(self.params, self.batch)
        self.compiled_predict = lowered_predict.compile()
        self.compile_seconds = {"train": middle - start, "inference": time.perf_counter() - middle}
        self.train_cost, self.inference_cost = lowered.cost_analysis(), lowered_predict.cost_analysis()
        self.step_memory = measure.program_bytes(self.compiled_update)
        self.metrics: dict[str, jax.Array] = {}

    def step(self) -> Any:
        self.state, self.metrics = self.compiled_update(self.state, self.batch)
        return self.state, self.metrics

    def infer(self) -> Any:
        return self.compiled_predict(self.params, self.batch)


class CountingBuilder:
    """A `step_builder` for the loop that returns the compiled step, and counts the compilations of the loop."""

    def __init__(self, subject: Subject):
        self.subject, self.compilations = subject, 0

    def __call__(self, *_: Any, **__: Any) -> CountingBuilder:
        return self

    def lower(self, state: TrainState, batch: Any) -> Any:
        self.compilations += 1
        return self if self.compilations == 1 else self.subject.update.lower(state, batch)

    def compile(self) -> Any:
        return self.subject.compiled_update


def run_loop(subject: Subject, data: Data, steps: int) -> dict[str, Any]:
    """Train with the real loop and loader: share of the time spent waiting for data, and compilations of the step.

    The first `steps` steps warm up, the next `steps` count.
    """
    builder = CountingBuilder(subject)
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
            train(
                subject.task,
                workdir=folder,
                data_iterator=Watched(),
                total_steps=2 * steps,
                optimizer=OPTIMIZER,
                schedule=SCHEDULE,
                mesh=subject.mesh,
                initial_params=subject.params,
                log_every=steps,
                checkpoint_every=10**9,
                step_builder=builder,
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
        "compilations": {f"{height}x{width}": builder.compilations},
        "lesion_free_images": lesion_free[0],
        "loss": last["train/loss"],
    }
