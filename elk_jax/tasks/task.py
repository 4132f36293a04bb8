"""A task as a value: its stages, its recipe, its part of the report, and the actions on its models.

Every task is a package of `elk_jax/tasks` whose `__init__.py` holds one `TASK`; `elk_jax/tasks/__init__.py` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elk_jax.data.sources.source import ImageSource
from elk_jax.evaluation.bootstrap import PatientStatistic
from elk_jax.reporting.run import Part
from elk_jax.tasks.run import Experiment, Run
from elk_jax.tasks.stages import Need
from elk_jax.training.model import Game, Model
from elk_jax.training.step.step import Protection

Summary = dict[str, Any]
"""The summary of a stage in finished.json, JSON-able. `data`: counts by split (train stages), or of the split
(evaluation). `skipped`: images. `seconds_before`: time of earlier, interrupted attempts."""


def no_check(run: Run, stage: Any, recipe: Any, names: Collection[str]) -> None:
    """For stages without further checks."""


def no_needs(experiment: Experiment, stage: Any, recipe: Any) -> Iterable[Need]:
    """For stages that read single images."""
    return ()


def nothing_lacks(recipe: Any, source: ImageSource) -> str:
    """For stages that can be trained and evaluated on any images."""
    return ""


@dataclass(frozen=True)
class Workload:
    """The computation of a train stage, made without reading data or weights and without computing anything.

    model: its constants may be shapes. batch_size: of the global batch; for units, their expected number. training,
    prediction: blank global batches of the shapes that the step and `model.predict` are compiled for, by a name such as
    "800x1344"; prediction has all keys of training, and may have more.
    assumed: assumptions that only data or weights could confirm. protection: of a private training, whose batches are
    of units; its numbers are not those of the data.
    """

    model: Model | Game
    batch_size: int
    training: Mapping[str, Mapping[str, Any]]
    prediction: Mapping[str, Mapping[str, Any]]
    assumed: tuple[str, ...] = ()
    protection: Protection | None = None


@dataclass(frozen=True)
class StageKind:
    """One kind of stage of a task.

    settings: a dataclass derived from one of `stages`. run: (run, stage, recipe) -> its summary; the recipe is None if
    the stage names none. check: (run, stage, recipe, names of the stages that will run), called before the first stage
    runs; raises UserError for problems that only this task can detect. needs: (experiment, stage, recipe) -> the data
    that must be pairs or volumes; pairs are opened with both images. needs_lesions: splits of the stage's data without
    a lesion are refused ("train", "val"). learns_classes: the model is evaluated on the classes of its training data.
    workload: (stage, recipe, batch size or None for the recipe's) -> the computation of a train stage, for
    launch/plan.py. lacks: (recipe, images of a fold, or of all others) -> what is missing for evaluation or training,
    in words; "" for nothing.
    join: (run, stage, recipe) -> the summary of an ensemble of the stage's folds (`tasks.folds.to_read`), which is
    then the stage's model; None if such models cannot be joined.
    recipe: the dataclass of the recipe that the stage names; None if it reads none.
    statistics: of an evaluation: (folder of the finished stage, stage, recipe) -> by model, its metrics as a function
    of patient weights, named as in <model>/evaluation.json, with "/" between keys; None if only the metrics are kept.
    """

    settings: type
    run: Callable[[Run, Any, Any], Summary]
    check: Callable[[Run, Any, Any, Collection[str]], None] = no_check
    needs: Callable[[Experiment, Any, Any], Iterable[Need]] = no_needs
    needs_lesions: tuple[str, ...] = ()
    learns_classes: bool = False
    workload: Callable[[Any, Any, int | None], Workload] | None = None
    lacks: Callable[[Any, ImageSource], str] = nothing_lacks
    join: Callable[[Run, Any, Any], Summary] | None = None
    recipe: type | None = None
    statistics: Callable[[Path, Any, Any], Mapping[str, PatientStatistic]] | None = None


@dataclass(frozen=True)
class Action:
    """The action of a launch script on a trained model. settings: the dataclass of the task's own flags.

    Evaluation: run(model, data, split, on_error, output, settings), with data a SourceSpec.
    Prediction: run(model, inputs, decoding, on_error, output, settings), with inputs image files and folders, and
    decoding a SourceSpec with the settings of their decoding.
    Synthesis: run(model, count, output, seed, settings); if `on_images`, also canvases, a SourceSpec, split, on_error.
    Export: run(model, output, settings).
    All are called by keyword.
    """

    run: Callable[..., object]
    settings: type
    on_images: bool = False


@dataclass(frozen=True)
class Task:
    """Everything that the rest of elk_jax knows about a task.

    name: in configurations. stages: by kind (train, fit, combine, synthesize, evaluate). report: (run, summaries of its
    finished stages by name) -> its part of the page.
    architectures: of its models, as named in model.json. model: the noun for one in messages.
    builds_on: names of tasks that it may import, because it uses their models or processes images as they do.
    evaluate, predict, synthesize, export: actions of the scripts of launch/ with these names (export:
    export_weights.py) on its models; None if not supported.
    """

    name: str
    stages: Mapping[str, StageKind]
    report: Callable[[Run, Mapping[str, Summary]], Part]
    architectures: tuple[str, ...] = ()
    model: str = "model"
    builds_on: tuple[str, ...] = ()
    evaluate: Action | None = None
    predict: Action | None = None
    synthesize: Action | None = None
    export: Action | None = None
