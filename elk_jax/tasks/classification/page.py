"""Report sections of classification, from plain data: summaries of fits and trainings, evaluations, draws of noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from elk_jax.output import visible
from elk_jax.reporting import html
from elk_jax.reporting.classification import (
    Comparisons,
    Evaluations,
    classification_sections,
    errors_section,
    results_table,
)
from elk_jax.reporting.folds import validated_on
from elk_jax.reporting.pictures import Picture
from elk_jax.reporting.report import Section
from elk_jax.reporting.run import Part
from elk_jax.reporting.tables import difference_cell, estimate_cell, name_cell, named_table
from elk_jax.reporting.training import Trainings, training_section

MOST_COLUMNS = 2
"""Largest number of models shown as columns in the terminal."""
Published = tuple[str, float, float]
"""Name of the publication, epsilon (0: without privacy), AUROC."""


@dataclass(frozen=True)
class Evaluated:
    """One evaluation. title: "test split of patches". errors: pictures by model. draws: values of every draw of the
    noise by model and metric. unnamed: whether no image names a patient."""

    title: str
    evaluations: Evaluations
    comparisons: Comparisons
    errors: Mapping[str, Sequence[Picture]]
    draws: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    published: Sequence[Published] = ()
    unnamed: bool = False


@dataclass(frozen=True)
class ClassificationRun:
    """The content of a report on classification; empty parts are omitted.

    fitted, trained, combined: summaries of stages of these kinds by name.
    """

    evaluated: Sequence[Evaluated] = ()
    fitted: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    trained: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    combined: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    trainings: Trainings = field(default_factory=Trainings)

    @property
    def models(self) -> dict[str, Mapping[str, Any]]:
        """The summaries of all models of the run."""
        return {**self.fitted, **self.trained, **self.combined}


def classification_part(run: ClassificationRun) -> Part:
    """The report on classification: privacy, results against epsilon, metrics, errors, and notes on the data."""
    many, sections = len(run.evaluated) > 1, list[Section]()
    if run.fitted:
        sections.append(heads_section(run.fitted))
    for one in run.evaluated:
        known = {name: run.models[name] for name in one.evaluations if name in run.models}
        found = [epsilon_section(one, known)] if known else []
        found += classification_sections(one.evaluations, one.comparisons)
        found += [_errors(name, one) for name in one.errors]
        sections += [Section(f"{s.title}: {one.title}" if many else s.title, s.html, s.note) for s in found]
    if run.trained:
        sections.append(networks_section(run.trained))
    if run.combined:
        sections.append(means_section(run.combined))
    if run.trainings.have_curves:
        sections.append(training_section(run.trainings, "Training of networks"))
    notes = data_notes(run)
    if notes:
        sections.append(Section("Notes on the data", "".join(html.paragraph(note) for note in notes)))
    summary = " ".join(verdict(one) for one in run.evaluated)
    return Part("Image classification", summary, _facts(run), sections)


def verdict(one: Evaluated) -> str:
    """The result in a sentence."""
    values = ", ".join(f"{name} {html.number(found['auroc']['value'])}" for name, found in one.evaluations.items())
    return " ".join([f"AUROC on the {one.title}: {values}.", *compared(one.comparisons, next(iter(one.evaluations)))])


def compared(comparisons: Comparisons, first: str) -> list[str]:
    """A sentence on which models have a larger or smaller AUROC than the first one, and for which this is undecided."""
    found: dict[str, list[str]] = {"better": [], "worse": [], "not distinguished": []}
    for name, of_name in comparisons.items():
        low, high = (of_name["auroc"].get(end) for end in ("low", "high"))
        if low is None or high is None:
            continue
        kind = "better" if low > 0 else "worse" if high < 0 else "not distinguished"
        found[kind].append(name)
    words = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in found.items() if names)
    return [f"Compared with {first}, by paired intervals over patients: {words}."] if words else []


def heads_section(fitted: Mapping[str, Mapping[str, Any]]) -> Section:
    """The heads, the settings chosen on the validation split, and their privacy promises."""
    rows, promises = [], {}
    for index, (name, summary) in enumerate(fitted.items()):
        cells = [
            html.named(index, name),
            html.text(summary["protection"]),
            html.text(summary["chosen"]),
            html.number(summary["cross_validated"]),
        ]
        rows.append(html.row([*cells, mean_and_deviation(summary["auroc"])], numeric_from=3))
        if summary["promise"]:
            promises[name] = summary["promise"]
    titles = ["Head", "Protection", "Chosen on the validation split", "Cross-validated AUROC", "Validation AUROC"]
    table = html.table(titles, rows, numeric_from=3)
    said = _said(promises)
    tried = max(summary["tried"] for summary in fitted.values())
    public = max(summary["public"] for summary in fitted.values())
    kinds = {
        "linear": f"Logistic regression on frozen features, whitened by {public} public patches.",
        "kernel": "Kernel ridge regression on frozen features, scaled by the training images.",
    }
    here = {summary["head"] for summary in fitted.values()}
    said += _contained(fitted)
    note = (
        f"{' '.join(words for kind, words in kinds.items() if kind in here)} Up to {tried} settings were tried for a "
        "head. They were chosen by this AUROC, so it is optimistic; ± is the standard deviation over draws of the "
        "noise."
    )
    return Section("Heads", table + said, note)


def means_section(combined: Mapping[str, Mapping[str, Any]]) -> Section:
    """The members of each mean."""
    rows = []
    for name, summary in combined.items():
        of = f"{summary['mean'].replace('_', ' ')} of {', '.join(summary['members'])}"
        on = summary.get("chosen_on", "validation")  # missing in earlier versions
        cells = [html.text(name), html.text(of), html.text(on), mean_and_deviation(summary["auroc"])]
        rows.append(html.row(cells, numeric_from=3))
    head = ["Mean", "Of", "On", "AUROC"]
    note = "The settings of the members were chosen on the same patients, so the AUROC is optimistic."
    promises = {name: summary["promise"] for name, summary in combined.items() if summary["promise"]}
    table = html.table(head, rows, numeric_from=3)
    return Section("Means of classifiers", table + _said(promises) + _contained(combined), note)


def networks_section(trained: Mapping[str, Mapping[str, Any]]) -> Section:
    """The networks, their checkpoints chosen on the validation split or by folds, and their privacy promises."""
    rows = []
    for name, summary in trained.items():
        cells = [html.text(name), html.text(summary["protection"]), html.text(validated_on(summary))]
        cells += [html.text(f"{summary['parameters']:,}"), str(summary["best_step"])]
        rows.append(html.row([*cells, html.number(summary["best"].get("auroc"))], numeric_from=3))
    head = ["Network", "Protection", "Step chosen on", "Parameters", "Step", "AUROC"]
    promises = {name: summary["promise"] for name, summary in trained.items() if summary["promise"]}
    note = "The step was chosen by this AUROC, with folds by their mean, so it is optimistic."
    return Section("Networks", html.table(head, rows, numeric_from=3) + _said(promises), note)


def _contained(models: Mapping[str, Mapping[str, Any]]) -> str:
    """The parts of their training images that models contain, as HTML."""
    return "".join(
        f"<p><b>{html.text(name)}</b> contains {html.text(summary['contains'])}.</p>"
        for name, summary in models.items()
        if summary["contains"]
    )


def _said(promises: Mapping[str, str]) -> str:
    """The privacy promise of every model, as HTML."""
    return "".join(f"<p><b>{html.text(name)}</b>: {html.text(promise)}</p>" for name, promise in promises.items())


def epsilon_section(one: Evaluated, models: Mapping[str, Mapping[str, Any]]) -> Section:
    """AUROC of every model with its epsilon, its draws of the noise and published values at the same epsilon."""
    names = list(dict.fromkeys(name for name, _, _ in one.published))
    known = {(name, epsilon): value for name, epsilon, value in one.published}
    rows = []
    for index, (model, summary) in enumerate(models.items()):
        cells = [html.named(index, model), html.text(summary["protection"])]
        cells.append(html.estimate_cell(one.evaluations[model]["auroc"]))
        cells.append(mean_and_deviation(one.draws.get(model, {}).get("auroc", ())))
        cells += [html.number(known.get((name, summary["epsilon"]))) for name in names]
        rows.append(html.row(cells, numeric_from=2))
    head = ["Model", "Protection", "AUROC of the model", "Mean over draws of the noise", *map(html.text, names)]
    note = (
        "The intervals are over patients and do not include the noise. A head is that of the first draw; ± is the "
        "standard deviation over draws. Epsilon covers the first draw alone: the means over draws, and draws.json, "
        "say more about the training images, and may not be published at this epsilon."
    )
    return Section("Privacy and accuracy", html.table(head, rows, numeric_from=2), note)


def terminal_table(
    evaluations: Evaluations, comparisons: Comparisons, draws: Mapping[str, Mapping[str, Sequence[float]]], title: str
) -> Table:
    """For the terminal: all metrics of one or two models, else one row per model with the main ones."""
    if len(evaluations) <= MOST_COLUMNS:
        return results_table(evaluations, comparisons, title)
    first = next(iter(evaluations))
    positive, negative = evaluations[first]["positive"], evaluations[first]["negative"]
    table = named_table(f"{title}, positive: {positive}", "")
    for words in ("AUROC", "noise draws", f"AP {positive}", f"AP {negative}", "sensitivity", "difference"):
        table.add_column(words, justify="right", no_wrap=not words.startswith("AP"))
    for name, found in evaluations.items():
        precision = found["average_precision"]
        cells = [estimate_cell(found["auroc"]), _spread_text(draws.get(name, {}).get("auroc", ()))]
        cells += [Text(html.number(precision[kind]["value"])) for kind in (positive, negative)]
        cells += [Text(html.number(found["sensitivity_at_specificity"]["0.9"]["value"]))]
        cells += [difference_cell(comparisons[name]["auroc"]) if name in comparisons else Text("")]
        table.add_row(name_cell(name), *cells)
    table.caption = (
        "AP: average precision with this class as the positive one; sensitivity: at a specificity of 0.9; "
        f"difference: paired difference of AUROC from {visible(first)}"
    )
    return table


def _spread_text(values: Sequence[float]) -> Text:
    if len(values) < 2:
        return Text(html.ABSENT)
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    return Text(f"{mean:.3f} ± {deviation:.3f}")


def data_notes(run: ClassificationRun) -> list[str]:
    """Notes on the data, each once. The images of a private training are not named."""
    notes = [f"{note[:1].upper()}{note[1:]}." for summary in run.models.values() for note in summary["notes"]]
    if any(one.unnamed for one in run.evaluated) or any(summary["unnamed"] for summary in run.models.values()):
        notes.append(
            "No image names its patient, so each counts as a separate patient and the intervals are too narrow."
        )
    if any(summary["withheld"] for summary in run.models.values()):
        units = dict.fromkeys(f"{n} {unit}" for summary in run.models.values() for unit, n in summary["units"].items())
        told = f"only the number of protected units: {', '.join(units)}" if units else "nothing"
        notes.append(
            f"The report shows {told} of the training data of private models. Copies among their images, and images "
            "that could not be read, are listed only in the terminal."
        )
    return list(dict.fromkeys(notes))


def mean_and_deviation(values: Sequence[float]) -> str:
    """'0.712 ± 0.015' with the number of values below, as HTML; only the value if there is one."""
    if not len(values):
        return html.ABSENT
    mean = html.number(float(np.mean(values)))
    if len(values) == 1:
        return mean
    deviation = html.number(float(np.std(values, ddof=1)))
    return f'<b>{mean}</b> ± {deviation}<br><span class="range">{len(values)} draws</span>'


def _errors(name: str, one: Evaluated) -> Section:
    evaluation = one.evaluations[name]
    threshold = evaluation["operating_points"][0]["threshold"]
    return errors_section(name, one.errors[name], evaluation["positive"], threshold)


def _facts(run: ClassificationRun) -> dict[str, str]:
    private = sum(summary["protection"].startswith("epsilon") for summary in run.models.values())
    return {"Private models": f"{private} of {len(run.models)}"} if private else {}
