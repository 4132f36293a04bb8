"""Results of a sweep: every metric of the evaluations of its runs, by setting, with differences from a baseline.

Models of one evaluation are also compared within each run: the gain of one over another is a metric like any other.

Metrics are read from the `evaluation.json` of an evaluation stage or of a folder in it: each {"value": ...}, or, in a
file without any, each floating-point number. The name of a metric is its keys, joined with "/".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from elk_jax import files
from elk_jax.errors import UserError
from elk_jax.evaluation import seeds
from elk_jax.evaluation.bootstrap import PatientStatistic
from elk_jax.evaluation.seeds import Measured, Resampling
from elk_jax.experiments import resume
from elk_jax.experiments.parse import kind_of
from elk_jax.sweeps.plan import Plan, PlannedRun
from elk_jax.sweeps.settings import Row
from elk_jax.tasks.results import EVALUATION
from elk_jax.tasks.stages import EvaluateModelsStage, EvaluateStage
from elk_jax.threads import ProgressBar, no_bar

BOUNDS = ("low", "high", "level")
"""Numbers that accompany a metric and are not metrics themselves."""

Place = tuple[str, str]
"""(evaluation stage, the evaluated model, or "" for the stage as a whole)."""


@dataclass(frozen=True)
class Entry:
    """A row of the table of one metric. mean, difference: as in `seeds.summarise`; None without values.

    by_seed: value of each seed of the plan, or None. published: of a paper.
    """

    row: Row
    by_seed: tuple[float | None, ...]
    mean: Mapping[str, Any] | None
    baseline: str = ""
    difference: Mapping[str, Any] | None = None

    @property
    def difference_entry(self) -> Mapping[str, Any]:
        """The difference in the form of `reporting.comparison`."""
        return _as_difference(self.difference or {})

    @property
    def gain_entry(self) -> Mapping[str, Any]:
        """The same for the mean, which is itself a difference of two models."""
        return _as_difference(self.mean or {})

    def published(self, metric: str) -> float | None:
        return self.row.published.get(metric)


def _as_difference(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {"difference": summary.get("value"), **{key: summary.get(key) for key in ("low", "high", "p_value")}}


@dataclass(frozen=True)
class Results:
    """place -> metric -> entries, in the order of the rows. notes: remarks on the intervals.

    gains: the same for differences between two models of an evaluation, seed by seed and on the same patients; the
    place names both, (stage, "MODEL - OTHER").
    """

    seeds: tuple[int, ...]
    metrics: Mapping[Place, Mapping[str, tuple[Entry, ...]]]
    gains: Mapping[Place, Mapping[str, tuple[Entry, ...]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Evaluated:
    """One evaluation of one run. annotations: of its data (`resume.annotation_hash`), "" if unknown."""

    values: Mapping[str, float | None]
    statistic: PatientStatistic | None = None
    annotations: str = ""


@dataclass
class _Table:
    """row name -> seed -> place -> the evaluation."""

    found: dict[str, dict[int, dict[Place, _Evaluated]]] = field(default_factory=dict)

    def patients(self) -> list[str]:
        return [
            patient
            for by_seed in self.found.values()
            for by_place in by_seed.values()
            for one in by_place.values()
            if one.statistic is not None
            for patient in one.statistic.patients
        ]

    def places(self) -> list[Place]:
        return list({p: None for by_seed in self.found.values() for by_place in by_seed.values() for p in by_place})


ByRow = Mapping[str, Mapping[str, Measured]]
"""Row -> metric -> the evaluation."""


def collect(
    plan: Plan,
    baselines: Mapping[str, str],
    resamples: int,
    references: Sequence[str] = (),
    bar: Callable[[str, str], ProgressBar] = lambda title, unit: no_bar,
) -> Results:
    """Read the finished evaluations of all runs.

    baselines: row -> the row that it is compared with. references: models with which the others of their evaluation
    are compared, within each run; () for the first one of each evaluation. bar: shows the work with this title and
    unit: resampling the patients of hundreds of evaluations takes minutes.
    """
    table = _Table()
    for run in bar("reading", "run")(plan.runs, len(plan.runs)):
        table.found.setdefault(run.row.name, {})[run.seed] = dict(_evaluations(run))
    resampling = seeds.draw(table.patients(), len(plan.seeds), resamples)
    measured = _by_place(plan, table, resampling, bar("resampling", "setting"))
    gains = {
        (stage, f"{model} - {other}"): _gains(measured[stage, model], measured[stage, other])
        for stage, model, other in _compared(plan, references)
        if (stage, model) in measured and (stage, other) in measured
    }
    of_gains = [replace(row, published={}) for row in plan.rows if not row.not_run]
    return Results(
        plan.seeds,
        {place: _entries(_rows(plan, place), found, baselines, resampling) for place, found in measured.items()},
        {place: _entries(of_gains, found, baselines, resampling) for place, found in gains.items()},
        tuple(_notes(plan, table, resampling)),
    )


def check_references(plan: Plan, references: Sequence[str], where: str) -> None:
    """UserError for a model that no evaluation compares with another."""
    known = list(dict.fromkeys(name for stage in _comparing(plan) for name in stage.subjects))
    for name in references:
        if name not in known:
            todo = f"name some of {', '.join(known)}" if known else "leave it out"
            raise UserError(f"no evaluation compares the model '{name}' with others", where=where, todo=todo)


def _comparing(plan: Plan) -> Iterator[EvaluateModelsStage]:
    """The evaluations of several models, of all runs."""
    for run in plan.runs:
        for stage in run.experiment.stages.values():
            if isinstance(stage, EvaluateModelsStage) and len(stage.subjects) > 1:
                yield stage


def _compared(plan: Plan, references: Sequence[str]) -> list[tuple[str, str, str]]:
    """(evaluation stage, model, the one it is compared with), two models once."""
    found: dict[tuple[str, frozenset[str]], tuple[str, str, str]] = {}
    for stage in _comparing(plan):
        for other in references or stage.subjects[:1]:
            for model in stage.subjects if other in stage.subjects else ():
                if model != other:
                    found.setdefault((stage.name, frozenset((model, other))), (stage.name, model, other))
    return list(found.values())


def _by_place(plan: Plan, table: _Table, resampling: Resampling, progress: ProgressBar) -> dict[Place, ByRow]:
    rows = [row.name for row in plan.rows if not row.not_run]
    each = [(place, row) for place in table.places() for row in rows]
    of_seeds = lambda place, row: [table.found[row].get(seed, {}).get(place) for seed in plan.seeds]
    measured = progress((_measured(of_seeds(*one), resampling) for one in each), len(each))
    found: dict[Place, dict[str, Mapping[str, Measured]]] = {}
    for values, (place, row) in zip(measured, each):
        found.setdefault(place, {})[row] = values
    return dict(found)


def _gains(own: ByRow, other: ByRow) -> ByRow:
    return {
        row: {name: value.minus(other[row][name]) for name, value in by_name.items() if name in other[row]}
        for row, by_name in own.items()
    }


def _rows(plan: Plan, place: Place) -> list[Row]:
    """The rows with the published values of the model of a place."""
    return [replace(row, published=row.published_of(place[1])) for row in plan.rows]


def _entries(
    rows: Iterable[Row], measured: ByRow, baselines: Mapping[str, str], resampling: Resampling
) -> dict[str, tuple[Entry, ...]]:
    names = list({name: None for by_name in measured.values() for name in by_name})
    return {name: tuple(_entry(row, name, measured, baselines, resampling) for row in rows) for name in names}


def _measured(by_seed: Sequence[_Evaluated | None], resampling: Resampling) -> dict[str, Measured]:
    """The metrics of one setting, for every seed; None for a seed that was not evaluated."""
    statistics = [one.statistic if one is not None else None for one in by_seed]
    draws = {}
    if len(resampling.patients) > 1 and len(resampling.seed_weights):
        draws = seeds.resampled(statistics, resampling)
    names = {name: None for one in by_seed if one is not None for name in one.values}
    return {
        name: Measured(
            np.array([_value(one, name) for one in by_seed], float),
            draws.get(name),
        )
        for name in names
    }


def _value(one: _Evaluated | None, name: str) -> float:
    value = one.values.get(name) if one is not None else None
    return np.nan if value is None else float(value)


def _entry(
    row: Row,
    name: str,
    measured: ByRow,
    baselines: Mapping[str, str],
    resampling: Resampling,
) -> Entry:
    own = measured.get(row.name, {}).get(name)
    if own is None:
        return Entry(row, (), None)
    by_seed = tuple(float(value) if np.isfinite(value) else None for value in own.values)
    baseline = baselines.get(row.name, "")
    other = measured.get(baseline, {}).get(name)
    difference = seeds.summarise(own.minus(other), resampling) if other is not None else None
    return Entry(row, by_seed, seeds.summarise(own, resampling), baseline, difference)


def _evaluations(run: PlannedRun) -> Iterator[tuple[Place, _Evaluated]]:
    """The evaluations of the finished evaluation stages of a run. UserError if one has changed since."""
    for name, end in run.finished.items():
        stage, folder = run.experiment.stages[name], run.folder / name
        if not isinstance(stage, EvaluateStage):
            continue
        resume.check_results(folder)
        statistics: Mapping[str, PatientStatistic] = {}
        kind, annotations = kind_of(stage), files.read_object(end).get("annotations", "")
        if kind.statistics is not None:
            statistics = kind.statistics(folder, stage, run.experiment.recipe_of(stage))
        order = stage.subjects if isinstance(stage, EvaluateModelsStage) else ()
        names = sorted(_subfolders(folder), key=lambda name: order.index(name) if name in order else len(order))
        for path in [folder / EVALUATION, *(folder / name / EVALUATION for name in names)]:
            if path.is_file():
                name = path.parent.name if path.parent != folder else ""
                yield (stage.name, name), _Evaluated(values(files.read_json(path)), statistics.get(name), annotations)


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def values(evaluation: Any) -> dict[str, float | None]:
    """The metrics of an evaluation, by name, in its order."""
    estimates = dict(_estimates(evaluation))
    return estimates or dict(_fractions(evaluation))


def _estimates(tree: Any, name: str = "") -> Iterator[tuple[str, float | None]]:
    if not isinstance(tree, Mapping):
        return
    if "value" in tree and not isinstance(tree["value"], Mapping):
        yield name, tree["value"]
        return
    for key, child in tree.items():
        yield from _estimates(child, f"{name}/{key}" if name else str(key))


def _fractions(tree: Any, name: str = "") -> Iterator[tuple[str, float | None]]:
    if isinstance(tree, float):
        yield name, tree
    elif isinstance(tree, Mapping):
        for key, child in tree.items():
            if key not in BOUNDS:
                yield from _fractions(child, f"{name}/{key}" if name else str(key))


def _notes(plan: Plan, table: _Table, resampling: Resampling) -> Iterator[str]:
    count = len(plan.seeds)
    if len(resampling.patients) > 1:
        yield f"Intervals are over {len(resampling.patients)} patients{f' and {count} seeds' if count > 1 else ''}."
    if 1 < count < 20:
        part = f"{np.sqrt((count - 1) / count):.2f}"
        yield f"With {count} seeds, the part of an interval due to seeds is too narrow, by a factor of {part}."
    if count == 1:
        yield "One seed: the variation between seeds is unknown."
    for place in table.places():
        runs = [one for by_seed in table.found.values() for found in by_seed.values() if (one := found.get(place))]
        where = " · ".join(filter(None, place))
        if len({tuple(one.statistic.patients) for one in runs if one.statistic is not None}) > 1:
            yield f"{where}: not all runs were evaluated on the same patients."
        if len({one.annotations for one in runs if one.annotations}) > 1:
            yield f"{where}: not all runs were evaluated on the same annotations."
    for name in _read_differently(plan):
        yield f"{name}: not all runs learned from the same annotations, which have changed since the first finished."


def _read_differently(plan: Plan) -> list[str]:
    """Stages, except evaluations, that read other annotations of the same data in one run than in another."""
    found: dict[tuple[str, str], set[str]] = {}
    for run in plan.runs:
        for name, end in run.finished.items():
            stage, known = run.experiment.stages[name], files.read_object(end).get("annotations", "")
            if known and not isinstance(stage, EvaluateStage):
                read = {key: resume.settings(run.experiment, stage)[key] for key in ("seed", "data")}
                found.setdefault((name, json.dumps([read, list(stage.data())])), set()).add(known)
    return list(dict.fromkeys(name for (name, _), hashes in found.items() if len(hashes) > 1))
