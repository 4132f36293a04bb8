"""Where what a stage knows of patients comes from: data sources and models, through all stages before it."""

from __future__ import annotations

from elk_jax.tasks import folds
from elk_jax.tasks.run import Experiment
from elk_jax.tasks.stages import Stage, TrainStage


def of_stage(experiment: Experiment, name: str, bare: bool = False) -> list[tuple[str, bool]]:
    """(data source or model folder, whether it is a folder) that a train or synthesis stage goes back to.

    bare: without what a stage in between has learned with protection: its promise holds for whatever follows from it.
    """
    stage = experiment.stages[name]
    origin = stage.origin()
    guarded: tuple[str, ...] = ()
    if bare and isinstance(stage, TrainStage) and stage.protects(experiment.recipe_of(stage)):
        guarded = stage.train_on
    sources = [source for source in origin.sources if source not in guarded]
    # a stage does not hide what is behind made images, though it protects the images of `train_on`
    found = [place for source in sources for place in of_source(experiment, source, bare)]
    found += [place for source in guarded for place in behind(experiment, source, bare)]
    return found + [place for model in origin.models for place in of_model(experiment, model, bare)]


def of_source(experiment: Experiment, source: str, bare: bool = False) -> list[tuple[str, bool]]:
    """As `of_stage`, of a data source: itself, or what its writer goes back to; and what it is made from."""
    own = [] if source in experiment.writers else [(source, False)]
    return own + behind(experiment, source, bare)


def behind(experiment: Experiment, source: str, bare: bool = False) -> list[tuple[str, bool]]:
    """As `of_source`, of what stands behind the images of a data source alone: none for images that nobody made."""
    if source in experiment.writers:
        return of_stage(experiment, experiment.writers[source], bare)
    return [place for other in experiment.data[source].made_from for place in of_source(experiment, other, bare)]


def of_painter(experiment: Experiment, source: str) -> list[tuple[str, bool]]:
    """As `of_source`, of the models that made a data source, and of what stands behind its canvases: without the
    patients of these, whom the painted images name."""
    origin = experiment.stages[experiment.writers[source]].origin()
    found = [place for model in origin.models for place in of_model(experiment, model)]
    return found + [place for canvases in origin.sources for place in behind(experiment, canvases)]


def of_model(experiment: Experiment, model: str, bare: bool = False) -> list[tuple[str, bool]]:
    """As `of_stage`, of a model: a stage, or a model folder from outside the run."""
    return of_stage(experiment, model, bare) if model in experiment.stages else [(model, True)]


def models_behind(experiment: Experiment, stage: Stage) -> list[str]:
    """The models that a stage starts from, and those of the experiment that made its images, public ones too.

    Without those behind another of them, which it accounts for.
    """
    found = _next_models(experiment, stage)
    further = {other for one in found for other in _all_models(experiment, one)}
    return [one for one in found if one not in further]


def _next_models(experiment: Experiment, stage: Stage) -> list[str]:
    sources = (*stage.origin().sources, *getattr(stage, "public", ()))
    writers = [experiment.stages[experiment.writers[name]] for name in sources if name in experiment.writers]
    return list(dict.fromkeys(model for one in (stage, *writers) for model in one.named_models().values()))


def _all_models(experiment: Experiment, model: str) -> set[str]:
    """Those behind a model; none where it is a folder from outside the run."""
    found = _next_models(experiment, experiment.stages[model]) if model in experiment.stages else []
    return set(found).union(*(_all_models(experiment, one) for one in found))


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
