"""From a run folder to `report.html`: the one place where the tasks' parts come together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elk_jax import files
from elk_jax.reporting.report import write_report
from elk_jax.reporting.run import RunRecord, run_report
from elk_jax.tasks.detection import report as detection_report
from elk_jax.tasks.inpainting import report as inpainting_report
from elk_jax.tasks.run import Run
from elk_jax.tasks.translation import report as translation_report

PARTS = {
    "detection": detection_report.part,
    "inpainting": inpainting_report.part,
    "translation": translation_report.part,
}
"""By task, in the order of the page: (run, summaries of its finished stages) -> reporting.run.Part."""


def write(run: Run, summaries: Mapping[str, Any]) -> Path:
    """Write RUN/report.html from what the finished stages left behind. summaries: by stage."""
    folder, config = run.folder, run.config
    by_task = {task: {name: s for name, s in summaries.items() if task_of(s) == task} for task in PARTS}
    record = RunRecord(
        name=config.name,
        title=config.name.replace("_", " "),
        data={f"{name}, {split}": counts for name, s in summaries.items() for split, counts in _counts(s).items()},
        skipped=list(dict.fromkeys(tuple(entry) for s in summaries.values() for entry in s.get("skipped", ()))),
        config=files.read_json(folder / "config.json"),
        versions=files.read_json(folder / "versions.json"),
        seconds={name: files.read_json(folder / name / "finished.json")["seconds"] for name in summaries},
    )
    path = folder / "report.html"
    write_report(path, run_report(record, [PARTS[task](run, found) for task, found in by_task.items() if found]))
    return path


def task_of(summary: Mapping[str, Any]) -> str:
    """Whose stage it was. Those of before there was a second task do not say so."""
    return summary.get("task", "detection")


def _counts(summary: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Counts by split."""
    if "data" not in summary:
        return {}
    return summary["data"] if summary["kind"] == "train" else {summary["split"]: summary["data"]}
