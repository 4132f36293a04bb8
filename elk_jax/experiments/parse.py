"""From a configuration to an `Experiment`: every value gets its type, and every name is looked up, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from elk_jax import fields
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.errors import UserError
from elk_jax.tasks import TASKS
from elk_jax.tasks.run import Experiment, MeshSettings
from elk_jax.tasks.stages import CombineStage, Stage, SynthesizeStage, TrainStage
from elk_jax.tasks.task import StageKind
from elk_jax.weights import model_folder

OWN_SECTIONS = ("name", "seed", "mesh", "data", "stages")
"""Sections of a configuration; all others are recipes."""


def parse(config: ConfigDict, stages: Sequence[str] | None = None, folder: Path | None = None) -> Experiment:
    """The experiment described by a configuration (configs/).

    stages: names of the stages to run, which must exist; None for all. folder: a run folder; its trained stages may be
    evaluated too. Raises UserError for the first invalid value, stage or name; `where` is its key, such as
    `config.detector.steps`.
    """
    sections = fields.as_dict(config)
    for name in OWN_SECTIONS:
        if name not in sections:
            raise UserError(f"{name} is missing", where=f"config.{name}", todo="see the files in configs/ for examples")
    all_stages = fields.as_dict(sections["stages"], "config.stages")
    _check_chosen(stages, sections["name"], list(all_stages))
    sources = fields.as_dict(sections["data"], "config.data")
    on_error = sources.pop("on_error", "stop")
    parsed: dict[str, Stage] = {}
    recipes: dict[str, Any] = {}
    for name, settings in all_stages.items():
        parsed[name] = _stage(name, fields.as_dict(settings, f"config.stages.{name}"))
        _add_recipe(recipes, parsed[name], sections)
    experiment = Experiment(
        name=sections["name"],
        seed=sections["seed"],
        mesh=fields.build(MeshSettings, sections["mesh"], "config.mesh"),
        on_error=on_error,
        data={name: fields.build(SourceSpec, spec, f"config.data.{name}") for name, spec in sources.items()},
        recipes=recipes,
        stages=parsed,
    )
    fields.check_types(Experiment, {"name": experiment.name, "seed": experiment.seed}, "config")
    fields.check_types(Experiment, {"on_error": on_error}, "config.data")
    _check_names(experiment, folder)
    return experiment


def kind_of(stage: Stage) -> StageKind:
    """The entry of a stage in the table of its task."""
    return TASKS[stage.task].stages[stage.kind]


def plain(config: Any) -> Any:
    """A ConfigDict as plain JSON-able dicts and lists, in the order of the configuration."""
    if isinstance(config, ConfigDict):
        return {key: plain(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [plain(value) for value in config]
    return config


def _stage(name: str, settings: dict[str, Any]) -> Stage:
    kind, task = str(settings.get("kind")), str(settings.get("task"))
    if task not in TASKS or kind not in TASKS[task].stages:
        known = ", ".join(f"{kind} {task.name}" for task in TASKS.values() for kind in task.stages)
        raise UserError(f"no stage of kind '{kind} {task}'", where=f"config.stages.{name}", todo=f"known: {known}")
    return fields.build(TASKS[task].stages[kind].settings, {**settings, "name": name}, f"config.stages.{name}")


def _add_recipe(recipes: dict[str, Any], stage: Stage, sections: Mapping[str, Any]) -> None:
    name, kind = stage.recipe, kind_of(stage).recipe
    if not name and not type(stage).recipe:
        return
    if kind is None or name in OWN_SECTIONS or name not in sections:
        raise UserError(
            f"the configuration has no recipe '{name}'",
            where=f"config.stages.{stage.name}.recipe",
            todo=f"name a section with a recipe of the task {stage.task}, such as '{type(stage).recipe}'",
        )
    if name not in recipes:
        recipes[name] = fields.build(kind, sections[name], f"config.{name}")
    elif not isinstance(recipes[name], kind):
        raise UserError(
            f"'{name}' is also the recipe of a stage of another kind", where=f"config.stages.{stage.name}.recipe"
        )


# ---- Names ---------------------------------------------------------------------------------------------------------


def _check_chosen(stages: Sequence[str] | None, experiment: str, known: Sequence[str]) -> None:
    if stages is not None and not stages:
        todo = f"name some of {', '.join(known)}, or leave the flag out"
        raise UserError("no stage to run", where="--stages=", todo=todo)
    for name in stages or ():
        if name not in known:
            todo = f"choose from {', '.join(known)}"
            raise UserError(f"no stage '{name}' in {experiment}", where=f"--stages={name}", todo=todo)


def _check_names(experiment: Experiment, folder: Path | None) -> None:
    """Check that every source, stage and model that a stage names exists and is made before the stage runs."""
    trained: list[str] = []  # earlier stages that leave a model
    written: list[str] = []  # earlier synthesis stages
    for stage in experiment.stages.values():
        _check_sources(experiment, stage, written)
        _check_models(experiment, stage, trained, folder)
        if isinstance(stage, TrainStage | CombineStage):
            trained.append(stage.name)
        if isinstance(stage, SynthesizeStage):
            written.append(stage.name)
    read = {data.source for stage in experiment.stages.values() for data in stage.data()}
    for name, spec in experiment.data.items():
        for other in spec.made_from:
            if other not in experiment.data or other == name or experiment.data[other].made_from:
                todo = "name data sources of config.data with original images"
                raise UserError(f"made_from names '{other}'", where=f"config.data.{name}.made_from", todo=todo)
        if spec.spec and name not in read:
            raise UserError(
                f"no stage reads the data source '{name}'",
                where=f"config.data.{name}.spec",
                todo=f"name it in a stage, for example with --config.stages.STAGE.KEY={name}, or set it to ''",
            )


def _check_sources(experiment: Experiment, stage: Stage, written: Sequence[str]) -> None:
    for source in {data.source: None for data in stage.data()}:
        if source not in experiment.data:
            known = ", ".join(experiment.data)
            where, todo = f"config.stages.{stage.name}", f"sources of config.data: {known}"
            raise UserError(f"no data source '{source}'", where=where, todo=todo)
        writer = experiment.writers.get(source)
        if writer is not None and writer not in written:
            raise UserError(
                f"'{writer}' is not a synthesis stage before '{stage.name}'",
                where=f"config.data.{source}.spec",
                todo=f"synthesis stages before it: {', '.join(written) or 'none'}",
            )


def _check_models(experiment: Experiment, stage: Stage, trained: Sequence[str], folder: Path | None) -> None:
    """Check that the models that a stage reads come from earlier train stages or are already in the run folder."""
    where, known = f"config.stages.{stage.name}", f"train stages before it: {', '.join(trained) or 'none'}"
    for key, model in stage.named_models().items():
        if model in experiment.stages and model not in trained:
            raise UserError(
                f"'{model}' is not a train stage before '{stage.name}'",
                where=f"{where}.{key}",
                todo=f"{known}; or give a model folder",
            )
    for model in stage.trained():
        if model not in trained and not _is_trained(folder, model):
            raise UserError(
                f"'{model}' is not a train stage before '{stage.name}' or a trained stage of the run folder",
                where=f"{where}.models",
                todo=known,
            )


def _is_trained(folder: Path | None, name: str) -> bool:
    return folder is not None and Path(name).name == name and (folder / name / "model" / model_folder.CONFIG).is_file()
