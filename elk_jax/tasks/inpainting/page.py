"""Report sections of lesion synthesis, from plain data: metrics.jsonl, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from elk_jax.reporting.pictures import Strip, strips, wide_image
from elk_jax.reporting.report import Section
from elk_jax.reporting.run import Part, promised
from elk_jax.reporting.training import Trainings, stacked, training_section


@dataclass(frozen=True)
class PaintedSet:
    """The painted set of a synthesis stage."""

    stage: str
    count: int
    painted: Sequence[Strip] = ()  # canvas before and after; none where another stage protects the canvases
    real: Sequence[Strip] = ()  # lesions of the training split; of validation if training is private


@dataclass(frozen=True)
class Step:
    """Close-ups painted by an inpainter at one step of its training."""

    step: int
    image: np.ndarray  # [H, W] or [H, W, 3] uint8: close-ups in a row


@dataclass(frozen=True)
class Progress:
    """The same validation close-ups during a training."""

    model: str
    known: Mapping[str, np.ndarray]  # rows above, for example the real close-ups: name -> image
    steps: Sequence[Step]


@dataclass(frozen=True)
class InpaintingRun:
    """The content of a report on lesion synthesis; empty parts are omitted."""

    sets: Sequence[PaintedSet] = ()
    progress: Sequence[Progress] = ()
    trainings: Trainings = field(default_factory=Trainings)


def inpainting_part(run: InpaintingRun) -> Part:
    """The report on lesion synthesis: painted lesions, progress and training curves."""
    sections = [painted_section(one, len(run.sets) > 1) for one in run.sets if one.painted or one.real]
    sections += [progress_section(one, len(run.progress) > 1) for one in run.progress if one.steps]
    if run.trainings.have_curves:
        sections.append(training_section(run.trainings, "Inpainter training"))
    facts = {"Synthetic lesions": ", ".join(str(one.count) for one in run.sets)} if run.sets else {}
    return Part("Lesion synthesis", " ".join(promised(run.trainings.promises)), facts, sections)


def painted_section(painted: PaintedSet, named: bool = False) -> Section:
    """Canvases before and after painting, and real lesions for comparison."""
    parts = [strips(painted.painted)] if painted.painted else []
    if painted.real:
        parts.append(f"<h3>Real lesions at the same scale</h3>{strips(painted.real)}")
    title = _titled("Painted lesions", painted.stage if named else "")
    note = (
        f"Examples of {painted.count}, at native resolution: the canvas, and the canvas with the lesion. "
        "The corners of the box are marked; click to enlarge."
    )
    if not painted.painted:
        note = f"{painted.count} images, not shown because another stage protects the patients of the canvases."
    return Section(title, "".join(parts), note)


def progress_section(progress: Progress, named: bool = False) -> Section:
    """Validation close-ups, their visible part, and the lesions painted at several steps of the training."""
    rows = {**progress.known, **{f"Painted, step {one.step}": one.image for one in progress.steps}}
    title = _titled("Progress of the inpainter", progress.model if named else "")
    note = "Lesions of the validation split, always painted from the same noise."
    return Section(title, stacked((name, wide_image(name, image)) for name, image in rows.items()), note)


def _titled(title: str, name: str) -> str:
    return f"{title}: {name}" if name else title
