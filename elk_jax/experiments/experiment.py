"""Run an experiment, an ordered list of stages, inside a run folder.

Run folder:
  config.json      the whole configuration         versions.json   libraries, hardware, git state
  <stage>/         output of a stage: config.json (what it depends on), metrics.jsonl, checkpoints/, ...
  <stage>/finished.json   written last; the stage is then not repeated
  report.html      all results on one page
A stage reads the output of earlier stages by stage name.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
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
from elk_jax.experiments import checks, needs, report, resume
from elk_jax.experiments.parse import kind_of, parse, plain
from elk_jax.tasks import folds, private
from elk_jax.tasks.run import Experiment, Run, meet
from elk_jax.tasks.stages import Stage, TrainStage
from elk_jax.training import mesh as meshes

PACKAGES = ("elk_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "opencv-python-headless")
"""Libraries whose versions a run folder records."""


def run_experiment(
    config: ConfigDict, workdir: str | Path, stages: Sequence[str] | None = None, *, repeat: bool = True
) -> dict[str, Any]:
    """Run an experiment's stages in order and write the report.

    config: see configs/. workdir: the run folder, created if missing; an interrupted run in it is resumed.
    stages: names of the stages to run; all when None. Named evaluation stages are repeated even when finished,
        unless `repeat` is False.
    Returns the summaries of all finished stages, by stage name. Raises UserError for problems that the user can fix.
    """
    folder = Path(workdir)
    experiment = parse(config, stages, folder)
    chosen = [stage for name, stage in experiment.stages.items() if stages is None or name in stages]
    needs.check_needs(experiment, chosen)
    resume.check_experiment(experiment, folder)
    run = run_of(experiment, folder)
    repeat = repeat and stages is not None
    for stage in chosen:
        resume.check_settings(run, stage)
        resume.check_annotations(run, stage)
    for stage in experiment.stages.values():
        if stage not in chosen or not repeat:  # repeated evaluations are written again
            resume.check_results(folder / stage.name)
    checks.check_inputs(run, [stage.name for stage in chosen if not resume.is_finished(run, stage, repeat)])
    files.make_folder(folder)
    meet("settings compared")
    with files.locked(folder) if run.is_main else contextlib.nullcontext():
        return _run_stages(run, chosen, repeat, plain(config))


def run_of(experiment: Experiment, folder: Path) -> Run:
    """An experiment in its run folder, on the devices that it asks for."""
    return Run(experiment, folder, meshes.make_mesh(experiment.mesh.data, experiment.mesh.fsdp))


def _run_stages(run: Run, chosen: Sequence[Stage], repeat: bool, config: dict[str, Any]) -> dict[str, Any]:
    """Run the stages and write the report, in a run folder that no other run writes into."""
    folder, experiment = run.folder, run.experiment
    resume.check_experiment(experiment, folder)  # again, as another run may have written here before the lock
    for stage in chosen:
        resume.check_settings(run, stage)
    meet("settings compared again")
    if run.is_main:
        files.write_json(folder / "config.json", config)
        files.write_json(folder / "versions.json", versions())
    run.say(f"{experiment.name}: run folder {folder}")
    for stage in chosen:
        _run_stage(run, stage, repeat)
    summaries = {
        name: files.read_object(folder / name / "finished.json", "summary")["summary"]
        for name in experiment.stages
        if (folder / name / "finished.json").exists()
    }
    if run.is_main:
        run.say(f"report: {report.write(run, summaries)}")
    meet("report written")  # none exits while the main process writes: JAX waits only minutes for it
    return summaries


def _run_stage(run: Run, stage: Stage, repeat: bool) -> None:
    folder = run.folder / stage.name
    finished, inputs = folder / resume.FINISHED, resume.inputs(run.experiment, run.folder, stage)
    resume.check_inputs(run, stage, inputs)
    depends = resume.settings(run.experiment, stage) | inputs
    done = finished.exists() and files.read_json(folder / resume.DEPENDS) == depends
    if done and not isinstance(stage, TrainStage) and resume.have_changed(run, stage):
        run.say(f"stage {stage.name}: the annotations have changed since it finished, so it is repeated")
        done = False
    if jax.process_count() > 1:
        resume.check_alike(stage, depends, resume.annotation_hash(run, stage))
    meet(f"{stage.name}: looked")  # before the main process changes files that the others read
    if done and not (repeat and not isinstance(stage, TrainStage)):
        run.say(f"stage {stage.name}: finished before, skipped")
        return
    if run.is_main:
        files.make_folder(folder)
        finished.unlink(missing_ok=True)
        files.write_json(folder / resume.DEPENDS, depends)
    run.say(f"stage {stage.name}: {stage.kind} {stage.task}")
    if warning := private.unprotected(run.experiment, stage):
        run.say(f"  warning: {warning}")
    started = time.time()
    kind = kind_of(stage)
    pairs = {need.data for need in needs.of_stage(run.experiment, stage) if need.of == "pairs"}
    summary = folds.train(run, stage, run.experiment.recipe_of(stage), kind.run, kind.join, kind.lacks, pairs)
    if run.is_main:
        seconds = time.time() - started + summary.get("seconds_before", 0.0)
        written: dict[str, Any] = {"results": resume.results(folder)} if stage.kind == "evaluate" else {}
        if known := resume.annotation_hash(run, stage):
            written["annotations"] = known
        files.write_json(finished, {"summary": summary, "seconds": round(seconds, 1), **written})
    meet(f"{stage.name}: finished")  # in the next stage all processes read what the main one wrote


def versions() -> dict[str, Any]:
    """Libraries, hardware and git state, for the run folder and the report."""
    found = {}
    for name in PACKAGES:
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
