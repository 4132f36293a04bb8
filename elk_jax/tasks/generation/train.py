"""Train a generator of patches by class. The stage leaves `model/` (model.py), and `pictures/` of its progress.

Shapes: N images, Q classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from typing import Any

import jax
import numpy as np

from elk_jax.data.batches import labelled
from elk_jax.data.batches.labelled import Labelled
from elk_jax.data.patches import whole_images
from elk_jax.data.sources.labels import class_counts, image_labels
from elk_jax.data.sources.source import ImageSource, subset
from elk_jax.errors import UserError
from elk_jax.evaluation import appearance, spectrum
from elk_jax.progress import progress_bar
from elk_jax.spread import spread
from elk_jax.tasks import private, sampling, training
from elk_jax.tasks.generation.model import ARCHITECTURE, Description, check_names, trainable
from elk_jax.tasks.generation.recipe import GenerationRecipe, TrainGeneratorStage
from elk_jax.tasks.labelled import openly, privately
from elk_jax.tasks.private import Learned
from elk_jax.tasks.run import Run, skipped_images
from elk_jax.tasks.stages import PrivateTrainStage
from elk_jax.tasks.task import Summary, Workload
from elk_jax.training.model import GENERATOR, Game, Model, Params
from elk_jax.training.step.private_adversarial import judge
from elk_jax.weights import model_folder

SHOWN = 8
"""Number of patches per class in the picture grid."""
LEAST = 2
"""Least number of validation images for a distance."""


def check_train(run: Run, stage: TrainGeneratorStage, recipe: GenerationRecipe, names: Collection[str]) -> None:
    """See `check_data`."""
    check_data(run, stage, recipe, trainable(recipe.model, recipe.objective, recipe.augmentation))


def check_data(run: Run, stage: PrivateTrainStage, recipe: Any, model: Model | Game) -> None:
    """UserError for images without a class, classes without images, different sizes, and units of a private training
    that are not named or that its public images show.

    recipe: has `mixed_sizes`, and a `model` with `classes`.
    """
    private.check_public(stage, recipe)
    train = run.list(stage.train_on, "train")
    check_classes(train, recipe.model.classes, f"config.{stage.recipe}.model.classes")
    private.check_start(run, stage, recipe)
    training.check_model(stage, recipe, model, train.infos)
    validation = run.list(stage.validate_on, "val")
    if len(validation) < LEAST:
        what = f"{len(validation)} validation images"
        raise UserError(what, where=f"{stage.validate_on}, split 'val'", todo=f"give at least {LEAST}")
    if validation.classes != train.classes:
        what = f"{', '.join(train.classes)} for training, but {', '.join(validation.classes)} for validation"
        raise UserError(what, where=f"config.stages.{stage.name}.validate_on", todo="name data of the same classes")
    for source in (train, validation):
        image_labels(source)
        if not recipe.mixed_sizes:
            check_sizes(source, f"config.{stage.recipe}.mixed_sizes")


def check_classes(source: ImageSource, classes: int, where: str) -> None:
    """UserError unless every image of the source has one of so many classes, and every class an image."""
    check_names(source.classes, source.name)
    counts = np.bincount(image_labels(source), minlength=len(source.classes))
    if classes != len(source.classes):
        what = f"{classes} in the model, but the data have {', '.join(source.classes)}"
        raise UserError(what, where=where, todo=f"set {len(source.classes)}")
    for name, count in zip(source.classes, counts):
        if not count:
            what = f"no training image of the class {name}"
            raise UserError(what, where=source.name, todo="leave the class out, or give images of it")


def check_sizes(source: ImageSource, setting: str = "") -> None:
    """UserError unless all images are squares of one size; files that cannot be read have none.

    setting: the one that scales them, if there is one.
    """
    sized = [info for info in source.infos if info.width and info.height]
    for info in sized:
        first = sized[0]
        if info.width != info.height or info.width != first.width:
            kind = f"{info.width} x {info.height} px"
            others = "not a square" if info is first else f"others {first.width} x {first.height}"
            raise UserError(
                f"an image of {kind}, {others}",
                where=f"{source.name}, image {info.image_id}",
                todo="cut patches of one size" + (f", or scale them: --{setting}=True" if setting else ""),
            )


def train(run: Run, stage: TrainGeneratorStage, recipe: GenerationRecipe) -> Summary:
    """Train a generator and write `<stage>/model/`."""
    # ---- Data ----------------------------------------------------------------------------------------------------
    config = recipe.model
    images, of_val = open_patches(run, stage, config.size, recipe.validation_images)
    game = trainable(config, recipe.objective, recipe.augmentation)
    shapes = jax.eval_shape(game.init, jax.random.key(0))
    sizes = ", ".join(f"{player} {training.parameter_count(shapes[player]):,}" for player in shapes)
    run.say(f"  parameters: {sizes}")
    if recipe.privacy:
        seeing = judge(game, game.init(jax.random.key(run.seed))[GENERATOR])
        learned = privately(run, stage, recipe, seeing, images, recipe.images)
    else:
        learned = openly(run, stage, images, recipe.images)

    # ---- Train ---------------------------------------------------------------------------------------------------
    sample = sampling.compile_sampler(game, run.mesh)
    result = training.train(
        run,
        stage,
        recipe,
        game,
        learned.batches,
        initial=None,
        evaluate=_validating(sample, of_val, recipe, run.seed),
        draw=drawing(sample, config.classes, run.seed),
        best_metric="distance",
        best_mode="min",
        settings={name: asdict(getattr(recipe, name)) for name in ("model", "objective", "augmentation")},
        validation=of_val.source.infos,
        protection=learned.protection,
    )

    # ---- The model -----------------------------------------------------------------------------------------------
    params, trained = training.kept_weights(
        run, stage, result, recipe.choose, images.source, learned.protection, learned.public
    )
    if run.is_main:
        description = Description(ARCHITECTURE, config, tuple(images.source.classes), trained)
        model_folder.save_params(run.folder / stage.name / "model", params, description)
    return summary(run, stage, learned, images, of_val) | training.outcome(result)


def open_patches(run: Run, stage: PrivateTrainStage, size: int, validated: int) -> tuple[Labelled, Labelled]:
    """(training patches, validation patches for measuring progress) of `size`. validated: their number, spread over the
    split; 0: all."""
    found, validation = run.open(stage.train_on, "train"), run.open(stage.validate_on, "val")
    few = subset(validation, spread(len(validation), validated or len(validation)))
    return Labelled(found, image_labels(found), size), Labelled(few, image_labels(few), size)


def summary(run: Run, stage: PrivateTrainStage, learned: Learned, images: Labelled, of_val: Labelled) -> Summary:
    """The training and validation data of a generator, without the parts that a private training withholds."""
    shown = [of_val.source] if private.is_withheld(run.experiment, stage) else [images.source, of_val.source]
    return {
        "kind": "train",
        "data": {**learned.counts, "validation": class_counts(of_val.source)},
        "skipped": skipped_images(*shown),
    }


def workload(stage: TrainGeneratorStage, recipe: GenerationRecipe, batch_size: int | None) -> Workload:
    """The training of a generator and its discriminator."""
    count, config = batch_size or recipe.images.batch_size, recipe.model
    blank = labelled.blank_batch(count, config.size)
    drawn = {"label": np.zeros(count, np.int32), "seed": sampling.seeds(0, range(count))}
    name = f"{config.size}x{config.size}"
    game = trainable(config, recipe.objective, recipe.augmentation)
    return Workload(game, count, {name: {**blank}}, {name: drawn})


Sampler = sampling.Sampler


def _validating(
    sample: Sampler, images: Labelled, recipe: GenerationRecipe, seed: int
) -> Callable[[Params, int], dict[str, float]]:
    """Distances of synthetic patches from the validation images: as many of each class, always from the same noise."""
    real = whole_images(images.source, images.size, progress_bar("  reading"))[..., 0]
    labels = images.labels.astype(np.int32)
    size = recipe.images.batch_size

    def evaluate(params: Params, step: int) -> dict[str, float]:
        made = drawn(sample, params, labels, np.arange(len(labels)), seed, size)
        return {
            "distance": appearance.distance(real, made),
            "checkerboard": float(np.nan_to_num(spectrum.checkerboard(list(made)))),  # uniform patches have none
        }

    return evaluate


def drawing(sample: Sampler, classes: int, seed: int) -> Callable[[Params, int], dict[str, np.ndarray]]:
    """A row of patches for each class, always from the same noise for all classes."""
    numbers = np.arange(SHOWN)

    def draw(params: Params, step: int) -> dict[str, np.ndarray]:
        rows: list[np.ndarray] = []
        for label in range(classes):
            made = drawn(sample, params, np.full(SHOWN, label, np.int32), numbers, seed, SHOWN)
            rows.append(made[..., None])
        return {"made": sampling.grid(rows)}

    return draw


def drawn(
    sample: Sampler, params: Params, labels: np.ndarray, numbers: np.ndarray | Sequence[int], seed: int, batch: int
) -> np.ndarray:
    """Patches [N, S, S] of the classes `labels` [N], each a function of (seed, its number), `batch` at once."""
    found = []
    for first in range(0, len(labels), batch):
        rows = np.minimum(np.arange(first, first + batch), len(labels) - 1)  # one compilation
        seeds = sampling.seeds(seed, np.asarray(numbers)[rows])
        made = sample(params, {"seed": seeds, "label": np.asarray(labels, np.int32)[rows]})
        found.append(made[: len(labels) - first, ..., 0])
    return np.concatenate(found)
