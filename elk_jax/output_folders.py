"""Output folders of the command line: a folder of results of one kind is not overwritten by those of another."""

from __future__ import annotations

import os
from pathlib import Path

from elk_jax import files
from elk_jax.errors import UserError

MODEL, EVALUATION, PREDICTION, COMPARISON = "a model", "an evaluation", "a prediction", "a comparison of sets"
SYNTHESIS = "a synthetic set"
FOLDERS = {
    "versions.json": "a run",
    "finished.json": "a stage of a run",
    "sweep.json": "a sweep",
    "model.json": MODEL,
    "evaluation.json": EVALUATION,
    "comparison.json": COMPARISON,
    "findings.json": PREDICTION,
    "predictions.csv": PREDICTION,
    "synthesis.json": SYNTHESIS,
}
"""File -> what a folder that has it is; the first counts."""


def for_results(path: str | os.PathLike, own: str) -> Path:
    """A folder for results of the kind `own`. UserError for a folder of another kind, as they would replace its report
    or be taken for a part of it."""
    what = next((what for name, what in FOLDERS.items() if (Path(path) / name).is_file()), own)
    if what != own:
        raise UserError(f"the folder is that of {what}", where=path, todo="give another --output for the results")
    return Path(path)


def for_import(path: str | os.PathLike) -> Path:
    """A folder for an imported model, new or of an earlier import. UserError for that of a training, whose model would
    be lost, and for one of results or of a run, which would be taken for a model."""
    written = for_results(path, MODEL) / "model.json"
    content = files.read_json(written) if written.is_file() else {}
    if isinstance(content, dict) and content.get("trained") is not None:
        raise UserError("the folder has a trained model", where=path, todo="give another --output for the import")
    return Path(path)
