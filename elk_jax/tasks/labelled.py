"""Training data from labelled images: batches of all images, or of the units that a private training protects."""

from __future__ import annotations

from dataclasses import replace

import jax

from elk_jax.data.batches import labelled
from elk_jax.data.batches.labelled import Labelled, LabelledConfig
from elk_jax.data.sources.labels import class_counts, image_labels
from elk_jax.tasks import private
from elk_jax.tasks.private import Learned, Public
from elk_jax.tasks.run import Run
from elk_jax.tasks.stages import PrivateTrainStage
from elk_jax.training.model import Model
from elk_jax.training.recipe import TrainingRecipe


def openly(run: Run, stage: PrivateTrainStage, images: Labelled, settings: LabelledConfig) -> Learned:
    """Every image once an epoch."""
    counts = class_counts(images.source)
    run.say(f"  train: {', '.join(f'{value} {key}' for key, value in counts.items())}")
    batches = labelled.train_batches(images, settings, run.seed, jax.process_index(), jax.process_count())
    return private.openly(run, stage, batches, counts)


def privately(
    run: Run, stage: PrivateTrainStage, recipe: TrainingRecipe, model: Model, images: Labelled, settings: LabelledConfig
) -> Learned:
    """Batches of units for every noisy gradient, together with public images if there are any.

    model: whose loss reads the images. settings: `batch_size` is the expected number of units of a step, divided among
    its noisy gradients.
    """
    public, part = None, replace(settings, batch_size=settings.batch_size // recipe.releases)
    if stage.public:
        data = run.open(stage.public, "train")
        private.check_classes(stage, images.source.classes, data.classes)
        beside = Labelled(data, image_labels(data), images.size)
        make = labelled.shuffled(beside, part, run.seed, jax.process_index(), jax.process_count())
        public = Public(data, make, class_counts(data), beside.records())
    return private.privately(
        run,
        stage,
        recipe,
        model,
        example=labelled.Augmented(images, settings),
        infos=images.source.infos,
        batch_size=part.batch_size,
        reading=settings,
        public=public,
        identity=images.records(),
    )
