"""The output folder of `launch/evaluate.py`: the results of every task in it replace those of an earlier evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from elk_jax import files
from elk_jax.errors import UserError
from elk_jax.tasks.run import SKIPPED

EVALUATION = "evaluation.json"
WRITTEN = (
    EVALUATION,
    "comparisons.json",
    "predictions.json",
    "predictions.csv",
    "submission.csv",
    SKIPPED,
    "report.html",
)
"""All files that an evaluation of any kind of model may write."""


def check_output(output: Path, inputs: Sequence[Path] = ()) -> None:
    """UserError for a folder that cannot be written, and if results would overwrite one of the `inputs`."""
    files.check_writable(output)
    for path in inputs:
        if path.name in WRITTEN and path.resolve() == (output / path.name).resolve():
            todo = "give another --output, or rename the file"
            raise UserError("the results would overwrite the given predictions", where=path, todo=todo)


@contextlib.contextmanager
def new_evaluation(output: Path) -> Iterator[Path]:
    """A temporary place for the results, see `files.new_results`."""
    with files.new_results(output, EVALUATION, WRITTEN) as place:
        yield place
