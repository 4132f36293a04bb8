"""Report sections and terminal table of detectors, from plain data: evaluations of `evaluation/evaluate.py`.

`evaluations` maps the name of a model to its evaluation, `comparisons` to its paired comparison with the first model.
The colour of a model follows its position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from elk_jax.evaluation.hits import ON_LESION
from elk_jax.evaluation.mistakes import FALSE_POSITIVES, MISSES
from elk_jax.reporting import html
from elk_jax.reporting.comparison import difference_html
from elk_jax.reporting.figures import Series, line_chart
from elk_jax.reporting.report import Section
from elk_jax.reporting.sections import plain_label
from elk_jax.reporting.tables import difference_cell, estimate_cell, name_cell, named_table

Evaluations = Mapping[str, Mapping[str, Any]]
Comparisons = Mapping[str, Mapping[str, Any]]

MAIN = "mean_sensitivity"
NO_LESION = "no lesion of this class"
MOST_COLUMNS = 3
"""Largest number of models shown as columns in the terminal."""
BESIDE_MAIN = ("sensitivity_at_1", "sensitivity_at_3", "ap50", "ap10")
"""Further metrics in a terminal table of more models."""
METRIC_NAMES = {
    MAIN: "Mean sensitivity",
    "ap": "AP, IoU 0.50 to 0.95",
    "ap50": "AP at IoU 0.5",
    "ap30": "AP at IoU 0.3",
    "ap10": "AP at IoU 0.1",
    "ap10_50": "AP, IoU 0.10 to 0.50",
}


# ---- Sections --------------------------------------------------------------------------------------------------------


def froc_section(evaluations: Evaluations) -> Section:
    """The FROC curves with their bands, and dots at the rates of the mean sensitivity."""
    chart = _froc_chart(evaluations)
    first = next(iter(evaluations.values()))
    where = "images with lesions" if first.get("froc_images") == "with_lesions" else "all images"
    note = f"Share of lesions found against false positives per image, on {where}; band: 95 % interval."
    return Section("FROC", chart, note)


def _froc_chart(entries: Mapping[str, Mapping[str, Any]], bands: bool = True) -> str:
    """A curve for each entry, {"curve", "sensitivity_at"}, by name."""
    series = []
    rates: list[float] = []
    for index, (name, entry) in enumerate(entries.items()):
        curve = entry.get("curve", {})
        at = entry["sensitivity_at"]
        rates = [float(rate) for rate in at]
        known = [(float(rate), found["value"]) for rate, found in at.items() if found["value"] is not None]
        has_band = bands and curve.get("band_at")
        series.append(
            Series(
                name,
                curve.get("false_positives_per_image", ()),
                curve.get("sensitivity", ()),
                index,
                band=(curve["band_at"], curve["low"], curve["high"]) if has_band else None,
                dots=([x for x, _ in known], [y for _, y in known]),
            )
        )
    chart = line_chart(
        series,
        x_label="false positives per image",
        y_label="sensitivity",
        x_range=(0.0, max([4.0, *rates])),
        y_range=(0.0, 1.0),
        rules=rates,
    )
    return f'<div class="wide">{chart}{html.legend(entries)}</div>'


def classes_section(evaluations: Evaluations, comparisons: Comparisons) -> list[Section]:
    """The metrics of each class and of all together, and the classes of the boxes on lesions; nothing for one class."""
    first, evaluation = next(iter(evaluations.items()))
    classes = evaluation.get("classes", {})
    if not classes:
        return []
    keys = metric_keys(next(iter(classes.values())))
    head = ["Metric", "All classes", *(html.text(name) for name in classes)]
    counts = [str(one["lesions"] or NO_LESION) for one in classes.values()]
    rows = [html.row(["Lesions", str(evaluation["counts"]["lesions"]), *counts])]

    def block(of: Mapping[str, Any], cell: Callable[[Mapping[str, Any], str], str]) -> list[str]:
        cells = lambda key: [html.text(metric_label(key)), *(cell(one, key) for one in (of, *of["classes"].values()))]
        return [html.row(cells(key), style="main" if key == MAIN else "") for key in keys]

    for index, (model, found) in enumerate(evaluations.items()):
        value = lambda one, key: html.estimate_cell(estimate_of(one, key))
        rows += [html.group_row(model, len(head), index), *block(found, value)]
    for model, compared in comparisons.items():
        difference = lambda one, key: difference_html(one[key])
        rows += [html.group_row(f"{model} − {first}", len(head)), *block(compared, difference)]
    only = evaluation["froc_images"] == "with_lesions"
    where, of_any = ("images with a lesion of it", "images with any lesion") if only else ("all images", "all images")
    note = (
        "All classes: lesions and boxes are counted together, and false positives on "
        f"{of_any}. A box finds only lesions of its own class, and is a false positive on those of others. AP is the "
        "mean over the classes with a lesion (mAP). Each class is evaluated alone, with its own lesions and boxes, and "
        f"false positives on {where}. It has the false positives per image to itself, so its sensitivity may be higher "
        "than that of all classes."
    )
    return [Section("By class", html.table(head, rows) + _confusions(evaluations, list(classes)), note)]


def _confusions(evaluations: Evaluations, classes: Sequence[str]) -> str:
    """For every model with a threshold: lesions by annotated class and by the class of the best box on them."""
    known = {name: one["confusion"] for name, one in evaluations.items() if one["confusion"]}
    if not known:
        return ""
    head = ["Annotated as", *(f"Found as {html.text(name)}" for name in classes), "Not found"]
    rows = []
    for index, (model, found) in enumerate(known.items()):
        rows.append(html.group_row(f"{model}, score of at least {found['threshold']:.3f}", len(head), index))
        for label, (name, counts) in enumerate(zip(classes, found["table"])):
            written = [f"<b>{count}</b>" if column == label else str(count) for column, count in enumerate(counts)]
            rows.append(html.row([html.text(name), *written]))
    (rate,) = {one["rate"] for one in known.values()}
    how = (
        f"At {rate:g} false positive per image, all classes together. Found as: the class of the best-scoring box that "
        "hits the lesion, whichever class it has."
    )
    return f"<h3>Annotated and predicted classes</h3>{html.paragraph(how, 'soft small')}{html.table(head, rows)}"


def criteria_sections(evaluations: Evaluations, comparisons: Comparisons) -> list[Section]:
    """Results by several criteria, and the kinds of mistakes; none for evaluations of earlier versions."""
    sections = []
    if any(evaluation.get("criteria") for evaluation in evaluations.values()):
        sections.append(criteria_section(evaluations, comparisons))
    if any(evaluation.get("mistakes") for evaluation in evaluations.values()):
        sections.append(mistakes_section(evaluations))
    return sections


def criteria_section(evaluations: Evaluations, comparisons: Comparisons) -> Section:
    """A table of all criteria and, for each model, a chart with one curve per criterion."""
    first = next(iter(evaluations))
    head = ["Criterion", "To find", "Mean sensitivity", "Sensitivity at 1 FP per image", "AP"]
    head += [f"Mean sensitivity − {html.text(first)}"] if comparisons else []
    rows, charts = [], []
    for index, (name, evaluation) in enumerate(evaluations.items()):
        rows.append(html.group_row(name, len(head), index))
        criteria = evaluation.get("criteria", {})
        for text, entry in criteria.items():
            cells = [html.text(written(entry["name"])), str(entry["to_find"])]
            found = (entry[MAIN], entry["sensitivity_at"].get("1", {}), entry.get("ap", {}))
            cells += [html.estimate_cell(one) for one in found]
            if comparisons:
                difference = comparisons.get(name, {}).get(f"criteria_{text}_{MAIN}", {})
                cells.append(difference_html(difference) if name != first else "")
            rows.append(html.row(cells))
        title = f"<h3>{html.text(name)}</h3>" if len(evaluations) > 1 else ""
        charts.append(title + _froc_chart({written(one["name"]): one for one in criteria.values()}, bands=False))
    note = (
        "One reader may draw a single box around several masses where another draws one for each. A detector that "
        "groups them differently then has a false positive and a miss for a lesion that it detected. Lesions found "
        "only by the looser criteria were lost to the way boxes are drawn; lesions that these do not find either were "
        "not detected. Centre in box: the centre of the predicted box lies in the lesion's box. Regions: lesions with "
        "overlapping boxes count once, and a further box on a region that is already found is neither a hit nor a "
        "false positive. AP uses the IoU of boxes."
    )
    return Section("By several criteria", html.table(head, rows) + "".join(charts), note)


def mistakes_section(evaluations: Evaluations) -> Section:
    """The kinds of false positives and misses of each model, at its own threshold of one false positive per image."""
    known = {name: one["mistakes"] for name, one in evaluations.items() if one.get("mistakes")}
    head = ["", *(html.named(i, n) for i, n in enumerate(evaluations) if n in known)]
    rows = [html.row(["Score threshold", *(html.number(one["threshold"]) for one in known.values())])]
    round_several = {"round_several": "of these: around the centres of several lesions"}
    groups = (
        ("False positives", "false_positives", FALSE_POSITIVES | round_several),
        ("Missed lesions", "misses", MISSES),
    )
    for title, key, kinds in groups:
        totals = [str(sum(one[key].get(k, 0) for k in kinds if k not in round_several)) for one in known.values()]
        rows.append(html.row([title, *totals], style="main"))
        for kind, said in kinds.items():
            counts = [one[key].get(kind, 0) for one in known.values()]
            if kind != "other_class" or any(counts):  # missing in evaluations of earlier versions
                rows.append(html.row([html.text(said), *map(str, counts)]))
    sizes = [one.get("by_size", ()) for one in known.values()]  # missing in evaluations of earlier versions
    if all(sizes):
        rows.append(html.row(["Found lesions, by size", *(_found(of_model) for of_model in sizes)], style="main"))
        for k, size in enumerate(sizes[0]):
            if any(of_model[k]["lesions"] for of_model in sizes):
                low, high = size["sides"]
                said = (
                    f"{low:.0%} to {high:.0%} of the longer side of the image"
                    if low
                    else f"below {high:.0%} of the longer side of the image"
                )
                rows.append(html.row([said, *(_found([of_model[k]]) for of_model in sizes)]))
    (rate,) = {one["rate"] for one in known.values()}
    note = (
        f"At {rate:g} false positive per image. A box lies on a lesion if their IoU is at least {ON_LESION:g} or "
        "its centre is in the lesion's box. Boxes on lesions that are not hits are lost to the way masses are grouped "
        "and boxes are drawn. The size of a lesion is the square root of the area of its box."
    )
    return Section("Mistakes", html.table(head, rows), note)


def _found(sizes: Sequence[dict[str, Any]]) -> str:
    """`3 of 9`, over all given sizes."""
    return f"{sum(one['found'] for one in sizes)} of {sum(one['lesions'] for one in sizes)}"


def written(criterion: str) -> str:
    """The name of a criterion with mathematical signs."""
    return criterion.replace(">=", "≥").replace("<=", "≤")


# ---- Terminal --------------------------------------------------------------------------------------------------------


def results_table(evaluations: Evaluations, comparisons: Comparisons | None = None, title: str = "") -> Table:
    """For the terminal: metrics as rows, models as columns with intervals, then paired differences from the first.

    If there are more than MOST_COLUMNS models, they become the rows. Print it with
    `rich.console.Console().print(table)`.
    """
    comparisons = comparisons or {}
    if len(evaluations) > MOST_COLUMNS:
        return _table_of_models(evaluations, comparisons, title)
    first = next(iter(evaluations), "")
    table = named_table(title, "metric")
    for name in (*evaluations, *(f"{name} - {first}" for name in comparisons)):
        table.add_column(name_cell(name), justify="right")
    for heading, found, compared in _blocks(evaluations, comparisons):
        _head(table, heading)
        for key in metric_keys(found[first]) if found else ():
            cells = [estimate_cell(estimate_of(one, key)) for one in found.values()]
            cells += [difference_cell(one.get(key, {})) for one in compared.values()]
            table.add_row(metric_label(key), *cells, style="bold" if key == MAIN else "")
    return table


def _blocks(evaluations: Evaluations, comparisons: Comparisons) -> Iterator[tuple[str, Evaluations, Comparisons]]:
    """The parts of a table in the terminal, with their titles: all classes together, then each of several alone."""
    yield "", evaluations, comparisons
    for name, one in next(iter(evaluations.values()), {}).get("classes", {}).items():
        if not one["lesions"]:
            yield f"{name}: {NO_LESION}", {}, {}
            continue
        found = {model: evaluation["classes"][name] for model, evaluation in evaluations.items()}
        compared = {model: comparison["classes"][name] for model, comparison in comparisons.items()}
        yield f"{name} alone, {one['lesions']} lesion{'s' * (one['lesions'] != 1)}", found, compared


def _head(table: Table, title: str) -> None:
    if title:
        table.add_section()
        table.add_row(name_cell(title))


def _table_of_models(evaluations: Evaluations, comparisons: Comparisons, title: str) -> Table:
    """Models as rows: the main metric with its interval and its paired difference from the first, and other metrics."""
    first = next(iter(evaluations))
    table = named_table(title, "model")
    keys = [key for key in metric_keys(evaluations[first]) if key in BESIDE_MAIN]
    for column in (metric_label(MAIN), f"- {first}", *(metric_label(key) for key in keys)):
        table.add_column(name_cell(column), justify="right")
    for heading, found, compared in _blocks(evaluations, comparisons):
        _head(table, heading)
        for model, one in found.items():
            difference = difference_cell(compared[model].get(MAIN, {})) if model in compared else ""
            others = [html.number(estimate_of(one, key)["value"]) if key in metric_keys(one) else "" for key in keys]
            table.add_row(name_cell(model), estimate_cell(estimate_of(one, MAIN)), difference, *others)
    return table


# ---- Metrics ---------------------------------------------------------------------------------------------------------


def metric_label(key: str) -> str:
    """The name of a metric in words."""
    if key.startswith("aufroc_"):
        return f"AUFROC up to {key.removeprefix('aufroc_')}"
    if key.startswith("sensitivity_at_"):
        return f"Sensitivity at {key.removeprefix('sensitivity_at_')} FP per image"
    if key.startswith("false_positives_per_lesion_free_image_"):
        rate = key.removeprefix("false_positives_per_lesion_free_image_")
        return f"False positives per lesion-free image, at {rate}"
    return METRIC_NAMES.get(key, plain_label(key))


def metric_keys(evaluation: Mapping[str, Any]) -> list[str]:
    """The metrics of a table in display order, with the keys of a comparison."""
    keys = [MAIN, *(f"sensitivity_at_{rate}" for rate in evaluation.get("sensitivity_at", ()))]
    keys += [key for key in evaluation if key.startswith("aufroc_")]
    return keys + [key for key in ("ap", "ap50", "ap30", "ap10", "ap10_50") if key in evaluation]


def estimate_of(evaluation: Mapping[str, Any], key: str) -> Mapping[str, float | None]:
    """The estimate of a metric by its key; `sensitivity_at_0.5` is in `sensitivity_at`."""
    if key in evaluation:
        return evaluation[key]
    group, _, rate = key.rpartition("_")
    return evaluation[group][rate]
