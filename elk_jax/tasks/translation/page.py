"""Report sections and terminal table of image translation, from plain data: evaluation.json, metrics.jsonl, images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from elk_jax.reporting import html
from elk_jax.reporting.pictures import Strip, strips
from elk_jax.reporting.report import Section
from elk_jax.reporting.run import Part, promised
from elk_jax.reporting.tables import estimate_cell, name_cell, named_table
from elk_jax.reporting.training import Progress, Trainings, progress_sections, training_section

Evaluation = Mapping[str, Any]
"""The content of evaluation.json (evaluate.py)."""

MEASURES = {  # name in evaluation.json -> (words, digits)
    "mae": ("Mean absolute error (lower is better)", 4),
    "psnr": ("PSNR, dB", 2),
    "ssim": ("SSIM", 3),
    "lesion_contrast": ("Contrast of lesions with the rest of the breast", 4),
}


@dataclass(frozen=True)
class Evaluated:
    """One evaluation. title: "test split of pairs"; gallery: low energy, translated and real side by side."""

    title: str
    evaluation: Evaluation
    gallery: Sequence[Strip] = ()


@dataclass(frozen=True)
class TranslationRun:
    """The content of a report on translation; empty parts are omitted. progress: rows of low energy, translated and
    real."""

    evaluated: Sequence[Evaluated] = ()
    progress: Sequence[Progress] = ()
    trainings: Trainings = field(default_factory=Trainings)


def translation_part(run: TranslationRun) -> Part:
    """The report on translation: measures, images, progress and training curves."""
    many = len(run.evaluated) > 1
    sections = []
    for one in run.evaluated:
        sections.append(measures_section(one, many))
        if one.gallery:
            title = f"Translated images: {one.title}" if many else "Translated images"
            sections.append(Section(title, strips(one.gallery), "Low energy, translated, real; click to enlarge."))
    note = "Pairs of the validation split: low energy, translated (always from the same noise), real."
    sections += progress_sections(run.progress, "the translator", note)
    if run.trainings.have_curves:
        sections.append(training_section(run.trainings, "Translator training"))
    said = [*map(verdict, run.evaluated), *promised(run.trainings.promises)]
    return Part("Mammogram to CEM", " ".join(said), {}, sections)


def verdict(one: Evaluated) -> str:
    """The result in a sentence for each model."""
    sentences = []
    for model in one.evaluation["models"]:
        found = one.evaluation["measures"][model]
        values = ", ".join(
            f"{name} {html.number(found[key]['value'], digits)}"
            for key, name, digits in (("mae", "error", 3), ("psnr", "PSNR", 1), ("ssim", "SSIM", 2))
        )
        sentences.append(f"{model} on the {one.title}: {values}.")
    return " ".join(sentences)


def measures_section(one: Evaluated, named: bool = False) -> Section:
    """All measures of models, baselines and real images, and paired differences of the models."""
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
        f"with 95 % intervals over patients; {counts['with_lesions']} tiles have lesions. 'low energy, matched' has "
        "the mean and standard deviation of the subtracted training images; 'mean grey' is their mean everywhere."
    )
    return Section(f"Translation: {one.title}" if named else "Translation", "".join(parts), note)


def translation_table(evaluation: Evaluation, title: str = "") -> Table:
    """For the terminal: the measures of models, baselines and real images."""
    table = named_table(title, "")
    for words, _ in MEASURES.values():
        table.add_column(words, justify="right")
    for name, found in evaluation["measures"].items():
        cells = [estimate_cell(found.get(key, {}), digits) for key, (_, digits) in MEASURES.items()]
        table.add_row(name_cell(name), *cells, style="bold" if name in evaluation["models"] else "")
    return table


def _difference(found: Mapping[str, Mapping[str, Any]], key: str) -> str:
    entry, digits = found.get(key, {}), MEASURES[key][1]
    if entry.get("difference") is None:
        return html.ABSENT
    bounds = html.interval(entry, digits, html.signed)
    below = f'<br><span class="range">{html.text(bounds)}</span>' if bounds else ""
    return f"{html.signed(entry['difference'], digits)}{below}"
