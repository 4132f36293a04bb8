"""Report sections and terminal table of classifiers, from plain data: evaluations of `evaluation/classification.py`.

`evaluations` maps the name of a model to its evaluation, `comparisons` to its paired comparison with the first model.
All are for one split, with the same positive class. The colour of a model follows its position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from elk_jax.reporting import html
from elk_jax.reporting.comparison import difference_card, difference_html, value_card
from elk_jax.reporting.figures import Series, line_chart
from elk_jax.reporting.pictures import Picture, gallery
from elk_jax.reporting.report import Section
from elk_jax.reporting.tables import difference_cell, estimate_cell, name_cell, named_table

Evaluations = Mapping[str, Mapping[str, Any]]
Comparisons = Mapping[str, Mapping[str, Mapping[str, float | None]]]

MAIN = "auroc"
WORDS = {  # metric -> (words, whether more is better: 1, -1, or 0)
    "auroc": ("AUROC", 1),
    "auroc_delong": ("AUROC, DeLong's interval", 1),
    "brier": ("Brier score", -1),
    "cross_entropy": ("Cross entropy, nats", -1),
    "calibration_error": ("Expected calibration error", -1),
    "calibration_slope": ("Calibration slope (ideal: 1)", 0),
    "calibration_intercept": ("Calibration intercept (ideal: 0)", 0),
}
GROUPS = {  # metric with a key -> text around the key
    "average_precision": "Average precision, {} positive",
    "sensitivity_at_specificity": "Sensitivity at specificity {}",
    "specificity_at_sensitivity": "Specificity at sensitivity {}",
}
ORDER = (MAIN, "auroc_delong", *GROUPS, *(name for name in WORDS if not name.startswith("auroc")))
RULES = {"youden": "Youden's index", "accuracy": "best accuracy", "f1": "best F1", "": "given"}
POINT_METRICS = {
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "f1": "F1",
}
LEAST_IMAGES = 5
"""Smallest bin in the reliability diagram: the share among one or two images is meaningless."""
MOST_BANDS = 3
"""Largest number of models whose intervals are drawn in one figure; more bands would hide each other."""
CLASS_COLOURS = (3, 4)  # colours of the two classes; those of the first models would be mistaken for models


def classification_sections(evaluations: Evaluations, comparisons: Comparisons | None = None) -> list[Section]:
    """All sections except the galleries: results, ROC, operating points, calibration, scores."""
    return [
        results_section(evaluations, comparisons or {}),
        roc_section(evaluations),
        operating_points_section(evaluations),
        calibration_section(evaluations),
        scores_section(evaluations),
    ]


def results_section(evaluations: Evaluations, comparisons: Comparisons) -> Section:
    """Cards with the AUROC of every model, the table of all metrics, and one of the paired differences."""
    first = next(iter(evaluations))
    evaluation, places = evaluations[first], list(evaluations)
    cards = [value_card(name, one[MAIN], "AUROC", index) for index, (name, one) in enumerate(evaluations.items())]
    differences = [
        difference_card(first, name, found.get(MAIN, {}), places.index(name)) for name, found in comparisons.items()
    ]
    rows, compared = [], []
    for group, key in metric_keys(evaluation):
        words, better = metric_label(group, key)
        style = "main" if group == MAIN else ""
        cells = [html.text(words), *(html.estimate_cell(_estimate(one, group, key)) for one in evaluations.values())]
        rows.append(html.row(cells, style=style))
        name = f"{group}_{key}" if key else group
        found = [difference_html(comparison.get(name, {}), better) for comparison in comparisons.values()]
        compared.append(html.row([html.text(words), *found], style=style))
    heads = [html.named(places.index(name), name) for name in places]
    tables = html.table(["Metric", *heads], rows)
    if comparisons:
        heads = [html.named(places.index(name), f"{name} − {first}") for name in comparisons]
        tables += f"<h3>Paired differences</h3>{html.table(['Metric', *heads], compared)}"
    notes = {note: None for one in evaluations.values() for note in one.get("notes", ())}
    remarks = "".join(html.paragraph(f"Note: {note}.", "soft small") for note in notes)
    top = "".join(f'<div class="cards">{"".join(group)}</div>' for group in (cards, differences) if group)
    return Section("Results", f"{top}{tables}{remarks}", _how(evaluation, bool(comparisons)))


def roc_section(evaluations: Evaluations) -> Section:
    """The ROC curves with their bands, and dots at the operating points."""
    series, banded = [], len(evaluations) <= MOST_BANDS
    for index, (name, evaluation) in enumerate(evaluations.items()):
        curve, points = evaluation["curve"], evaluation["operating_points"]
        known = [
            (1 - point["specificity"]["value"], point["sensitivity"]["value"])
            for point in points
            if point["specificity"]["value"] is not None and point["sensitivity"]["value"] is not None
        ]
        band = (curve["band_at"], curve["low"], curve["high"]) if curve["band_at"] and banded else None
        dots = ([x for x, _ in known], [y for _, y in known])
        series.append(Series(name, curve["false_positive_rate"], curve["sensitivity"], index, band=band, dots=dots))
    positive = _first(evaluations)["positive"]
    chart = line_chart(
        series,
        x_label="1 − specificity",
        y_label=f"sensitivity for {positive}",
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
        diagonal=True,
        size=(600, 560),
    )
    note = f"Positive: {positive}. Dots: the operating points below. Dotted line: chance."
    note += " Band: 95 % interval over patients." if any(one.band for one in series) else ""
    return Section("ROC", f'<div class="square">{chart}{html.legend(evaluations)}</div>', note)


def operating_points_section(evaluations: Evaluations) -> Section:
    """For every model and rule: the threshold, its results on the data where it was chosen, those expected on other
    data, and those on these images."""
    promises = ("sensitivity", "specificity")
    head = ["Threshold by", "Threshold"]
    head += [f"{one[:4].title()}. {what}" for one in promises for what in ("where chosen", "expected")]
    head += POINT_METRICS.values()
    rows, warnings = [], []
    for index, (name, evaluation) in enumerate(evaluations.items()):
        rows.append(html.group_row(name, len(head), index))
        for point in evaluation["operating_points"]:
            bounds = {end: point.get(end) for end in ("low", "high")}  # missing in earlier versions
            cells = [html.text(rule_label(point)), html.estimate_cell({"value": point["threshold"], **bounds})]
            for key in promises:
                cells.append(html.number(point["there"].get(key), 2) if point["there"] else html.text(""))
                cells.append(_expected_cell(point.get("intervals", {}).get(key, {})))
            cells += [html.estimate_cell(point[key], 2) for key in POINT_METRICS]
            rows.append(html.row(cells))
        if warning := evaluation.get("warning"):
            warnings.append(html.paragraph(f"Warning: {name}: {warning}", "soft small"))
    note = (
        f"An image is called {_first(evaluations)['positive']} if its score is at least the threshold; this is the "
        "positive class of sensitivity, precision and F1. The values on the data where a threshold was chosen are "
        "optimistic. The values expected on other patients are corrected for this optimism, and their intervals "
        "include the variation of the choice: thresholds are chosen on resamples of the patients and tried on all of "
        "them. For the values on these images the threshold is fixed, as it was chosen on other data."
    )
    return Section("Operating points", html.table(head, rows) + "".join(warnings), note)


def _expected_cell(expected: Mapping[str, float | None]) -> str:
    """Empty without expected values, as in folders of earlier versions."""
    return html.estimate_cell(expected, 2) if expected.get("value") is not None else html.text("")


def calibration_section(evaluations: Evaluations) -> Section:
    """The reliability diagram of all models, in bins of probability."""
    series, banded = [], len(evaluations) <= MOST_BANDS
    for index, (name, evaluation) in enumerate(evaluations.items()):
        filled = [one for one in evaluation["reliability"] if one["images"] >= LEAST_IMAGES]
        x, y = [one["probability"] for one in filled], [one["share"]["value"] for one in filled]
        band = (x, [one["share"]["low"] for one in filled], [one["share"]["high"] for one in filled])
        series.append(Series(name, x, y, index, band=band if banded else None, dots=(x, y)))
    positive = _first(evaluations)["positive"]
    chart = line_chart(
        series,
        x_label=f"mean predicted probability of {positive}",
        y_label=f"share of {positive}",
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
        diagonal=True,
        size=(600, 560),
    )
    head = ["Probability", *(html.named(i, name) for i, name in enumerate(evaluations))]
    rows = []
    for bins in zip(*(one["reliability"] for one in evaluations.values())):
        cells = [f"{bins[0]['low']:g} – {bins[0]['high']:g}", *(str(one["images"]) for one in bins)]
        rows.append(html.row(cells))
    counts = html.folded("Images in each bin", html.table(head, rows))
    note = (
        "Images in ten bins of equal width; calibrated predictions lie on the dotted line. The expected calibration "
        f"error is the mean distance from it, weighted by images. Bins of fewer than {LEAST_IMAGES} images are omitted."
    )
    note += " Bands: 95 % intervals over patients." if banded else ""
    return Section("Calibration", f'<div class="square">{chart}{html.legend(evaluations)}</div>{counts}', note)


def scores_section(evaluations: Evaluations) -> Section:
    """Histograms of the scores of the positive class and of the others, one chart for each model."""
    charts = []
    names: dict[str, int] = {}
    for name, evaluation in evaluations.items():
        histogram, series = evaluation["histogram"], []
        points = evaluation["operating_points"]
        for index, (kind, counts) in zip(CLASS_COLOURS, histogram["counts"].items()):
            names[kind] = index
            x = np.repeat(histogram["edges"], 2)
            share = np.repeat(np.array(counts, float) / max(sum(counts), 1), 2)
            y = np.concatenate([[0.0], share, [0.0]])
            mark = points[0]["threshold"] if points and index == CLASS_COLOURS[0] else None
            band = (x.tolist(), np.zeros(len(y)).tolist(), y.tolist())
            series.append(Series(kind, x.tolist(), y.tolist(), index, band=band, dots=((), ()), mark=mark))
        label = f"probability of {evaluation['positive']}"
        charts.append(line_chart(series, title=name, x_label=label, x_range=(0.0, 1.0), size=(400, 260)))
    key = "".join(f"<span>{html.named(index, kind)}</span>" for kind, index in names.items())
    body = f'<div class="legend">{key}</div><div class="multiples">{"".join(charts)}</div>'
    note = "Share of the images of each class by score; dashed: the threshold of the first operating point."
    return Section("Scores", body, note)


def errors_section(model: str, pictures: Sequence[Picture], positive: str, threshold: float) -> Section:
    """The gallery of the confident errors of a model; see `error_picture`."""
    note = f"The images farthest on the wrong side of the threshold {threshold:.3f}; score: probability of {positive}."
    return Section(f"Confident errors: {model}", gallery(pictures) if pictures else html.paragraph("None."), note)


def error_picture(error: Mapping[str, Any], image: np.ndarray, title: str = "") -> Picture:
    """A picture of one of `classification.confident_errors`; title: the name of the image, or "" to leave it out."""
    what = f"{error['label']}, score {error['score']:.3f}"
    return Picture(image, title or what, what if title else "")


def results_table(evaluations: Evaluations, comparisons: Comparisons | None = None, title: str = "") -> Table:
    """For the terminal: metrics as rows, models as columns with intervals, then paired differences to the first.

    Print it with `rich.console.Console().print(table)`.
    """
    comparisons, first = comparisons or {}, next(iter(evaluations), "")
    positive = f"positive: {evaluations[first]['positive']}" if evaluations else ""
    table = named_table(", ".join(part for part in (title, positive) if part), "metric")
    for name in (*evaluations, *(f"{name} - {first}" for name in comparisons)):
        table.add_column(name_cell(name), justify="right")
    for group, key in metric_keys(evaluations[first]) if evaluations else ():
        words, better = metric_label(group, key)
        cells = [estimate_cell(_estimate(one, group, key)) for one in evaluations.values()]
        name = f"{group}_{key}" if key else group
        cells += [difference_cell(comparison.get(name, {}), better) for comparison in comparisons.values()]
        table.add_row(name_cell(words), *cells, style="bold" if group == MAIN else "")
    return table


def metric_keys(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(metric, key) of the rows of a table, in display order; the key is "" for a metric that has none."""
    found = []
    for name in ORDER:
        keys = evaluation[name] if name in GROUPS and name in evaluation else [""] if name in evaluation else []
        found += [(name, key) for key in keys]
    return found


def metric_label(group: str, key: str) -> tuple[str, int]:
    """A metric in words, and whether more is better (1), less (-1) or neither (0)."""
    return (GROUPS[group].format(key), 1) if key else WORDS[group]


def rule_label(point: Mapping[str, Any]) -> str:
    """'Youden's index, validation': how a threshold was chosen, and on which data."""
    aim, _, target = point["rule"].partition(":")
    words = f"{aim} ≥ {target}" if target else RULES.get(aim, aim)
    return f"{words}, {point['chosen_on']}" if point["chosen_on"] else words


def _estimate(evaluation: Mapping[str, Any], group: str, key: str) -> Mapping[str, float | None]:
    return evaluation[group][key] if key else evaluation[group]


def _how(evaluation: Mapping[str, Any], compared: bool) -> str:
    """Sentences that explain the numbers of a table."""
    counts, positive = evaluation["counts"], evaluation["positive"]
    share = counts["classes"][positive] / counts["images"]
    resamples = evaluation["bootstrap"]["resamples"]
    parts = [
        f"Positive class: {positive}, {share:.0%} of {counts['images']} images of {counts['patients']} patients.",
        f"Chance: AUROC 0.5, average precision {share:.2f} for {positive} and {1 - share:.2f} for "
        f"{evaluation['negative']}.",
    ]
    parts += [f"Intervals: 95 %, from {resamples} resamples of patients."] if resamples else []
    parts += ["Differences are paired: both models use the same resamples."] if compared else []
    return " ".join(parts)


def _first(evaluations: Evaluations) -> Mapping[str, Any]:
    return next(iter(evaluations.values()))
