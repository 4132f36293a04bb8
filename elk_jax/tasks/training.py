"""The training that a recipe describes: its keys as the loop's arguments, the same for every task."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from elk_jax import fields
from elk_jax.data.batches.stream import Stream
from elk_jax.images.schema import ImageInfo
from elk_jax.tasks import trained
from elk_jax.tasks.run import Run, model_folder
from elk_jax.training import loop
from elk_jax.training import mesh as meshes
from elk_jax.training.loop import Evaluation, Intervals, TrainResult
from elk_jax.training.model import Model, Params
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.step.gradient import gradient

VALIDATION_DRAWS = 4
"""Noises and time steps at which every validation example of a diffusion model is looked at."""


def train(
    run: Run,
    name: str,
    task: Model,
    batches: Stream,
    *,
    initial: Params | None,
    evaluate: Callable[[Params, int], dict[str, float]],
    best_metric: str,
    best_mode: Literal["max", "min"] = "max",
    draw: Callable[[Params, int], dict[str, np.ndarray]] | None = None,
    model: Mapping[str, Any],
    validation: Sequence[ImageInfo],
    buckets: int = 1,
) -> TrainResult:
    """Train stage `name` by its recipe; reading ahead stops with it, however it ends. See `training.loop.train`.

    model, validation: the model as plain values, and the images that its checkpoints are chosen on; a checkpoint of
    others is not gone on from.
    """
    recipe = training_recipe(run.config[run.config.stages[name].recipe])
    try:
        return loop.train(
            gradient(task, recipe, run.mesh, run.config.seed),
            workdir=run.folder / name,
            data_iterator=batches,
            total_steps=recipe.steps,
            mesh=run.mesh,
            initial_params=initial,
            intervals=Intervals(recipe.log_every, recipe.checkpoint_every, recipe.eval_every),
            evaluation=Evaluation(evaluate, best_metric, best_mode, draw),
            identity={"model": _hash(model), "validation split": _hash(_split(validation))},
            buckets=buckets,
            title=name,
        )
    finally:
        batches.close()


def training_recipe(recipe: Mapping[str, Any]) -> TrainingRecipe:
    """What every recipe says, of one of a task. UserError for a value that cannot be."""
    names = [field.name for field in dataclasses.fields(TrainingRecipe)]
    return fields.build(TrainingRecipe, {name: recipe[name] for name in names}, "recipe")


def fixed_loss(
    task: Model, shown: Sequence[Mapping[str, Any]], mesh: jax.sharding.Mesh
) -> Callable[[Params, int], dict[str, float]]:
    """The loss of a diffusion model on the batches `shown`, at the same noises and time steps every time."""
    map_images, constants = meshes.shard_map_images(mesh), meshes.place_constants(task.constants, mesh)
    loss = lambda params, constants, batch, rng: task.loss(params, constants, batch, rng, map_images)[0]
    measure = jax.jit(loss, out_shardings=meshes.replicated(mesh))

    def evaluate(params: Params, step: int) -> dict[str, float]:
        losses, counts = [], []
        for number, batch in enumerate(shown):
            placed = meshes.put_batch(_share(batch), mesh)
            for draw in range(VALIDATION_DRAWS):
                losses.append(measure(params, constants, placed, jax.random.fold_in(jax.random.key(draw), number)))
                counts.append(float(batch["valid"].sum()))
        return {"loss": float(np.average(np.asarray(jax.device_get(losses)), weights=counts))}

    return evaluate


def kept(
    run: Run, name: str, result: TrainResult, infos: Sequence[ImageInfo], learned_from: Collection[str] = ()
) -> tuple[Params, dict[str, Any]]:
    """(the parameters that stage `name` keeps, on the host; what model.json says of their training, as `trained`).

    The best, or the last where the recipe says so (`choose`). For all processes to call: they may hold a part each.
    infos: of the training images. learned_from: marks of the patients behind those that are painted.
    """
    stage = run.config.stages[name]
    recipe = run.config[stage.recipe]
    best = recipe.get("choose", "best") == "best"
    params, step = (result.best_params, result.best_step) if best else (result.params, recipe.steps)
    patients = {trained.mark(patient) for patient in trained.named_patients(infos)} | set(learned_from)
    if stage.init_from:
        patients |= trained.patient_marks(model_folder(run, stage.init_from))
    said = {"step": step, "on": list(stage.train_on), "init_from": stage.init_from, "patients": sorted(patients)}
    return meshes.on_host(params, run.mesh), said


def outcome(result: TrainResult) -> dict[str, Any]:
    """What the summary of a train stage says of the training itself. best_step: on the validation data."""
    return {
        "parameters": parameter_count(result.params),
        "best_step": result.best_step,
        "best": dict(result.best_metrics),
        "seconds_before": result.seconds_before,
    }


def parameter_count(params: Params) -> int:
    return int(sum(np.prod(np.shape(leaf)) for leaf in jax.tree.leaves(params)))


def _split(infos: Sequence[ImageInfo]) -> list:
    return [
        [info.image_id, info.patient_id, info.boxes.tolist(), info.labels.tolist(), info.ignore.tolist()]
        for info in infos
    ]


def _share(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """This process's part of a batch that all of them hold."""
    part = len(batch["valid"]) // jax.process_count()
    rows = slice(jax.process_index() * part, (jax.process_index() + 1) * part)
    return {key: value[rows] for key, value in batch.items()}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
