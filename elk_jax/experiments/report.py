"""Write `report.html` from a run folder: the parts of the tasks, and the sections common to all runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elk_jax import files
from elk_jax.reporting.folds import folds_section
from elk_jax.reporting.report import write_report
from elk_jax.reporting.run import Part, RunRecord, run_report
from elk_jax.tasks import TASKS, private
from elk_jax.tasks.run import Run


def write(run: Run, summaries: Mapping[str, Any]) -> Path:
    """Write RUN/report.html from the output of the finished stages. summaries: by stage."""
    folder, experiment = run.folder, run.experiment
    record = RunRecord(
        name=experiment.name,
        title=experiment.name.replace("_", " "),
        data={f"{name}, {split}": counts for name, s in summaries.items() for split, counts in _counts(s).items()},
        skipped=list(dict.fromkeys(tuple(entry) for s in summaries.values() for entry in s.get("skipped", ()))),
        config=files.read_object(folder / "config.json"),
        versions=files.read_object(folder / "versions.json"),
        notes=[note for name in summaries if (note := private.unprotected(experiment, experiment.stages[name]))],
        seconds={name: files.read_object(folder / name / "finished.json", "seconds")["seconds"] for name in summaries},
    )
    parts = []
    for task in TASKS.values():
        found = {name: s for name, s in summaries.items() if experiment.stages[name].task == task.name}
        if found:
            parts.append(task.report(run, found))
    if dealt := {name: s["folds"] for name, s in summaries.items() if "folds" in s}:
        parts.append(Part("Cross-validation", sections=[folds_section(*entry) for entry in dealt.items()]))
    path = folder / "report.html"
    write_report(path, run_report(record, parts))
    return path


def _counts(summary: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Counts by split."""
    if "data" not in summary:
        return {}
    return {summary["split"]: summary["data"]} if "split" in summary else summary["data"]
