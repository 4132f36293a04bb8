"""Train a denoiser of patches by class. The stage leaves `model/` (generation), and `pictures/` of its progress.

Shapes: N images, Q classes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, fields
from typing import Any

import jax
import numpy as np

from elk_jax.data.batches import labelled
from elk_jax.data.batches.labelled import Labelled
from elk_jax.diffusion import patches
from elk_jax.diffusion.patches import Strengths
from elk_jax.errors import UserError
from elk_jax.spread import spread
from elk_jax.tasks import sampling, training
from elk_jax.tasks.denoising.recipe import DenoisingRecipe, TrainDenoiserStage
from elk_jax.tasks.generation.model import DENOISER, Denoiser, DenoiserDescription, denoising, load
from elk_jax.tasks.generation.recipe import Drawing
from elk_jax.tasks.generation.train import check_data, drawing, open_patches, summary
from elk_jax.tasks.labelled import openly, privately
from elk_jax.tasks.run import Run
from elk_jax.tasks.task import Summary, Workload
from elk_jax.training.model import Model, Params
from elk_jax.weights import model_folder

MEASURED = 256
"""Number of images whose waves are measured."""
LEAST_DEVIATION = 1e-3
"""Least strength of a wave: a quarter of a grey level of 255, as in uniform images."""
CONVENTIONS = ("attention_head_dim", "norm_num_groups", "norm_eps")
"""Settings of a U-Net that do not affect shapes."""


def check_start(run: Run, stage: TrainDenoiserStage, recipe: DenoisingRecipe, names: Collection[str]) -> None:
    """UserError for unsuitable training data (`generation.train.check_data`), and for weights of other models."""
    check_data(run, stage, recipe, trainable(recipe))
    if stage.init_from and stage.init_from not in names:
        initial(run, stage, recipe)


def trainable(recipe: DenoisingRecipe, strengths: Strengths | None = None) -> Model:
    """The model of a recipe. strengths: as in `PatchNetwork.config`."""
    return denoising(Denoiser(model=recipe.model.config(strengths), **drawing_of(recipe)), recipe.gamma)


def drawing_of(recipe: DenoisingRecipe) -> dict[str, Any]:
    """The fields of `Drawing` by name."""
    return {field.name: getattr(recipe, field.name) for field in fields(Drawing)}


def initial(run: Run, stage: TrainDenoiserStage, recipe: DenoisingRecipe) -> tuple[Params, Strengths]:
    """(weights, strengths of waves) of the denoiser that the stage starts from. UserError if the weights have another
    meaning under the recipe."""
    folder = run.model_folder(stage.init_from)
    params, before = load(folder)
    if not isinstance(before, DenoiserDescription):
        todo = "name a model folder of such a stage, or leave it empty"
        raise UserError(f"a model of '{before.architecture}', not a denoiser", where=folder, todo=todo)
    section, network = f"{stage.recipe}.model", recipe.model.config().unet
    model_folder.check_same(before.model, recipe.model, ("patch", "classes"), folder, section)
    model_folder.check_same(before.model.unet, network, CONVENTIONS, folder, section)
    model_folder.check_same(before.noise, recipe.noise, ("prediction", "steps"), folder, f"{stage.recipe}.noise")
    shapes = jax.eval_shape(trainable(recipe).init, jax.random.key(0))
    return model_folder.restore_into(shapes, params, where=folder), before.model.strengths


def measure_strengths(images: Labelled, patch: int) -> Strengths:
    """Strengths of the waves of blocks, over images spread over the collection."""
    some = np.stack([images.example(index)["image"] for index in spread(len(images), MEASURED)])
    mean = float(some.mean(dtype=np.float64))
    side = images.size // patch
    blocks = (some - mean).reshape(-1, side, patch, side, patch).transpose(0, 1, 3, 2, 4)
    found = blocks.reshape(-1, side, side, patch**2) @ patches.basis(patch)
    deviations = np.maximum(np.sqrt(np.square(found).mean(axis=(0, 1, 2))), LEAST_DEVIATION)
    return Strengths(round(mean, 6), tuple(round(float(value), 6) for value in deviations))


def train(run: Run, stage: TrainDenoiserStage, recipe: DenoisingRecipe) -> Summary:
    """Train a denoiser and write `<stage>/model/`."""
    # ---- Data ----------------------------------------------------------------------------------------------------
    images, of_val = open_patches(run, stage, recipe.model.size, recipe.validation_images)
    if stage.init_from:
        run.say(f"  starts from {run.model_folder(stage.init_from)}")
        weights, strengths = initial(run, stage, recipe)
    else:  # a private training publishes only the number of units of its patches
        weights, strengths = None, measure_strengths(of_val if recipe.privacy else images, recipe.model.patch)
    config, model = recipe.model.config(strengths), trainable(recipe, strengths)
    count = training.parameter_count(jax.eval_shape(model.init, jax.random.key(0)))
    run.say(f"  parameters: {count:,}")
    if recipe.privacy:
        learned = privately(run, stage, recipe, model, images, recipe.images)
    else:
        learned = openly(run, stage, images, recipe.images)

    # ---- Train ---------------------------------------------------------------------------------------------------
    result = training.train(
        run,
        stage,
        recipe,
        model,
        learned.batches,
        initial=weights,
        evaluate=sampling.fixed_loss(model, list(labelled.eval_batches(of_val, recipe.images)), run.mesh),
        draw=drawing(sampling.compile_sampler(model, run.mesh), config.classes, run.seed),
        best_metric="loss",
        best_mode="min",
        settings={"model": asdict(config), "noise": asdict(recipe.noise)},
        validation=of_val.source.infos,
        protection=learned.protection,
    )

    # ---- The model -----------------------------------------------------------------------------------------------
    params, trained = training.kept_weights(
        run, stage, result, recipe.choose, images.source, learned.protection, learned.public
    )
    if run.is_main:
        description = DenoiserDescription(
            architecture=DENOISER,
            model=config,
            classes=tuple(images.source.classes),
            trained=trained,
            **drawing_of(recipe),
        )
        model_folder.save_params(run.folder / stage.name / "model", params, description)
    return summary(run, stage, learned, images, of_val) | training.outcome(result)


def workload(stage: TrainDenoiserStage, recipe: DenoisingRecipe, batch_size: int | None) -> Workload:
    """The training of a denoiser."""
    count, size = batch_size or recipe.images.batch_size, recipe.model.size
    drawn = {"label": np.zeros(count, np.int32), "seed": sampling.seeds(0, range(count))}
    name = f"{size}x{size}"
    return Workload(trainable(recipe), count, {name: {**labelled.blank_batch(count, size)}}, {name: drawn})
