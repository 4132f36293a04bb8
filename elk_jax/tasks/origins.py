"""Where what a stage knows of patients comes from: data sources and models, through all stages before it."""

from __future__ import annotations

from elk_jax.tasks import folds
from elk_jax.tasks.run import Experiment
from elk_jax.tasks.stages import TrainStage


def of_stage(experiment: Experiment, name: str) -> list[tuple[str, bool]]:
    """(data source or model folder, whether it is a folder) that a train or synthesis stage goes back to."""
    origin = experiment.stages[name].origin()
    found = [place for source in origin.sources for place in of_source(experiment, source)]
    return found + [place for model in origin.models for place in of_model(experiment, model)]


def of_source(experiment: Experiment, source: str) -> list[tuple[str, bool]]:
    """As `of_stage`, of a data source: itself, or what the stage goes back to that writes it."""
    writer = experiment.writers.get(source)
    return of_stage(experiment, writer) if writer else [(source, False)]


def of_model(experiment: Experiment, model: str) -> list[tuple[str, bool]]:
    """As `of_stage`, of a model: a stage, or a model folder from outside the run."""
    return of_stage(experiment, model) if model in experiment.stages else [(model, True)]


def training_sources(experiment: Experiment, name: str) -> list[str]:
    """The data sources, each once, whose training patients reached a train or synthesis stage."""
    return list(dict.fromkeys(origin for origin, is_folder in of_stage(experiment, name) if not is_folder))


def refitted_on(experiment: Experiment, name: str) -> list[str]:
    """The data sources, each once, whose validation patients reached the models behind a stage: folds (`tasks.folds`)
    train on them in the end. The stage's own folds do not count: it holds each patient out once."""
    origin = experiment.stages[name].origin()
    writers = [experiment.writers.get(source, "") for source in origin.sources]
    behind = [one for one in (*origin.models, *writers) if one in experiment.stages]
    found = [source for one in behind for source in (*refitted_on(experiment, one), *dealt(experiment, one))]
    return list(dict.fromkeys(found))


def dealt(experiment: Experiment, name: str) -> list[str]:
    """The data source whose validation patients a stage trains on in the end, by folds of its own; [] without them."""
    stage = experiment.stages[name]
    if not isinstance(stage, TrainStage) or not folds.count_of(stage, experiment.recipe_of(stage)):
        return []
    return [stage.validate_on]


def foreign_models(experiment: Experiment, name: str) -> list[str]:
    """The model folders from outside the run, each once, whose training patients reached a stage."""
    return list(dict.fromkeys(origin for origin, is_folder in of_stage(experiment, name) if is_folder))
