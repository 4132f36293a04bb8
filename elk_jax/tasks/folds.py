"""Choices by cross-validation over patients: `folds` of a training recipe, the same for every task.

The patients of the training and validation splits of `validate_on` are divided into folds. Each fold is a separate
training in RUN/STAGE/fold_K, with the usual loop and evaluations: its patients validate, the others train. The number
of steps is the one at which the mean of the curves is best. Then either the stage trains on all of these patients for
that many steps, without validation, or the models of the folds at that step become the members of an ensemble (`refit`
of the recipe). Other choices of a task, such as thresholds, are made on the predictions of the folds at that step for
the patients that they had not seen (`held_out`).
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from elk_jax import files
from elk_jax.data.sources import folds as dealing
from elk_jax.data.sources.duplicates import pixel_hashes
from elk_jax.data.sources.source import ImageSource
from elk_jax.errors import UserError
from elk_jax.progress import progress_bar
from elk_jax.tasks.run import Experiment, Fold, Run, meet
from elk_jax.tasks.stages import CombineStage, Data, Stage, TrainStage
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.writer import read_metrics
from elk_jax.weights.model_folder import CONFIG

CURVE, FINISHED, PREDICTED = "curve.json", "finished.json", "held_out"
"""Files of a fold: its curve, its summary (written last), and its predictions by step."""
MEMBER = "model"
"""Next to the predictions of a fold at a step: the model that made them, if the folds become an ensemble."""
UNSEEN = "by the member that had not seen them"
"""How an ensemble of folds is evaluated on the patients of each fold."""
IMAGES, CHOSEN = "images.json", "folds.json"
"""Files of the stage: the images that the folds are trained on, and what was chosen."""


Lacks = Callable[[Any, ImageSource], str]
"""As in `StageKind.lacks`."""

FOLDERS = "fold_*"
"""Pattern of the folders of the folds in the folder of the stage."""


def count_of(stage: Stage, recipe: Any) -> int:
    """The number of folds of a stage; 0 if it has none."""
    return recipe.folds if isinstance(stage, TrainStage) and isinstance(recipe, TrainingRecipe) else 0


def train(
    run: Run,
    stage: Any,
    recipe: Any,
    work: Callable[[Run, Any, Any], dict[str, Any]],
    join: Callable[[Run, Any, Any], dict[str, Any]] | None,
    lacks: Lacks,
    pairs: Collection[Data] = (),
) -> dict[str, Any]:
    """The summary of a train stage, which first trains every fold if its recipe has `folds`.

    work, join: train one model, and make one of the folds, as `StageKind.run` and `StageKind.join`. lacks: as of
    `StageKind`, for `deal`. pairs: data of which the stage reads both images. A finished fold is skipped; an
    interrupted one is resumed.
    """
    count = count_of(stage, recipe)
    if not count:
        return work(run, stage, recipe)
    where, parts = f"config.{stage.recipe}.folds", deal(run, stage, recipe, lacks)
    _check_images(run, stage, pairs)
    sizes = list(map(len, parts))
    ends = dict.fromkeys((min(sizes), max(sizes)))
    run.say(f"  {count} folds of {sum(sizes)} patients, {' to '.join(map(str, ends))} in each")
    seconds = 0.0
    for number, held_out in enumerate(parts, start=1):
        own = replace(stage, name=f"{stage.name}/{folder_name(number)}")
        seconds += _train_fold(replace(run, fold=Fold(stage.validate_on, number, count, held_out)), own, recipe, work)
        if run.is_main:  # nothing resumes a finished fold
            shutil.rmtree(run.folder / own.name / "checkpoints", ignore_errors=True)
    curves = [read_curve(run.folder / stage.name / folder_name(number)) for number in range(1, count + 1)]
    chosen = choose(curves, where)
    run.say(f"  {chosen.in_words}")
    everyone = frozenset().union(*parts)
    last = Fold(stage.validate_on, 0, count, everyone, chosen.step)
    make = work if recipe.refit or join is None else join
    summary = make(replace(run, fold=last), stage, recipe)
    found = chosen.as_json(curves, list(map(len, parts))) | {"refit": recipe.refit}
    if run.is_main:
        files.write_json(run.folder / stage.name / CHOSEN, found)
        _drop_members(run.folder / stage.name, chosen.step)
    return {
        **summary,
        "data": {last.in_words if name == "validation" else name: n for name, n in summary.get("data", {}).items()},
        "best": {chosen.metric: chosen.mean},
        "folds": found,
        "seconds_before": summary.get("seconds_before", 0.0) + seconds,
    }


def makes_ensemble(stage: Stage, recipe: Any) -> bool:
    """Whether the folds of a stage are its model."""
    return bool(count_of(stage, recipe)) and not recipe.refit


def folder_name(number: int) -> str:
    """The folder of a fold, counted from 1, in the folder of its stage."""
    return FOLDERS.replace("*", str(number))


def of_everyone(run: Run, source: str, count: int = 1) -> Run:
    """The same run with `count` folds, in which all patients of a data source outside its test split validate."""
    return replace(run, fold=Fold(source, 0, count, frozenset(), 1))


def deal(run: Run, stage: TrainStage, recipe: TrainingRecipe, lacks: Lacks) -> tuple[frozenset[str], ...]:
    """The patients outside the test split that each fold of a stage holds out. Image files are not looked at.

    UserError where there are fewer patients than folds, and where a fold could not be judged on its patients, or not be
    trained on the others alone.
    """
    where, count = f"config.{stage.recipe}.folds", count_of(stage, recipe)
    whole = of_everyone(run, stage.validate_on).list(stage.validate_on, "val")
    parts = dealing.deal(whole.infos, count, run.seed, where)
    uses = {"is evaluated": dealing.of_patients}
    if set(stage.train_on) == {stage.validate_on}:
        uses["is trained"] = dealing.without_patients
    for number, held_out in enumerate(parts, start=1):
        for what, part in uses.items():
            if missing := lacks(recipe, part(whole, held_out)):
                said = f"fold {number} of {count} {what} on patients without {missing}"
                raise UserError(said, where=where, todo="use fewer folds, or give more patients with one")
    return parts


def _train_fold(run: Run, stage: TrainStage, recipe: TrainingRecipe, work: Callable) -> float:
    """Train one fold unless it is finished; returns the seconds spent in earlier attempts."""
    folder = run.folder / stage.name
    assert run.fold is not None
    if (folder / FINISHED).exists():
        run.say(f"  fold {run.fold.number} of {run.fold.count}: already finished, skipped")
        return float(files.read_object(folder / FINISHED, "seconds")["seconds"])
    meet(f"{stage.name}: looked")
    run.say(f"  fold {run.fold.number} of {run.fold.count}: {len(run.fold.held_out)} patients held out")
    started = time.time()
    summary = work(run, stage, recipe)
    before = summary.get("seconds_before", 0.0)
    if run.is_main:
        seconds = time.time() - started + before
        files.write_json(folder / FINISHED, {"summary": summary, "seconds": round(seconds, 1)})
    meet(f"{stage.name}: finished")
    return before


def _drop_members(folder: Path, step: int) -> None:
    """Remove the models that folds kept for an ensemble at steps other than the chosen one."""
    for path in folder.glob(f"{FOLDERS}/{PREDICTED}/*/{MEMBER}"):
        if path.parent.name != str(step):
            shutil.rmtree(path, ignore_errors=True)


def _check_images(run: Run, stage: TrainStage, pairs: Collection[Data]) -> None:
    """Record the images that the folds are trained on; UserError if some folds were started on others, under any
    name."""
    folder = run.folder / stage.name
    now, path = _digest(run, stage, pairs), folder / IMAGES
    known = files.read_object(path).get("digest") if path.is_file() else None
    begun = any(any(folder.glob(f"{FOLDERS}/{what}")) for what in (FINISHED, "checkpoints/[0-9]*"))
    if begun and known != now:
        todo = f"restore them, remove {folder} to train the stage again, or name another --workdir"
        raise UserError("the images have changed since folds were trained in this folder", where=folder, todo=todo)
    meet(f"{stage.name}: images compared")
    if run.is_main:
        files.write_json(path, {"digest": now})


def _digest(run: Run, stage: TrainStage, pairs: Collection[Data]) -> str:
    """A fingerprint of the images of a stage: pixels, patients, boxes and classes. Every image is decoded."""
    found = []
    for place in stage.data():
        source = run.open(place.source, place.split, 2 if place in pairs else 1)
        bar = progress_bar(f"  comparing the images of {place.source}")
        found += [
            [pixels, i.image_id, i.patient_id, i.boxes.tolist(), i.labels.tolist(), i.ignore.tolist()]
            for pixels, i in zip(pixel_hashes(source, bar), source.infos)
        ]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


# ---- The number of steps ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """The metric that chooses the checkpoint of a fold, by step; None where it is undefined."""

    metric: str
    mode: Literal["max", "min"]
    values: Mapping[int, float | None]


def write_curve(folder: Path, metric: str, mode: str) -> None:
    """Write the curve of a finished training, read from its metrics.jsonl."""
    key = f"eval/{metric}"
    values = {str(line["step"]): line[key] for line in read_metrics(folder / "metrics.jsonl") if key in line}
    files.write_json(folder / CURVE, {"metric": metric, "mode": mode, "values": values})


def read_curve(folder: Path) -> Curve:
    """The curve of a finished fold."""
    found = files.read_object(folder / CURVE, "metric", "mode", "values")
    return Curve(found["metric"], found["mode"], {int(step): value for step, value in found["values"].items()})


@dataclass(frozen=True)
class Chosen:
    """The number of steps, and the results of the folds there. deviation: of the folds; own_best: the mean of the best
    values of the folds, each at its own step; no rule can reach it."""

    metric: str
    mode: str
    step: int
    mean: float
    deviation: float
    own_best: float
    mean_curve: Mapping[int, float]

    @property
    def in_words(self) -> str:
        return (
            f"{self.step} steps by the mean of the folds: {self.metric} {self.mean:.3f}, standard deviation "
            f"{self.deviation:.3f}"
        )

    def as_json(self, curves: Sequence[Curve], patients: Sequence[int]) -> dict[str, Any]:
        """For the summary of the stage. patients: their number in each fold."""
        return {
            "metric": self.metric,
            "mode": self.mode,
            "step": self.step,
            "mean": self.mean,
            "deviation": self.deviation,
            "own_best": self.own_best,
            "patients": list(patients),
            "curves": [{str(step): value for step, value in curve.values.items()} for curve in curves],
            "mean_curve": {str(step): value for step, value in self.mean_curve.items()},
        }


def choose(curves: Sequence[Curve], where: str = "") -> Chosen:
    """The step at which the mean of the curves is best, the last of equal ones. UserError if it is not defined at
    any."""
    first = curves[0]
    means = {}
    for step in first.values:
        values = [value for curve in curves if (value := curve.values.get(step)) is not None and math.isfinite(value)]
        if len(values) == len(curves):
            means[step] = statistics.fmean(values)
    if not means:
        what = f"there is no step at which {first.metric} is defined in all {len(curves)} folds"
        raise UserError(what, where=where, todo="use fewer folds, so that each contains lesions")
    sign = 1 if first.mode == "max" else -1
    best = max(sign * value for value in means.values())
    step = max(step for step, value in means.items() if sign * value == best)
    there = [float(curve.values[step] or 0.0) for curve in curves]
    tops = [sign * max(sign * v for v in curve.values.values() if v is not None) for curve in curves]
    return Chosen(
        metric=first.metric,
        mode=first.mode,
        step=step,
        mean=means[step],
        deviation=statistics.stdev(there) if len(there) > 1 else 0.0,
        own_best=statistics.fmean(tops),
        mean_curve=means,
    )


# ---- Predictions of held-out patients --------------------------------------------------------------------------------


def to_write(run: Run, stage: TrainStage, step: int) -> Path | None:
    """The folder for the predictions of a fold for its patients at a step; None for any other training."""
    if run.fold is None or run.fold.steps is not None:
        return None
    folder = run.folder / stage.name / PREDICTED / str(step)
    return files.make_folder(folder) if run.is_main else folder


def to_read(run: Run, stage: TrainStage) -> list[Path]:
    """The folders with the predictions of the folds at the chosen step, together for all patients; [] for a training
    that does not follow folds."""
    if run.fold is None or run.fold.steps is None:
        return []
    names = [folder_name(number) for number in range(1, run.fold.count + 1)]
    return [run.folder / stage.name / name / PREDICTED / str(run.fold.steps) for name in names]


def members(run: Run, stage: TrainStage) -> list[Path]:
    """The model folders of the folds at the chosen step, for an ensemble. UserError if one is missing."""
    found = [place / MEMBER for place in to_read(run, stage)]
    for folder in found:
        if not (folder / CONFIG).is_file():
            todo = f"remove {folder.parents[2]} to train that fold again"
            raise UserError("the model of a fold is missing", where=folder, todo=todo)
    return found


# ---- Members of other stages -----------------------------------------------------------------------------------------


def dealt_alike(experiment: Experiment, stage: CombineStage) -> int:
    """The number of folds of the members of a stage that combines models, if they choose on its patients; 0 if no
    member has folds.

    All members have the same number, so that they divide the patients alike (`dealing.deal`): they hold the same
    patients out, and their joint choices are made on the predictions of their folds (`held_out`). UserError if the
    numbers differ.
    """
    where, counts = f"config.stages.{stage.name}.members", dict[str, int]()
    for number, name in enumerate(stage.members):
        one = experiment.stages.get(name)
        alike = one is not None and one.held_out() == stage.held_out()
        counts[name] = count_of(one, experiment.recipe_of(one)) if one and alike else 0
        if one and alike and makes_ensemble(one, experiment.recipe_of(one)):
            todo = "set refit=True in its recipe"
            raise UserError(f"{name} is an ensemble of its folds", where=f"{where}[{number}]", todo=todo)
    (first, most), *others = sorted(counts.items(), key=lambda one: -one[1])
    for name, count in others:
        if count != most:
            what = f"{first} has {most} folds of '{stage.validate_on}', and {name} has {count or 'none'}"
            todo = "give all members the same number of folds, so that none is trained on patients that others hold out"
            raise UserError(what, where=where, todo=todo)
    return most


def held_out(run: Run, name: str) -> list[Path]:
    """The folders with the predictions of the folds of a finished stage at the chosen step, as `to_read`."""
    stage = run.experiment.stages[name]
    assert isinstance(stage, TrainStage)
    step = int(files.read_object(run.folder / name / CHOSEN, "step")["step"])
    count = count_of(stage, run.experiment.recipe_of(stage))
    return to_read(replace(run, fold=Fold(stage.validate_on, 0, count, frozenset(), step)), stage)
