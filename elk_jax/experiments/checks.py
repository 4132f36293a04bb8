"""Checks before the first stage of an experiment runs: data, weights and patients."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from elk_jax.data.sources import checks
from elk_jax.data.sources.open import drawn
from elk_jax.errors import UserError
from elk_jax.experiments import needs, patients
from elk_jax.experiments.parse import kind_of
from elk_jax.experiments.patients import Look
from elk_jax.tasks import folds, private
from elk_jax.tasks.run import Experiment, Run
from elk_jax.tasks.stages import CombineStage, EvaluateModelsStage, Stage, TrainStage
from elk_jax.weights import model_folder


def check_inputs(run: Run, names: Sequence[str]) -> None:
    """Raise UserError for the first of the stages `names` that cannot run with the given data and weights.

    names: the stages that will run, in order. Their own output (painted images, weights) does not exist yet.
    """
    experiment, look = run.experiment, functools.cache(functools.partial(patients.look, run))
    for name in names:
        stage = experiment.stages[name]
        _check_weights(run, stage, names)
        kind_of(stage).check(run, stage, experiment.recipe_of(stage), names)
        if isinstance(stage, EvaluateModelsStage):
            private.check_described(experiment, stage, stage.on, "split", "evaluate on another split, such as test")
        for source, split in stage.data():
            if source not in experiment.writers:
                look(source, split)
                _check_files(run, source, split)
        for data, of, _ in needs.of_stage(experiment, stage):
            if of == "pairs":
                _check_files(run, *data, images=2)
        for split in kind_of(stage).needs_lesions:
            _check_lesions(experiment, stage, split, look)
        patients.check_folds(experiment, stage, look)
        recipe = experiment.recipe_of(stage)
        if isinstance(stage, TrainStage) and folds.count_of(stage, recipe) and run.is_listed(stage.validate_on):
            folds.deal(run, stage, recipe, kind_of(stage).lacks)
        patients.check_apart(experiment, stage, look)


def _check_files(run: Run, source: str, split: str, images: int = 1) -> None:
    """Check that the image files exist, for the given number of images per record. Phantoms have none; with "skip"
    every image is decoded in the stage that reads it."""
    if run.experiment.on_error == "stop" and drawn(run.spec(source)) is None:
        run.open(source, split, images)


def _check_weights(run: Run, stage: Stage, names: Sequence[str]) -> None:
    """Check that the models that a stage reads exist or are trained before it. Only an evaluation, or a stage that
    combines models, can read an ensemble."""
    for setting, model in stage.named_models().items():
        before = run.experiment.stages.get(model)
        if before is None or isinstance(stage, CombineStage):  # a combining stage checks its members itself
            continue
        combines = isinstance(before, CombineStage)
        if combines or folds.makes_ensemble(before, run.experiment.recipe_of(before)):
            what = f"'{model}' will be an ensemble, but stage {stage.name} needs a single model"
            todo = "name one of its members" if combines else "set refit=True in its recipe, or name another"
            raise UserError(what, where=f"config.stages.{stage.name}.{setting}", todo=todo)
    folders = {model: run.folder / model / "model" for model in stage.trained()}
    folders |= {model: run.model_folder(model) for model in stage.named_models().values()}
    for model, folder in folders.items():
        if model not in names and not (folder / model_folder.CONFIG).is_file():
            raise model_folder.no_model(folder)


def _check_lesions(experiment: Experiment, stage: Stage, split: str, look: Look) -> None:
    """Check that some image of the stage's data in this split has a lesion; for painted images this is not known
    yet."""
    sources = [data.source for data in stage.data() if data.split == split]
    if any(source in experiment.writers for source in sources):
        return
    counts = [look(source, split).lesions for source in sources]
    if not any(count is None or count > 0 for count in counts):
        raise checks.no_lesions(split, f"stage {stage.name}, data {', '.join(sources)}")
