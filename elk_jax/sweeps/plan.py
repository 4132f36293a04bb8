"""The runs of a sweep: every setting with every seed, each in its own run folder, and the stages that runs share.

Sweep folder:
  sweep.json                 what the sweep varies; another sweep cannot continue in the folder
  runs/SETTING/seed-N/       a run folder, as written by launch/train.py
  runs/SETTING/seed-N.log    output of the run
  table.csv, table.json, report.html
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FieldReference

from elk_jax import files
from elk_jax.errors import UserError
from elk_jax.experiments import resume
from elk_jax.experiments.experiment import run_of
from elk_jax.experiments.needs import check_needs
from elk_jax.experiments.parse import parse, plain
from elk_jax.features import store
from elk_jax.randomness import check_seed
from elk_jax.sweeps.settings import Row
from elk_jax.tasks.run import Experiment
from elk_jax.tasks.stages import Stage

SWEEP = resume.SWEEP
REPORT = "report.html"


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """One setting with one seed. config: the whole configuration. folder: of the run. stages: the stages of the
    experiment that the sweep runs."""

    row: Row
    seed: int
    config: ConfigDict
    experiment: Experiment
    folder: Path
    stages: tuple[Stage, ...]

    @property
    def name(self) -> str:
        return f"{self.row.name}, seed {self.seed}"

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    @property
    def is_finished(self) -> bool:
        """Whether the report and all stages that the sweep runs are written, for this configuration."""
        written = self.folder / "config.json"
        unfinished = {stage.name for stage in self.stages} - self.finished.keys()
        if unfinished or not written.is_file() or not (self.folder / REPORT).is_file():
            return False
        return files.read_json(written) == json.loads(json.dumps(plain(self.config)))

    @cached_property
    def identities(self) -> dict[str, str]:
        """Stage -> hash of everything that determines its result: stages with equal hashes have the same result."""
        found: dict[str, str] = {}
        for stage in self.experiment.stages.values():
            found[stage.name] = _identity(self.experiment, stage, found)
        return found

    @property
    def made(self) -> dict[str, str]:
        """The identities of the stages that the sweep runs."""
        return {stage.name: self.identities[stage.name] for stage in self.stages}

    @property
    def finished(self) -> dict[str, Path]:
        """Stage -> its summary, for all finished stages of the experiment, including those run by an earlier call.

        A stage that this call does not run counts if its dependencies have not changed.
        """
        ends = {name: self.folder / name / resume.FINISHED for name in self.experiment.stages}
        chosen = {stage.name for stage in self.stages}
        return {
            name: end
            for name, end in ends.items()
            if end.is_file() and (name in chosen or _is_made(self.folder / name, self))
        }


@dataclass(frozen=True)
class Plan:
    """A whole sweep. rows: of the table, including those that are not run. runs: a run that shares a stage with an
    earlier one comes after it."""

    folder: Path
    base: ConfigDict
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    runs: tuple[PlannedRun, ...]

    def before(self, run: PlannedRun) -> tuple[int, ...]:
        """Positions of the runs from which this one takes a stage."""
        makers: dict[str, int] = {}
        for position, other in enumerate(self.runs):
            for identity in other.made.values():
                makers.setdefault(identity, position)
        return tuple(sorted({makers[key] for key in run.made.values()} - {self.runs.index(run)}))


def plan(
    base: ConfigDict,
    rows: Sequence[Row],
    seeds: int,
    folder: Path,
    configs: Mapping[str, ConfigDict] | None = None,
    stages: Sequence[str] | None = None,
) -> Plan:
    """Check every setting with every seed before any of them runs.

    base: the configuration that the rows change. seeds: their number, starting at `config.seed`. configs: for rows with
    their own configuration, by `Row.config`. stages: those to run; None for all. UserError, with the row, for an
    invalid key, value or stage; for a row that sets the seed; and for a stage that reads one that is not run.
    """
    if seeds < 1:
        raise UserError(f"{seeds} seeds", where="--seeds", todo="give 1 or more")
    _check_varied(rows)
    first = parse(base).seed
    numbers = tuple(first + number for number in range(seeds))
    for seed in numbers:
        check_seed(seed)
    runs = []
    for row in rows:
        if row.not_run:
            continue
        for seed in numbers:
            own = (configs or {})[row.config] if row.config else base
            config = changed(own, row.overrides, f"row '{row.name}'")
            config.seed = seed
            place = folder / "runs" / row.folder / f"seed-{seed}"
            experiment = _parsed(config, row, stages)
            chosen = _chosen(experiment, stages)
            _check_read(experiment, chosen, place, f"{row.name}, seed {seed}")
            runs.append(PlannedRun(row, seed, config, experiment, place, chosen))
    return Plan(folder, base, tuple(rows), numbers, _ordered(runs))


def changed(base: ConfigDict, overrides: Mapping[str, Any], where: str) -> ConfigDict:
    """A copy of a configuration with other values, by dotted key. UserError for an unknown key and a wrong type."""
    config = _copied(base)
    known = _keys(base)
    for key, value in overrides.items():
        if not any(name == key or name.startswith(f"{key}.") for name in known):
            close = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
            todo = f"did you mean {' or '.join(close)}" if close else "see config.json of a run for all keys"
            raise UserError(f"unknown config key '{key}'", where=where, todo=todo)
        try:
            config.update_from_flattened_dict({key: value})
        except (TypeError, KeyError, ValueError) as error:
            what = f"bad value for config key '{key}': {value!r}"
            raise UserError(what, where=where, todo="give a value of the type that config.json of a run has") from error
    return config


def start(plan: Plan) -> None:
    """Write what the sweep varies into its folder, which the caller has locked. Refuse the folder of a run, whose
    report the sweep's would replace, and that of a sweep with another configuration or with a setting missing here.

    More settings and another number of seeds continue the same sweep.
    """
    path = plan.folder / SWEEP
    if (plan.folder / resume.DEPENDS).is_file():
        raise UserError("this folder belongs to a run", where=plan.folder, todo="name another --workdir")
    now = {
        "experiment": plain(plan.base),
        "settings": {row.name: json.loads(json.dumps(_settings(row))) for row in plan.rows},
    }
    now = json.loads(json.dumps(now))
    if path.exists():
        before = files.read_object(path, "experiment", "settings")
        found = resume.differences(_without_seed(before["experiment"]), _without_seed(now["experiment"]), "config")
        for name, overrides in before["settings"].items():
            if name not in now["settings"]:
                found.append(f"the setting '{name}' is not among those given")
            else:
                found += resume.differences(overrides, now["settings"][name], f"setting '{name}'")
        if found:
            todo = "name another --workdir, or give the same settings"
            raise UserError(f"this folder belongs to another sweep: {found[0]}", where=plan.folder, todo=todo)
    files.write_json(path, now)


def take_finished(plan: Plan, run: PlannedRun) -> list[str]:
    """Copy finished stages of other runs of the sweep into a run folder; returns their names.

    Only stages that have not been started in it and have the same settings, seed and inputs, including the models that
    they read, so the run itself accepts them as its own. Checkpoints are not copied: a finished stage needs none.
    If annotations have changed since, an evaluation is not taken; a training or a painted set is refused, naming the
    run that has it.
    """
    taken = []
    for name, identity in run.made.items():
        for other in plan.runs:
            same = other is not run and other.identities.get(name) == identity
            if not same or (run.folder / name).exists() or not _is_made(other.folder / name, run):
                continue
            made, stage = run_of(other.experiment, other.folder), other.experiment.stages[name]
            resume.check_annotations(made, stage)
            if not resume.have_changed(made, stage):
                _copy_stage(other.folder / name, run.folder / name)
                taken.append(name)
    return taken


def take_features(plan: Plan, run: PlannedRun) -> int:
    """Link the frozen features of other runs of the sweep into a run folder; returns the number of files.

    The files are named by their content and never change, so links suffice. The run reads those for its settings and
    images.
    """
    folder, count = run.folder / store.FOLDER, 0
    for other in plan.runs:
        for path in sorted((other.folder / store.FOLDER).glob(store.PATTERN)) if other is not run else ():
            if not (folder / path.name).exists():
                files.make_folder(folder)
                _link(path, folder / path.name)
                count += 1
    return count


def _link(path: Path, place: Path) -> None:
    """Link `place` to the file `path`, or copy it if the file system has no links."""
    try:
        os.link(path, place)
    except OSError:
        files.write_private(place, files.read_bytes(path))


def _is_made(place: Path, run: PlannedRun) -> bool:
    """Whether `place` contains a finished stage with the dependencies that it would have in `run`."""
    if not (place / resume.FINISHED).is_file() or not (place / resume.DEPENDS).is_file():
        return False
    stage = run.experiment.stages[place.name]
    depends = resume.settings(run.experiment, stage) | resume.inputs(run.experiment, run.folder, stage)
    return files.read_object(place / resume.DEPENDS) == depends


def _copy_stage(source: Path, place: Path) -> None:
    partial = place.with_name(f".{place.name}.partial-stage")
    shutil.rmtree(partial, ignore_errors=True)
    files.make_folder(place.parent)
    shutil.copytree(source, partial, ignore=lambda folder, names: {"checkpoints"} & set(names))
    partial.rename(place)


def _identity(experiment: Experiment, stage: Stage, earlier: Mapping[str, str]) -> str:
    """earlier: identities of the earlier stages. The identity of a stage includes those of the stages that it reads."""
    follows = {
        "settings": resume.settings(experiment, stage),
        "mesh": [experiment.mesh.data, experiment.mesh.fsdp],
        "on_error": experiment.on_error,
        "reads": {name: earlier[name] for name in _read(experiment, stage) if name in earlier},
    }
    return hashlib.sha256(json.dumps(follows, sort_keys=True).encode()).hexdigest()


def _read(experiment: Experiment, stage: Stage) -> list[str]:
    """The inputs of a stage: the models, and the stages that make its images."""
    models = [*stage.trained(), *stage.named_models().values()]
    return models + [writer for data in stage.data() if (writer := experiment.writers.get(data.source))]


def _chosen(experiment: Experiment, stages: Sequence[str] | None) -> tuple[Stage, ...]:
    return tuple(stage for name, stage in experiment.stages.items() if stages is None or name in stages)


def _check_read(experiment: Experiment, chosen: Sequence[Stage], folder: Path, run: str) -> None:
    """UserError for a selected stage that reads one that is neither selected nor finished in the run folder."""
    for stage in chosen:
        for other in _read(experiment, stage):
            missing = other in experiment.stages and experiment.stages[other] not in chosen
            if missing and not (folder / other / resume.FINISHED).is_file():
                what = f"{run}: stage {stage.name} reads stage {other}, which is not selected"
                names = ",".join(one.name for one in chosen)
                raise UserError(what, where=f"--stages={names}", todo=f"add {other}")


def _ordered(runs: Sequence[PlannedRun]) -> tuple[PlannedRun, ...]:
    """All seeds of a setting before the next setting; runs that take a stage from an earlier run come last."""
    seen: set[str] = set()
    first: list[PlannedRun] = []
    later: list[PlannedRun] = []
    for run in runs:
        own = set(run.made.values())
        (later if own & seen else first).append(run)
        seen |= own
    return (*first, *later)


def _check_varied(rows: Sequence[Row]) -> None:
    for row in rows:
        if "seed" in row.overrides:
            todo = "give --seeds=N, and --config.seed=S for the first seed"
            raise UserError(
                "the seed is not a setting: every setting runs with the same seeds", where="seed", todo=todo
            )
        if "name" in row.overrides:
            what = "the name of an experiment is not a setting: it changes nothing"
            raise UserError(what, where="name", todo="leave it out")


def _parsed(config: ConfigDict, row: Row, stages: Sequence[str] | None) -> Experiment:
    try:
        experiment = parse(config, stages)
        check_needs(experiment, _chosen(experiment, stages))
        return experiment
    except UserError as error:
        raise UserError(f"setting {row.name}: {error.what}", where=error.where, todo=error.todo) from error


def _settings(row: Row) -> dict[str, Any]:
    return {**({"config": row.config} if row.config else {}), **row.overrides}


def _without_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "seed"}


def _copied(config: ConfigDict) -> ConfigDict:
    """A copy with the same order and types, without further keys; ConfigDict's own copies sort the keys."""

    def of(key: str, value: Any) -> Any:
        return _copied(value) if isinstance(value, ConfigDict) else FieldReference(value, config.get_type(key))

    return ConfigDict({key: of(key, value) for key, value in config.items()}, sort_keys=False).lock()


def _keys(config: Any, prefix: str = "") -> list[str]:
    """Dotted names of every leaf."""
    if not isinstance(config, ConfigDict):
        return [prefix]
    return [name for key, child in config.items() for name in _keys(child, f"{prefix}.{key}" if prefix else key)]
