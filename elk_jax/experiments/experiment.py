"""An experiment is an ordered list of stages; this runs them inside a run folder.

Run folder:
  config.json      the whole configuration         versions.json   libraries, hardware, git state
  <stage>/         what a stage writes: config.json (what it depends on), metrics.jsonl, checkpoints/, ...
  <stage>/finished.json   written last: the stage is not repeated
  report.html      everything at a glance
A stage reads what earlier stages wrote, by stage name.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from elk_jax import files
from elk_jax.errors import UserError
from elk_jax.experiments import report
from elk_jax.experiments.checks import MODEL_KEYS, check_inputs
from elk_jax.tasks import recipe_checks
from elk_jax.tasks.detection import train as detection_stages
from elk_jax.tasks.inpainting import train as inpainting_stages
from elk_jax.tasks.lesion_quality import evaluate as inpainting_evaluate
from elk_jax.tasks.run import Run, model_folder, writing_stage
from elk_jax.tasks.translation import evaluate as translation_evaluate
from elk_jax.tasks.translation import train as translation_stages
from elk_jax.training import mesh as meshes

PAINTED = "synth*.json"
"""Of a synthesis stage: the annotations and the settings, from which the images follow."""

STAGES = {
    ("train", "detection"): detection_stages.train,
    ("evaluate", "detection"): detection_stages.evaluate,
    ("train", "inpainting"): inpainting_stages.train,
    ("synthesize", "inpainting"): inpainting_stages.synthesize,
    ("evaluate", "inpainting"): inpainting_evaluate.evaluate,
    ("train", "translation"): translation_stages.train,
    ("evaluate", "translation"): translation_evaluate.evaluate,
}
"""What each (kind, task) of a stage runs: (run, stage name) -> a JSON-able summary.

`seconds_before` in a summary: what earlier, interrupted attempts of the stage took."""

SOURCE_KEYS = ("validate_on", "on", "canvases", "share_of", "synthetic")
"""Settings of a stage, beside `train_on`, that name a data source."""


def run(config: ConfigDict, workdir: str | Path, stages: Sequence[str] | None = None) -> dict[str, Any]:
    """Run an experiment's stages in order and write the report.

    config: see configs/. workdir: the run folder, made when absent; an interrupted run in it goes on.
    stages: names of the stages to run; all when None. Named evaluation stages are repeated even when finished.
    Returns the summaries of all stages that are finished, by stage name. Raises UserError for what the user can mend.
    """
    folder = Path(workdir)
    check(config, stages, folder)
    _same_experiment_or_error(config, folder)
    this = Run(config, folder, meshes.make_mesh(config.mesh.data, config.mesh.fsdp))
    chosen = [name for name in config.stages if stages is None or name in stages]
    for name in chosen:
        _same_as_before_or_error(this, name)
    check_inputs(this, [name for name in chosen if not _looks_finished(this, name, repeat=stages is not None)])
    files.make_folder(folder)
    this.meet("settings compared")
    if this.is_main:
        files.write_json(folder / "config.json", plain(config))
        files.write_json(folder / "versions.json", versions())
    this.say(f"{config.name}: run folder {folder}")
    for name in chosen:
        _run_stage(this, name, repeat=stages is not None)
    summaries = {
        name: files.read_json(folder / name / "finished.json")["summary"]
        for name in config.stages
        if (folder / name / "finished.json").exists()
    }
    if this.is_main:
        this.say(f"report: {report.write(this, summaries)}")
    this.meet("report written")  # none leaves while the main process writes: JAX waits minutes for it and no longer
    return summaries


def _run_stage(this: Run, name: str, repeat: bool) -> None:
    stage = this.config.stages[name]
    folder = this.folder / name
    finished, depends = folder / "finished.json", _depends(this, name) | _models(this, name)
    _same_initial_weights_or_error(this, name, depends)
    done = finished.exists() and files.read_json(folder / "config.json") == depends
    this.meet(f"{name}: looked")  # before the main process changes what the others look at
    if done and not (repeat and stage.kind != "train"):
        this.say(f"stage {name}: finished before, not repeated")
        return
    if this.is_main:
        files.make_folder(folder)
        finished.unlink(missing_ok=True)
        files.write_json(folder / "config.json", depends)
    this.say(f"stage {name}: {stage.kind} {stage.task}")
    started = time.time()
    summary = STAGES[stage.kind, stage.task](this, name)
    if this.is_main:
        seconds = time.time() - started + summary.get("seconds_before", 0.0)
        files.write_json(finished, {"summary": summary, "seconds": round(seconds, 1)})
    this.meet(f"{name}: finished")  # the next stage reads on all processes what the main one wrote


def _depends(this: Run, name: str) -> dict[str, Any]:
    """The settings that a stage's result follows from, as they come back from JSON.

    Of the data only the sources that it names; what an unreadable image does (`data.on_error`) may change on the way.
    """
    stage = this.config.stages[name]
    depends = {
        "seed": this.config.seed,
        "data": {source: plain(this.config.data[source]) for source in _sources(stage)},
        "stage": plain(stage),
    }
    if "recipe" in stage:
        depends["recipe"] = plain(this.config[stage.recipe])
    return json.loads(json.dumps(depends))


def _models(this: Run, name: str) -> dict[str, Any]:
    """Fingerprints of what a stage reads of other stages (models, synthetic data): that may be made again.

    One that is gone counts as unchanged: a finished stage needs it no more.
    """
    stage, written = this.config.stages[name], this.folder / name / "config.json"
    reads = {model: (this.folder / model / "model", "*") for model in stage.get("models", ())}
    for key in MODEL_KEYS:
        if stage.get(key, ""):
            reads[stage[key]] = model_folder(this, stage[key]), "*"
    for source in _sources(stage):
        wrote = writing_stage(this.config, source)
        if wrote:
            reads[wrote] = this.folder / wrote, PAINTED
    before = files.read_json(written).get("models", {}) if written.exists() else {}
    found = {other: files.fingerprint(*place) or before.get(other, "") for other, place in reads.items()}
    return {"models": found} if found else {}


def _same_initial_weights_or_error(this: Run, name: str, depends: dict[str, Any]) -> None:
    """Refuse to go on with a training, or to call it finished, whose initial weights are not those it started from."""
    before = this.folder / name / "config.json"
    if this.config.stages[name].kind != "train" or not _has_something_to_lose(before.parent):
        return
    known, now = files.read_json(before).get("models", {}), depends.get("models", {})
    changed = [other for other in now if known.get(other) != now[other]]
    if changed:
        raise UserError(
            f"{changed[0]} has changed since stage {name} started from it",
            where=before.parent,
            todo="remove that folder to train the stage again, or name another --workdir",
        )


def _sources(stage: ConfigDict) -> list[str]:
    """The data sources that a stage names, each once."""
    named = (*stage.get("train_on", ()), *(stage[key] for key in SOURCE_KEYS if key in stage))
    return list(dict.fromkeys(named))


def _same_as_before_or_error(this: Run, name: str) -> None:
    """Refuse to go on with a training under other settings than it was started with."""
    before = this.folder / name / "config.json"
    if this.config.stages[name].kind != "train" or not _has_something_to_lose(before.parent):
        return
    settings = {key: value for key, value in files.read_json(before).items() if key != "models"}
    differences = _differences(settings, _depends(this, name))
    if differences:
        raise UserError(
            f"stage {name} was started here with other settings: {'; '.join(differences[:3])}",
            where=this.folder,
            todo="name another --workdir, or give the same settings",
        )


def _has_something_to_lose(stage_folder: Path) -> bool:
    """Whether a training got so far that other settings must not replace it: to a checkpoint, or to its end."""
    checkpoints = any(path.name.isdigit() for path in stage_folder.glob("checkpoints/*"))
    return (stage_folder / "config.json").exists() and (checkpoints or (stage_folder / "finished.json").exists())


def _looks_finished(this: Run, name: str, repeat: bool) -> bool:
    """As `_run_stage` will find it, but for models that are made again."""
    folder = this.folder / name
    if not (folder / "finished.json").exists() or (repeat and this.config.stages[name].kind != "train"):
        return False
    before = files.read_json(folder / "config.json")
    return {key: value for key, value in before.items() if key != "models"} == _depends(this, name)


def _same_experiment_or_error(config: ConfigDict, folder: Path) -> None:
    """Refuse a run folder in which another experiment was started."""
    path = folder / "config.json"
    found = files.read_json(path) if path.is_file() else {"name": config.name}
    known = found.get("name") if isinstance(found, dict) else None
    if known != config.name:
        what = f"the experiment {known}" if known else "something else"
        raise UserError(f"the folder of {what}, not of {config.name}", where=folder, todo="name another --workdir")


def check(config: ConfigDict, stages: Sequence[str] | None = None, folder: Path | None = None) -> None:
    """Raise UserError for stages that do not exist, cannot run, refer to what is not there, or for impossible values.

    folder: a run folder; what was trained in it under another name of a stage may be evaluated too.
    """
    if stages is not None and not stages:
        raise UserError(
            "no stage to run", where="--stages=", todo=f"name some of {', '.join(config.stages)}, or leave the flag out"
        )
    for name in stages or ():
        if name not in config.stages:
            raise UserError(
                f"no stage '{name}' in {config.name}",
                where=f"--stages={name}",
                todo=f"it has {', '.join(config.stages)}",
            )
    if config.seed < 0:
        raise UserError(f"seed is {config.seed}", where="config.seed", todo="give 0 or more")
    earlier: list[str] = []  # train stages before this one
    written: list[str] = []  # synthesis stages before it
    for name, stage in config.stages.items():
        where = f"config.stages.{name}"
        if (stage.kind, stage.task) not in STAGES:
            known = ", ".join(f"{kind} {task}" for kind, task in STAGES)
            raise UserError(f"no stage of kind '{stage.kind} {stage.task}'", where=where, todo=f"known: {known}")
        recipe_checks.check_stage(stage, where)
        if "recipe" in stage:
            if stage.recipe not in config:
                raise UserError(f"recipe '{stage.recipe}' is not in the configuration", where=where)
            recipe_checks.check_recipe(stage.task, config[stage.recipe], f"config.{stage.recipe}")
        for source in _sources(stage):
            if source not in config.data:
                raise UserError(f"data source '{source}' is not in config.data", where=where)
            wrote = writing_stage(config, source)
            if wrote and wrote not in written:
                raise UserError(
                    f"'{wrote}' is no synthesis stage before '{name}'",
                    where=f"config.data.{source}.spec",
                    todo=f"synthesis stages before it: {', '.join(written) or 'none'}",
                )
        _check_models(name, stage, earlier, config, folder)
        if stage.kind == "train":
            earlier.append(name)
        if stage.kind == "synthesize":
            written.append(name)
    _no_source_in_vain_or_error(config)


def _no_source_in_vain_or_error(config: ConfigDict) -> None:
    """Refuse a data source that is given and that no stage reads: healthy canvases, say, that no stage paints on."""
    read = {source for stage in config.stages.values() for source in _sources(stage)}
    for name, source in config.data.items():
        if isinstance(source, ConfigDict) and source.spec and name not in read:
            raise UserError(
                f"no stage reads the data source '{name}'",
                where=f"config.data.{name}.spec",
                todo=f"name it in a stage, as in --config.stages.lesions.canvases={name}, or set it to ''",
            )


def _check_models(name: str, stage: ConfigDict, earlier: list[str], config: ConfigDict, folder: Path | None) -> None:
    """The models that a stage reads come from train stages before it, or lie in the run folder already."""
    where, known = f"config.stages.{name}", ", ".join(earlier) or "none"
    if stage.kind == "train" and not stage.train_on:
        raise UserError("no data to train on", where=f"{where}.train_on", todo="name data sources of config.data")
    if stage.kind == "synthesize" and not stage.model:
        raise UserError("no model to paint with", where=f"{where}.model", todo=f"train stages before it: {known}")
    for key in MODEL_KEYS:
        initial = stage.get(key, "")
        if initial in config.stages and initial not in earlier:
            raise UserError(
                f"'{initial}' is no train stage before '{name}'",
                where=f"{where}.{key}",
                todo=f"train stages before it: {known}; or give a model folder",
            )
    if "models" not in stage:
        return
    if not stage.models:
        raise UserError("no model to evaluate", where=f"{where}.models", todo=f"train stages before it: {known}")
    for model in stage.models:
        if model not in earlier and not _is_trained(folder, model):
            raise UserError(
                f"'{model}' is no train stage before '{name}' and no trained stage of the run folder",
                where=f"{where}.models",
                todo=f"train stages before it: {known}",
            )


def _is_trained(folder: Path | None, name: str) -> bool:
    return folder is not None and Path(name).name == name and (folder / name / "model" / "model.json").is_file()


def plain(config: Any) -> Any:
    """A ConfigDict as plain JSON-able dicts and lists, in the order of the configuration."""
    if isinstance(config, ConfigDict):
        return {key: plain(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [plain(value) for value in config]
    return config


def _differences(before: Any, now: Any, key: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            text
            for name in {**before, **now}
            for text in _differences(before.get(name), now.get(name), f"{key}.{name}" if key else name)
        ]
    return [] if before == now else [f"{key} was {before!r} and is {now!r}"]


def versions() -> dict[str, Any]:
    """Libraries, hardware and git state, for the run folder and the report."""
    names = (
        "elk_jax",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "grain",
        "numpy",
        "opencv-python-headless",
    )
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    devices = jax.devices()
    return {
        "python": sys.version.split()[0],
        **found,
        "machine": f"{platform.system()} {platform.machine()}",
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "processes": jax.process_count(),
        "git": _git_state(),
    }


def _git_state() -> str:
    root = Path(__file__).resolve().parents[2]
    try:
        call = lambda *a: subprocess.run(
            ["git", "-C", str(root), *a], capture_output=True, text=True, timeout=10
        ).stdout.strip()
        commit = call("rev-parse", "--short=12", "HEAD")
        return f"{commit}{' with uncommitted changes' if call('status', '--porcelain') else ''}" if commit else "no git"
    except (OSError, subprocess.SubprocessError):
        return "no git"
