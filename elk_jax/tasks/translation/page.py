"""What a report says of image translation, from plain data: evaluation.json, metrics.jsonl, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from elk_jax.reporting import html
from elk_jax.reporting.pictures import Strip, data_uri, enlarged, strips
from elk_jax.reporting.report import Section
from elk_jax.reporting.run import Part
from elk_jax.reporting.sections import training_section

Evaluation = Mapping[str, Any]
"""The content of evaluation.json of translation (tasks/translation_evaluate.py)."""

MEASURES = {  # name in evaluation.json -> (words, digits)
    "mae": ("Mean absolute error (lower is better)", 4),
    "psnr": ("PSNR, dB", 2),
    "ssim": ("SSIM", 3),
    "lesion_contrast": ("Lesions over the rest of the breast", 4),
}


@dataclass(frozen=True)
class Evaluated:
    """One evaluation. title: "test split of pairs"; gallery: low energy, translated and real side by side."""

    title: str
    evaluation: Evaluation
    gallery: Sequence[Strip] = ()


@dataclass(frozen=True)
class Progress:
    """Validation pairs through a training: low energy above, then translated, then real. steps: (step, picture)."""

    model: str
    steps: Sequence[tuple[int, np.ndarray]]


@dataclass(frozen=True)
class TranslationRun:
    """Everything that a report can show of translation; what is empty is left out."""

    evaluated: Sequence[Evaluated] = ()
    progress: Sequence[Progress] = ()
    histories: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)  # lines of metrics.jsonl
    chosen_steps: Mapping[str, int] = field(default_factory=dict)  # by model: the step whose weights were kept


def translation_part(run: TranslationRun) -> Part:
    """What a report says of translation: how near it comes, what it looks like, how it came about."""
    many = len(run.evaluated) > 1
    sections = []
    for one in run.evaluated:
        sections.append(measures_section(one, many))
        if one.gallery:
            title = f"Translated images: {one.title}" if many else "Translated images"
            sections.append(Section(title, strips(one.gallery), "Low energy, translated, real; a click enlarges."))
    sections += [progress_section(one, len(run.progress) > 1) for one in run.progress if one.steps]
    if any(run.histories.values()):
        colours = {name: index for index, name in enumerate(run.histories)}
        sections.append(training_section(run.histories, run.chosen_steps, colours, "Translator training"))
    said = [verdict(one) for one in run.evaluated]
    return Part("Mammogram to CEM", " ".join(said), {}, sections)


def verdict(one: Evaluated) -> str:
    """The result in a sentence for each model."""
    said = []
    for model in one.evaluation["models"]:
        found = one.evaluation["measures"][model]
        values = ", ".join(
            f"{name} {html.number(found[key]['value'], digits)}"
            for key, name, digits in (("mae", "error", 3), ("psnr", "PSNR", 1), ("ssim", "SSIM", 2))
        )
        said.append(f"{model} on the {one.title}: {values}.")
    return " ".join(said)


def measures_section(one: Evaluated, named: bool = False) -> Section:
    """All measures of models, baselines and real images, and the paired differences of the models."""
    evaluation = one.evaluation
    counts, rows = evaluation["counts"], evaluation["measures"]
    cells = [
        html.row([html.text(name), *(html.estimate_cell(found.get(key, {}), d) for key, (_, d) in MEASURES.items())])
        for name, found in rows.items()
    ]
    parts = [html.table(["", *(words for words, _ in MEASURES.values())], cells)]
    lines = [
        html.row([html.text(f"{model} − {other}"), *(_difference(found, key) for key in MEASURES)])
        for model, others in evaluation["differences"].items()
        for other, found in others.items()
    ]
    parts.append(f"<h3>Paired differences</h3>{html.table(['', *(words for words, _ in MEASURES.values())], lines)}")
    note = (
        f"Means over {counts['tiles']} tiles of {counts['patients']} patients, inside the breast, grey values 0 to 1, "
        f"with 95 % intervals over patients; lesions are in {counts['with_lesions']} tiles. 'low energy, matched' has "
        "the mean and deviation of the training's subtracted images, 'mean grey' is their mean everywhere."
    )
    return Section(f"Translation: {one.title}" if named else "Translation", "".join(parts), note)


def progress_section(progress: Progress, named: bool = False) -> Section:
    """Validation pairs, translated early and late."""
    cells = "".join(
        f'<div>Step {step}</div><img alt="step {step}" src="{data_uri(enlarged(image, 900), 1200)}">'
        for step, image in progress.steps
    )
    title = f"Progress of {progress.model}" if named else "Progress of the translator"
    note = "Pairs of the validation split: low energy, translated from the same noise every time, real."
    return Section(title, f'<div class="steps">{cells}</div>', note)


def _difference(found: Mapping[str, Mapping[str, Any]], key: str) -> str:
    entry, digits = found.get(key, {}), MEASURES[key][1]
    if entry.get("difference") is None:
        return html.ABSENT
    bounds = html.interval(entry, digits, html.signed)
    below = f'<br><span class="range">{html.text(bounds)}</span>' if bounds else ""
    return f"{html.signed(entry['difference'], digits)}{below}"
