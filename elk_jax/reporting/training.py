"""Report blocks of trained models: their curves, pictures of their progress, the steps of their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from elk_jax.reporting import html
from elk_jax.reporting.figures import Series, line_chart
from elk_jax.reporting.pictures import wide_image
from elk_jax.reporting.report import Section
from elk_jax.reporting.sections import plain_label

FIRST_CURVES = ("train/loss", "eval/loss")


@dataclass(frozen=True)
class Trainings:
    """The trainings of a task, by model. histories: lines of metrics.jsonl. chosen_steps: of the saved weights.
    promises: of private trainings, in words."""

    histories: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    chosen_steps: Mapping[str, int] = field(default_factory=dict)
    promises: Mapping[str, str] = field(default_factory=dict)

    @property
    def have_curves(self) -> bool:
        """Whether any training has logged something."""
        return any(self.histories.values())


@dataclass(frozen=True)
class Progress:
    """Pictures of the same examples during a training. steps: (step, picture [H, W] uint8)."""

    model: str
    steps: Sequence[tuple[int, np.ndarray]]


def progress_sections(many: Sequence[Progress], model: str, note: str) -> list[Section]:
    """The pictures of every training that has some. model: what is trained, in words, for the title of a single
    training; those of several have the names of their models."""
    return [
        Section(
            f"Progress of {one.model if len(many) > 1 else model}",
            stacked((f"Step {step}", wide_image(f"step {step}", image)) for step, image in one.steps),
            note,
        )
        for one in many
        if one.steps
    ]


def stacked(rows: Iterable[tuple[str, str]]) -> str:
    """Pictures one above the other. rows: (words above it, <img>)."""
    return f'<div class="steps">{"".join(f"<div>{html.text(words)}</div>{image}" for words, image in rows)}</div>'


def training_section(
    trainings: Trainings,
    title: str,
    first_curves: Sequence[str] = FIRST_CURVES,
    label: Callable[[str], str] = plain_label,
    coloured_before: Iterable[str] = (),
) -> Section:
    """One small chart for each key of metrics.jsonl, with all trained models.

    first_curves: keys whose charts are not folded. label: the name of a validation metric. coloured_before: models that
    have the first colours; those that are not among them follow.
    """
    histories, chosen_steps = trainings.histories, trainings.chosen_steps
    colours = {name: index for index, name in enumerate(dict.fromkeys([*coloured_before, *histories]))}
    keys = {key: None for lines in histories.values() for line in lines for key in line if key != "step"}
    charts: dict[str, str] = {}
    for key in keys:
        series = []
        for name, lines in histories.items():
            points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
            if points:
                x, y = zip(*points)
                mark = chosen_steps.get(name) if key.startswith("eval/") else None
                smoothing = 0.05 if key.startswith("train/") else 0.0
                series.append(Series(name, x, y, colours[name], smoothing=smoothing, mark=mark))
        if series:
            charts[key] = line_chart(series, title=_curve_title(key, label), size=(330, 210))
    first = [key for key in first_curves if key in charts] or list(charts)[:4]
    names = sorted(histories, key=lambda name: colours[name])
    swatches = "".join(f"<span>{html.named(colours[n], n)}</span>" for n in names)
    parts = [f'<div class="legend">{swatches}</div>', _multiples(charts[key] for key in first)]
    groups = {"Losses and rates": "train/", "Validation": "eval/", "Time": "time/"}
    for group, prefix in groups.items():
        rest = [charts[key] for key in sorted(charts) if key.startswith(prefix) and key not in first]
        if rest:
            parts.append(html.folded(f"{group} ({len(rest)} more)", _multiples(rest)))
    other = [charts[k] for k in sorted(charts) if k not in first and not k.startswith(tuple(groups.values()))]
    if other:
        parts.append(html.folded(f"Others ({len(other)})", _multiples(other)))
    note = "Over training steps."
    if chosen_steps:
        saved = ", ".join(f"{name} at step {step}" for name, step in chosen_steps.items())
        note += f" Dashed lines mark the saved weights: {saved}."
    return Section(title, "".join(parts), note)


def _curve_title(key: str, label: Callable[[str], str]) -> str:
    prefix, _, name = key.rpartition("/")
    words = label(name) if prefix == "eval" else plain_label(name)
    return f"{words[:1].upper()}{words[1:]}{', validation' if prefix == 'eval' else ''}"


def _multiples(charts: Iterable[str]) -> str:
    return f'<div class="multiples">{"".join(charts)}</div>'
