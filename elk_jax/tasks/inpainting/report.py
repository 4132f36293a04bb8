"""The report of lesion synthesis, read from the files of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from elk_jax.data.sources.coco import SYNTHETIC
from elk_jax.data.sources.open import list_source
from elk_jax.data.sources.source import ImageSource
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.errors import UserError
from elk_jax.images.windows import cut
from elk_jax.randomness import Purpose, generator
from elk_jax.reporting.pictures import Closeup, Strip
from elk_jax.reporting.run import Part
from elk_jax.spread import spread
from elk_jax.synthesis.closeups import fitting_lesions, lesion_closeup
from elk_jax.tasks import private, training
from elk_jax.tasks.inpainting.page import InpaintingRun, PaintedSet, Progress, Step, inpainting_part
from elk_jax.tasks.inpainting.recipe import PaintStage
from elk_jax.tasks.run import Run
from elk_jax.tasks.sampling import saved_grids
from elk_jax.tasks.stages import TrainStage

PAINTED = 9
"""Number of painted lesions in the gallery, spread over the set."""
REAL = 12
"""Number of real lesions in the gallery."""
STEPS = 3
"""Number of rows of the progress: first, last, and between."""


def part(run: Run, summaries: Mapping[str, Any]) -> Part:
    """The part of the finished stages of lesion synthesis. summaries: by stage."""
    trainings = training.recorded(run, summaries)
    rows = [progress(run.folder / name, name) for name in trainings.histories]
    return inpainting_part(
        InpaintingRun(
            sets=[_painted(run, name, s) for name, s in summaries.items() if s["kind"] == "synthesize"],
            progress=[one for one in rows if one is not None],
            trainings=trainings,
        )
    )


def progress(folder: Path, name: str, count: int = STEPS) -> Progress | None:
    """The grids `pictures/painted-*.png` of a training: the first, the last, and some evenly between.

    Their rows are (train.py): the close-ups, their visible part, and the painted lesions.
    """
    grids = saved_grids(folder, "painted", count)
    rows = [(step, np.split(grid, 3)) for step, grid in grids if len(grid) % 3 == 0]
    if not rows:
        return None
    real, covered, _ = rows[-1][1]
    return Progress(name, {"Real": real, "Covered": covered}, [Step(step, painted) for step, (*_, painted) in rows])


def _painted(run: Run, name: str, summary: Mapping[str, Any]) -> PaintedSet:
    stage = run.experiment.stages[name]
    assert isinstance(stage, PaintStage)
    if private.is_withheld(run.experiment, stage):  # the pictures would show the canvases and name them
        return PaintedSet(name, summary["count"])
    painted = list_source(SourceSpec(spec=f"coco:{run.folder / name / SYNTHETIC}"))
    strips = painted_strips(painted, run.list(stage.canvases, "train"))
    size = len(strips[0].closeups[0].image) if strips else 0
    return PaintedSet(name, summary["count"], strips, real_strips(_lesions(run, stage), size, run.seed))


def _lesions(run: Run, stage: PaintStage) -> ImageSource:
    """Real lesions for comparison: the inpainter's training lesions if it is a stage of this run and they may be shown;
    otherwise validation lesions."""
    inpainter = run.experiment.stages.get(stage.model)
    if isinstance(inpainter, TrainStage):
        if private.is_withheld(run.experiment, inpainter):
            return run.list(inpainter.validate_on, "val")
        return run.list(inpainter.train_on, "train")
    return run.list(stage.share_of or stage.canvases, "train")


def painted_strips(painted: ImageSource, canvases: ImageSource, count: int = PAINTED) -> list[Strip]:
    """The window of some canvases before and after."""
    at = {info.image_id: i for i, info in enumerate(canvases.infos)}
    strips = []
    for position in spread(len(painted), count):
        info = painted.infos[position]
        window, canvas = tuple(info.meta["window"]), info.meta["canvas"]
        box = np.array(info.meta["box"], float) - np.array([*window[:2], *window[:2]])
        places, name = [(painted, position)], canvas
        if canvas in at:
            places, name = [(canvases, at[canvas]), *places], canvases.infos[at[canvas]].title
        closeups = [Closeup(cut(source[i].image[..., 0], window), box) for source, i in places]
        sides = f"{box[2] - box[0]:.0f} × {box[3] - box[1]:.0f} px"
        strips.append(Strip(closeups, f"Synthetic {info.image_id}", f"in {name}, {sides}"))
    return strips


def real_strips(source: ImageSource, size: int, seed: int, count: int = REAL) -> list[Strip]:
    """Lesions of a source in windows of `size` px; none if no lesion fits."""
    try:
        lesions = fitting_lesions(source.infos, size)
    except UserError:
        return []
    strips = []
    for i in spread(len(lesions), count):
        position, lesion = lesions[i]
        info = source.infos[position]
        rng = generator(seed, Purpose.REPORT_CLOSEUP, i)
        closeup = lesion_closeup(source[position].image[..., 0], info.boxes, lesion, size, rng)
        x, y = closeup.window[:2]
        strips.append(Strip([Closeup(closeup.image, info.boxes[lesion] - [x, y, x, y])], info.title))
    return strips
