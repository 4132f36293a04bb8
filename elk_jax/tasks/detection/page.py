"""Report sections of detectors, from plain data: evaluation.json, metrics.jsonl, pictures.

`evaluations` maps the name of a model to its evaluation.json, `comparisons` to its paired comparison with the first
model. The colour of a model follows its position in the evaluation; in training curves, its position in the first one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from elk_jax.reporting import html
from elk_jax.reporting.comparison import difference_card, difference_html, interpret, value_card
from elk_jax.reporting.detections import (
    MAIN,
    Comparisons,
    Evaluations,
    classes_section,
    criteria_sections,
    estimate_of,
    froc_section,
    metric_keys,
    metric_label,
    written,
)
from elk_jax.reporting.pictures import Picture, boxes_key, gallery
from elk_jax.reporting.report import Section
from elk_jax.reporting.run import Part, promised
from elk_jax.reporting.training import FIRST_CURVES, Trainings, training_section

Gains = Mapping[str, Mapping[str, Any]]
"""Private model -> {"reference", "value", "low", "high"}, the share of the gain of the reference that it keeps."""

CURVES = (*FIRST_CURVES, f"eval/{MAIN}", "eval/aufroc_3")
"""Keys of metrics.jsonl whose curves are shown first."""


@dataclass(frozen=True)
class Pictures:
    """The gallery of a model. threshold: the lowest score of the predictions in it."""

    model: str
    worst: Sequence[Picture] = ()
    best: Sequence[Picture] = ()
    threshold: float | None = None


@dataclass(frozen=True)
class Evaluated:
    """The evaluation of models on one split of one source."""

    on: str  # "test split of ..."
    evaluations: Evaluations
    comparisons: Comparisons = field(default_factory=dict)
    pictures: Sequence[Pictures] = ()
    gains: Gains = field(default_factory=dict)


@dataclass(frozen=True)
class DetectionRun:
    """The content of a report on detectors; empty parts are omitted."""

    evaluated: Sequence[Evaluated] = ()
    trainings: Trainings = field(default_factory=Trainings)
    combined: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # summaries of ensembles
    views: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # summaries of trainings


def detection_part(run: DetectionRun) -> Part:
    """The report on detectors: every evaluation, then the training."""
    many = len(run.evaluated) > 1
    sections, verdicts = [], []
    for one in run.evaluated:
        found = [
            results_section(one.evaluations, one.comparisons),
            froc_section(one.evaluations),
            *classes_section(one.evaluations, one.comparisons),
            *criteria_sections(one.evaluations, one.comparisons),
            operating_points_section(one.evaluations),
            *promises_section(one.evaluations),
            *(gallery_section(pictures) for pictures in one.pictures),
        ]
        sections += [replace(s, title=f"{s.title}: {one.on}") for s in found] if many else found
        words = " ".join([verdict(one.evaluations, one.comparisons), *gain_sentences(one.gains)])
        verdicts.append(f"{one.on}: {words}" if many else words)
    if run.combined:
        sections.append(ensembles_section(run.combined))
    sections += views_sections(run.views)
    if run.trainings.have_curves:
        first = run.evaluated[0].evaluations if run.evaluated else ()
        sections.append(training_section(run.trainings, "Detector training", CURVES, metric_label, first))
    return Part("Lesion detection", " ".join([*verdicts, *promised(run.trainings.promises)]), _facts(run), sections)


def verdict(evaluations: Evaluations, comparisons: Comparisons) -> str:
    """The result in a sentence."""
    found = []
    for name, evaluation in evaluations.items():
        bounds = html.interval(evaluation[MAIN])
        found.append(f"{name} {html.number(evaluation[MAIN]['value'])}{f' ({bounds})' if bounds else ''}")
    if not found:
        return ""
    text = f"Mean sensitivity: {', '.join(found)}."
    if comparisons:
        outcomes = [f"{name}: {interpret(comparison.get(MAIN, {}))[0]}" for name, comparison in comparisons.items()]
        text += f" Compared with {next(iter(evaluations))}, {'; '.join(outcomes)}."
    return text


def gain_sentences(gains: Gains) -> list[str]:
    """The share of the gain of fine-tuning without privacy that every private model keeps."""
    sentences = []
    for name, found in gains.items():
        if found["value"] is None:
            sentences.append(f"{found['reference']} gains nothing, so no share of its gain can be given for {name}.")
            continue
        bounds = html.interval(found, 2)
        share = f"{html.number(found['value'], 2)}{f' ({bounds})' if bounds else ''}"
        sentences.append(f"{name} keeps {share} of the gain in mean sensitivity of {found['reference']}.")
    return sentences


def notes_of(evaluations: Evaluations) -> list[str]:
    """The notes on all evaluations, each once; a note on only some of them names these."""
    of: dict[str, list[str]] = {}
    for name, evaluation in evaluations.items():
        for note in evaluation.get("notes", ()):
            of.setdefault(note, []).append(name)
    said = lambda note, names: len(names) == len(evaluations) or note.startswith(f"{names[0]} ")
    return [note if said(note, names) else f"{', '.join(names)}: {note}" for note, names in of.items()]


def results_section(evaluations: Evaluations, comparisons: Comparisons) -> Section:
    """Cards with the main metric of every model, and the table of all metrics with differences."""
    first = next(iter(evaluations))
    cards, differences = [], []
    for index, (name, evaluation) in enumerate(evaluations.items()):
        cards.append(value_card(name, evaluation[MAIN], "mean sensitivity", index))
    for name, comparison in comparisons.items():
        differences.append(difference_card(first, name, comparison.get(MAIN, {}), list(evaluations).index(name)))
    head = ["Metric", *(html.named(i, name) for i, name in enumerate(evaluations))]
    head += [f"{html.text(name)} − {html.text(first)}" for name in comparisons]
    rows = []
    for key in metric_keys(evaluations[first]):
        cells = [html.text(metric_label(key))]
        cells += [html.estimate_cell(estimate_of(evaluation, key)) for evaluation in evaluations.values()]
        cells += [difference_html(comparison.get(key, {})) for comparison in comparisons.values()]
        rows.append(html.row(cells, style="main" if key == MAIN else ""))
    evaluation = evaluations[first]
    resamples = evaluation.get("bootstrap", {}).get("resamples")
    how = [f"Criterion for a hit: {written(evaluation['criterion'])}."] if "criterion" in evaluation else []
    how += [f"Intervals: 95 %, from {resamples} resamples of patients."] if resamples else []
    how += ["Differences are paired: both models use the same resamples."] if comparisons else []
    how += ["FP: false positives."]
    remarks = "".join(html.paragraph(f"Note: {note}.", "soft small") for note in notes_of(evaluations))
    top = f'<div class="cards">{"".join(cards)}</div>'
    top += f'<div class="cards">{"".join(differences)}</div>' if differences else ""
    return Section("Results", f"{top}{html.table(head, rows)}{remarks}", " ".join(how))


def operating_points_section(evaluations: Evaluations) -> Section:
    """For every model and rate: the score threshold and the resulting metrics."""
    head = ["FP per image, at most", "Score threshold", "Sensitivity", "FP per image", "FP per lesion-free image"]
    rows = []
    for index, (name, evaluation) in enumerate(evaluations.items()):
        rows.append(html.group_row(name, len(head), index))
        for point in evaluation.get("operating_points", ()):
            cells = [f"{point['rate']:g}", html.number(point["threshold"]), html.estimate_cell(point["sensitivity"])]
            for key in ("false_positives_per_image", "false_positives_per_lesion_free_image"):
                cells.append(html.estimate_cell(point[key], 2))
            rows.append(html.row(cells))
    note = (
        "The threshold is the lowest score of a found lesion that keeps the rate, chosen on these same images. The "
        "intervals keep it fixed; those of the sensitivity at a rate, in the results, use the curve of every resample."
    )
    return Section("Operating points", html.table(head, rows), note)


EARLIER = "chosen"
"""The key of evaluations of earlier versions for the thresholds of the model, and for its own figures for each."""


def promises_section(evaluations: Evaluations) -> list[Section]:
    """For every model: the thresholds chosen in its training, and their results here; nothing without them."""
    head = ["FP per image, promised", "Score threshold", "Sensitivity, promised", "FP per image", "Sensitivity"]
    rows, notes = [], []
    for index, (name, evaluation) in enumerate(evaluations.items()):
        chosen = evaluation.get("own_thresholds") or evaluation.get(EARLIER, {})
        points = chosen.get("points", ())
        if warning := chosen.get("warning"):
            notes.append(html.paragraph(f"Warning: {name}: {warning}", "soft small"))
        if not points:
            continue
        rows.append(html.group_row(f"{name}, chosen on {chosen['on']}", len(head), index))
        for point in points:
            own = point.get("in_model") or point[EARLIER]
            bounds = lambda prefix, own=own: {end: own[f"{prefix}{end}"] for end in ("low", "high")}
            cells = [
                html.estimate_cell({"value": point["promised"], **bounds("rate_")}, 2),
                html.estimate_cell({"value": point["threshold"], **bounds("")}),
                html.estimate_cell({"value": own["sensitivity"], **bounds("sensitivity_")}),
                html.estimate_cell(point["false_positives_per_image"], 2),
                html.estimate_cell(point["sensitivity"]),
            ]
            rows.append(html.row(cells))
    if not rows and not notes:
        return []
    note = (
        "Thresholds chosen in training, and their results on these images with the criterion used to choose them, an "
        "IoU of at least 0.3. The intervals of the promised values include the choice of the thresholds: they cover "
        "what to expect on other patients."
    )
    table = html.table(head, rows) if rows else ""
    return [Section("Thresholds of the models", table + "".join(notes), note if rows else "")]


def ensembles_section(combined: Mapping[str, Mapping[str, Any]]) -> Section:
    """The members of each ensemble, and how its fusion was chosen."""
    head = ["Ensemble", "Weight", "Value"]
    rows, said = [], ""
    for name, summary in combined.items():
        on = summary.get("chosen_on", "validation")  # missing in earlier versions
        rows.append(html.group_row(f"{name}, chosen on {on}", len(head)))
        for member, weight, value in zip(summary["members"], summary["weights"], summary["alone"]):
            rows.append(html.row([html.text(f"{member} alone"), f"{weight:g}", html.number(value)]))
        for same, value in summary["tried"]:
            text = f"all, fused from IoU {same:g}"
            rows.append(html.row([text, "", html.number(value)], style="main" if same == summary["same"] else ""))
        scales = ", ".join(f"{scale:g}" for scale in summary["scales"])
        said += html.paragraph(
            f"{name}: {metric_label(summary['metric'])}; scales of the input {scales}.", "soft small"
        )
        said += html.paragraph(f"{name}: {summary['promise']}") if summary["promise"] else ""
    note = (
        "Weighted boxes of all members. The fusion was chosen by these values, so they are optimistic. With folds, "
        "each member is evaluated by its detections for patients before it was trained on them."
    )
    return Section("Ensembles", html.table(head, rows) + said, note)


def views_sections(trained: Mapping[str, Mapping[str, Any]]) -> list[Section]:
    """The views of each detector, if several ways were compared. trained: summaries by stage."""
    rows, head = [], ["Views", "Value"]
    for name, summary in trained.items():
        if "metric" not in summary:
            continue
        title = f"{name}: {metric_label(summary['metric'])} on {summary['chosen_on']}"
        rows.append(html.group_row(title, len(head)))
        for way, value in summary["views"].items():
            style = "main" if way == summary["way"] else ""
            rows.append(html.row([html.text(way), html.number(value)], style=style))
    note = (
        "Original and mirrored images, at one size or several, with the IoU from which boxes of several views are "
        "fused. The model uses the best one, which was chosen by these values, so its value is optimistic."
    )
    return [Section("Fusion of views", html.table(head, rows), note)] if rows else []


def gallery_section(pictures: Pictures) -> Section:
    """Worst and best images of one model."""
    ignored = any(p.gt_ignore is not None and p.gt_ignore.any() for p in (*pictures.worst, *pictures.best))
    parts = [boxes_key(ignored)]
    for heading, chosen in (("Worst", pictures.worst), ("Best", pictures.best)):
        if chosen:
            parts.append(f"<h3>{heading}</h3>{gallery(chosen)}")
    note = "" if pictures.threshold is None else f"Predictions with a score of at least {pictures.threshold:.3f}."
    return Section(f"Images: {pictures.model}", "".join(parts), note)


def _facts(run: DetectionRun) -> dict[str, str]:
    facts: dict[str, str] = {}
    if run.evaluated:
        facts["Evaluated on"] = ", ".join(dict.fromkeys(one.on for one in run.evaluated))
    if len(run.evaluated) == 1:
        counts = next(iter(run.evaluated[0].evaluations.values())).get("counts", {})
        for key in ("patients", "images", "lesions"):
            if key in counts:
                facts[key.capitalize()] = str(counts[key])
    return facts
