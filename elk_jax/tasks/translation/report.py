"""The report of translation, read from the files of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from elk_jax import files
from elk_jax.reporting.pictures import Closeup, Strip
from elk_jax.reporting.run import Part
from elk_jax.reporting.training import Progress
from elk_jax.tasks import training
from elk_jax.tasks.run import Run
from elk_jax.tasks.sampling import saved_grids
from elk_jax.tasks.translation.page import Evaluated, TranslationRun, translation_part

STEPS = 3
"""Number of pictures of the progress: first, last, and between."""
PANELS = 3
"""Low energy, translated, real."""


def part(run: Run, summaries: Mapping[str, Any]) -> Part:
    """The part of the finished stages of translation. summaries: by stage."""
    trainings = training.recorded(run, summaries)
    shown = [progress(run.folder / name, name) for name in trainings.histories]
    return translation_part(
        TranslationRun(
            evaluated=[evaluated(run.folder / name) for name, s in summaries.items() if s["kind"] == "evaluate"],
            progress=[one for one in shown if one.steps],
            trainings=trainings,
        )
    )


def evaluated(folder: Path) -> Evaluated:
    """An evaluation with its gallery, without missing pictures."""
    evaluation = files.read_object(folder / "evaluation.json")
    gallery = []
    for one in evaluation["pictures"]:
        picture = cv2.imread(str(folder / "pictures" / one["file"]), cv2.IMREAD_GRAYSCALE)
        if picture is None:
            continue
        low, translated, real = np.split(picture, PANELS, axis=1)
        box = np.array(one["boxes"][0]) if one["boxes"] else None
        lesions = f"{len(one['boxes'])} lesion{'s' if len(one['boxes']) > 1 else ''}" if one["boxes"] else "no lesion"
        x, y = one["position"]
        caption = f"{one['model']}, tile at {x}, {y}; {lesions}{', the first marked' if len(one['boxes']) > 1 else ''}"
        gallery.append(Strip([Closeup(panel, box) for panel in (low, translated, real)], one["image"], caption))
    return Evaluated(f"{evaluation['split']} split of {evaluation['on']}", evaluation, gallery)


def progress(folder: Path, name: str, count: int = STEPS) -> Progress:
    """The grids `pictures/translated-*.png` of a training: the first, the last, and evenly spaced ones between them."""
    return Progress(name, saved_grids(folder, "translated", count))
