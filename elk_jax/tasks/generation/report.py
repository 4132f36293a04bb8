"""The report of generation, read from the files of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2

from elk_jax import files
from elk_jax.reporting.run import Part
from elk_jax.tasks.generation.page import Compared, GenerationRun, Progress, generation_part
from elk_jax.tasks.run import Run
from elk_jax.tasks.sampling import saved_grids
from elk_jax.training.writer import read_metrics
from elk_jax.weights.model_folder import kept_step, promise

STEPS = 4
"""Number of pictures of the progress: first, last, and between."""


def part(run: Run, summaries: Mapping[str, Any]) -> Part:
    """The part of the finished stages of generation. summaries: by stage."""
    trained = [name for name, s in summaries.items() if s["kind"] == "train"]
    progress = [Progress(name, saved_grids(run.folder / name, "made", STEPS)) for name in trained]
    return generation_part(
        GenerationRun(
            pools={name: s for name, s in summaries.items() if s["kind"] == "fit"},
            compared=[compared(run.folder / name) for name, s in summaries.items() if s["kind"] == "evaluate"],
            progress=progress,
            histories={name: read_metrics(run.folder / name / "metrics.jsonl") for name in trained},
            chosen_steps={n: kept_step(run.folder / n / "model", summaries[n]["best_step"]) for n in trained},
            promises={name: said for name in trained if (said := promise(run.folder / name / "model"))},
        )
    )


def compared(folder: Path) -> Compared:
    """A comparison with its pictures, without missing ones."""
    evaluation = files.read_object(folder / "evaluation.json", "classes")
    paths = sorted((folder / "pictures").glob("*.png"))
    read = {path.stem: cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths}
    return Compared(evaluation, {name: picture for name, picture in read.items() if picture is not None})
