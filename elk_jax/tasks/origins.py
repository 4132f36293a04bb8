"""The origins of what a stage knows about patients: data sources and models, traced through all earlier stages."""

from __future__ import annotations

from elk_jax.tasks import folds
from elk_jax.tasks.run import Experiment
from elk_jax.tasks.stages import Stage, TrainStage


def of_stage(experiment: Experiment, name: str, bare: bool = False) -> list[tuple[str, bool]]:
    """The origins of a train or synthesis stage: (data source or model folder, whether it is a folder).

    bare: without data that a stage in between learned from with protection, as its promise covers everything derived
    from it.
    """
    stage = experiment.stages[name]
    origin = stage.origin()
    guarded: tuple[str, ...] = ()
    if bare and isinstance(stage, TrainStage) and stage.protects(experiment.recipe_of(stage)):
        guarded = stage.train_on
    sources = [source for source in origin.sources if source not in guarded]
    # a stage protects the images of `train_on`, but not the origins of generated ones
    found = [place for source in sources for place in of_source(experiment, source, bare)]
    found += [place for source in guarded for place in behind(experiment, source, bare)]
    return found + [place for model in origin.models for place in of_model(experiment, model, bare)]


def of_source(experiment: Experiment, source: str, bare: bool = False) -> list[tuple[str, bool]]:
    """As `of_stage`, for a data source: itself or the origins of its writer, and what it is made from."""
    own = [] if source in experiment.writers else [(source, False)]
    return own + behind(experiment, source, bare)


def behind(experiment: Experiment, source: str, bare: bool = False) -> list[tuple[str, bool]]:
    """As `of_source`, but only the origins of generated images; none for original images."""
    if source in experiment.writers:
        return of_stage(experiment, experiment.writers[source], bare)
    return [place for other in experiment.data[source].made_from for place in of_source(experiment, other, bare)]


def of_painter(experiment: Experiment, source: str) -> list[tuple[str, bool]]:
    """As `of_source`, for the models that made a data source and the origins of its canvases, but without the patients
    of the canvases, whom the painted images name."""
    origin = experiment.stages[experiment.writers[source]].origin()
    found = [place for model in origin.models for place in of_model(experiment, model)]
    return found + [place for canvases in origin.sources for place in behind(experiment, canvases)]


def of_model(experiment: Experiment, model: str, bare: bool = False) -> list[tuple[str, bool]]:
    """As `of_stage`, for a model: a stage, or a model folder from outside the run."""
    return of_stage(experiment, model, bare) if model in experiment.stages else [(model, True)]


def models_behind(experiment: Experiment, stage: Stage) -> list[str]:
    """The models that a stage starts from, and those in the experiment that made its images, public ones included.

    Models behind another one in the list are left out, as that one accounts for them.
    """
    found = _next_models(experiment, stage)
    further = {other for one in found for other in _all_models(experiment, one)}
    return [one for one in found if one not in further]


def _next_models(experiment: Experiment, stage: Stage) -> list[str]:
    sources = (*stage.origin().sources, *getattr(stage, "public", ()))
    writers = [experiment.stages[experiment.writers[name]] for name in sources if name in experiment.writers]
    return list(dict.fromkeys(model for one in (stage, *writers) for model in one.named_models().values()))


def _all_models(experiment: Experiment, model: str) -> set[str]:
    """The models behind a model; none if it is a folder from outside the run."""
    found = _next_models(experiment, experiment.stages[model]) if model in experiment.stages else []
    return set(found).union(*(_all_models(experiment, one) for one in found))


def training_sources(experiment: Experiment, name: str) -> list[str]:
    """The data sources, each once, whose training patients reached a train or synthesis stage."""
    return list(dict.fromkeys(origin for origin, is_folder in of_stage(experiment, name) if not is_folder))


def refitted_on(experiment: Experiment, name: str) -> list[str]:
    """The data sources, each once, whose validation patients reached the models behind a stage, because folds
    (`tasks.folds`) finally train on them. The stage's own folds do not count: they hold each patient out once."""
    origin = experiment.stages[name].origin()
    writers = [experiment.writers.get(source, "") for source in origin.sources]
    behind = [one for one in (*origin.models, *writers) if one in experiment.stages]
    found = [source for one in behind for source in (*refitted_on(experiment, one), *dealt(experiment, one))]
    return list(dict.fromkeys(found))


def dealt(experiment: Experiment, name: str) -> list[str]:
    """The data source whose validation patients a stage finally trains on because of its own folds; [] without
    folds."""
    stage = experiment.stages[name]
    if not isinstance(stage, TrainStage) or not folds.count_of(stage, experiment.recipe_of(stage)):
        return []
    return [stage.validate_on]


def foreign_models(experiment: Experiment, name: str) -> list[str]:
    """The model folders from outside the run, each once, whose training patients reached a stage."""
    return list(dict.fromkeys(origin for origin, is_folder in of_stage(experiment, name) if is_folder))
