"""The report of generation, read from the files of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2

from elk_jax import files
from elk_jax.reporting.run import Part
from elk_jax.reporting.training import Progress
from elk_jax.tasks import training
from elk_jax.tasks.generation.page import Compared, GenerationRun, generation_part
from elk_jax.tasks.run import Run
from elk_jax.tasks.sampling import saved_grids

STEPS = 4
"""Number of pictures of the progress: first, last, and between."""


def part(run: Run, summaries: Mapping[str, Any]) -> Part:
    """The part of the finished stages of generation. summaries: by stage."""
    trainings = training.recorded(run, summaries)
    return generation_part(
        GenerationRun(
            pools={name: s for name, s in summaries.items() if s["kind"] == "fit"},
            compared=[compared(run.folder / name) for name, s in summaries.items() if s["kind"] == "evaluate"],
            progress=[Progress(name, saved_grids(run.folder / name, "made", STEPS)) for name in trainings.histories],
            trainings=trainings,
        )
    )


def compared(folder: Path) -> Compared:
    """A comparison with the pictures of its classes, without missing ones."""
    evaluation = files.read_object(folder / "evaluation.json", "classes")
    paths = [path for path in sorted((folder / "pictures").glob("*.png")) if path.stem in evaluation["classes"]]
    read = {path.stem: cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths}
    return Compared(evaluation, {name: picture for name, picture in read.items() if picture is not None})
