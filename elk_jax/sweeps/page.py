"""The results of a sweep as a table in the terminal, as CSV, as JSON and as a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from elk_jax.errors import UserError
from elk_jax.reporting import html
from elk_jax.reporting.comparison import difference_html
from elk_jax.reporting.figures import Series, interval_bar, line_chart
from elk_jax.reporting.report import Report, Section
from elk_jax.reporting.sections import config_section, plain_label
from elk_jax.reporting.tables import difference_cell, estimate_cell, name_cell, named_table
from elk_jax.sweeps.results import Entry, Place, Results
from elk_jax.sweeps.settings import Row

COLUMNS = (
    *("setting", "evaluation", "model", "metric", "seeds", "mean", "deviation", "low", "high", "interval_over"),
    "mean_p_value",
    *("baseline", "difference", "difference_low", "difference_high", "p_value", "difference_interval_over"),
    *("published", "note", "line", "at", "axis"),
)
"""Columns of table.csv before the values of the seeds. A gain of one model over another has its own rows: the model is
"MODEL - OTHER" and `mean` is the difference; only gains have a `mean_p_value`."""


@dataclass(frozen=True)
class RunState:
    """A run on the page. error: one line, "" for a finished run. report, log: paths relative to the page."""

    name: str
    seconds: float | None
    error: str
    report: str
    log: str


BAR = 100
"""Width of the bar of an interval, px."""

Gain = tuple[str, Entry]
"""("MODEL - OTHER", the difference between the two in one setting)."""


def titled(results: Results, place: Place) -> str:
    """The model of a place, with its stage where there are several."""
    single = len({stage for stage, _ in results.metrics}) == 1
    return place[1] if single and place[1] else " · ".join(filter(None, place))


def chosen_metrics(results: Results, wanted: Sequence[str]) -> dict[Place, list[str]]:
    """The metrics to show first for each evaluation: those of `wanted` that it has, or its first one.

    UserError for a metric that no evaluation has.
    """
    known = {name: None for by_metric in results.metrics.values() for name in by_metric}
    for name in wanted:
        if known and name not in known:  # if there are none, all runs have failed, which is reported elsewhere
            todo = f"choose from {', '.join(known)}"
            raise UserError(f"no metric '{name}'", where=f"--metrics={','.join(wanted)}", todo=todo)
    return {
        place: [name for name in wanted if name in by_metric] if wanted else list(by_metric)[:1]
        for place, by_metric in results.metrics.items()
    }


# ---- Terminal --------------------------------------------------------------------------------------------------------


def terminal_table(results: Results, shown: Mapping[Place, Sequence[str]], title: str) -> Table:
    """Sections of settings for each evaluated model and metric, then for each difference of two models."""
    table = named_table(title, "setting")
    for column in ("seeds", "mean", "deviation", "difference", "published"):
        table.add_column(column)
    for place, name, entries in _listed(results.metrics, shown):
        table.add_section()
        table.add_row(name_cell(f"{titled(results, place)}: {plain_label(name)}"), *[""] * 5)
        for entry in _with_numbers(entries, name):
            mean, published = entry.mean or {}, entry.published(name)
            table.add_row(
                name_cell(f"  {entry.row.name}"),
                str(mean.get("seeds", "")),
                estimate_cell(mean) if entry.mean else "",
                html.number(mean.get("deviation")) if entry.mean else "",
                difference_cell(entry.difference_entry, 0) if entry.difference else "",
                "" if published is None else html.number(published),
            )
    for stage, name, gains in _listed_gains(results, shown):
        for models in dict.fromkeys(models for models, _ in gains):
            table.add_section()
            table.add_row(name_cell(f"{titled(results, (stage, models))}: {plain_label(name)}"), *[""] * 5)
            for entry in (entry for own, entry in gains if own == models):
                mean = entry.mean or {}
                cells = [str(mean.get("seeds", "")), "", html.number(mean.get("deviation")) if entry.mean else ""]
                table.add_row(name_cell(f"  {entry.row.name}"), *cells, difference_cell(entry.gain_entry, 0), "")
    return table


def row_notes(rows: Sequence[Row]) -> list[str]:
    """A line for each note, with the names of its rows, and for each reason why rows were not run."""
    by_note: dict[str, list[str]] = {}
    for row in rows:
        if row.not_run or row.note:
            by_note.setdefault(said(row), []).append(row.name)
    return [f"{', '.join(names)}: {note}" for note, names in by_note.items()]


def said(row: Row) -> str:
    """The note of a row, and why it was not run."""
    return "; ".join(filter(None, (f"not run: {row.not_run}" if row.not_run else "", row.note)))


# ---- Files -----------------------------------------------------------------------------------------------------------


def records(results: Results) -> list[dict[str, Any]]:
    """Every metric of every setting, and every gain, flat and JSON-able: COLUMNS, and `by_seed` {seed: value}."""
    found = []
    for place, by_metric in (*results.metrics.items(), *results.gains.items()):
        for name, entries in by_metric.items():
            for entry in entries:
                mean, difference = entry.mean or {}, entry.difference or {}
                values = (
                    *(entry.row.name, *place, name, mean.get("seeds", 0), mean.get("value"), mean.get("deviation")),
                    *(mean.get("low"), mean.get("high"), mean.get("over", "")),
                    mean.get("p_value") if place in results.gains else None,
                    *(entry.baseline if entry.difference else "", difference.get("value"), difference.get("low")),
                    *(difference.get("high"), difference.get("p_value"), difference.get("over", "")),
                    *(entry.published(name), said(entry.row), entry.row.line, entry.row.at, entry.row.axis),
                )
                by_seed = dict(zip(map(str, results.seeds), entry.by_seed))
                found.append(dict(zip(COLUMNS, values, strict=True)) | {"by_seed": by_seed})
    return found


def csv_text(results: Results) -> str:
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"seed_{seed}" for seed in results.seeds)])
    for record in records(results):
        values = [record[column] for column in COLUMNS]
        writer.writerow([*values, *(record["by_seed"].get(str(seed)) for seed in results.seeds)])
    return output.getvalue()


# ---- Page ------------------------------------------------------------------------------------------------------------


def report(
    name: str,
    results: Results,
    shown: Mapping[Place, Sequence[str]],
    runs: Sequence[RunState],
    config: Mapping[str, Any],
    seconds: float,
) -> Report:
    """config: the settings that all runs have in common. seconds: of all stages; shared ones count once."""
    sections = [
        Section(f"{titled(results, place)}: {plain_label(metric)}", _metric_block(metric, entries))
        for place, metric, entries in _listed(results.metrics, shown)
    ]
    sections += [_gain_section(*one) for one in _listed_gains(results, shown)]
    for place, by_metric in results.metrics.items():
        rest = [metric for metric in by_metric if metric not in shown[place]]
        if rest:
            blocks = (html.folded(plain_label(metric), _metric_block(metric, by_metric[metric])) for metric in rest)
            sections.append(Section(f"{titled(results, place)}: other metrics", "".join(blocks)))
    for stage in {stage: None for stage, _ in results.gains}:
        everything = {place: list(by_metric) for place, by_metric in results.metrics.items()}
        others = [gain for gain in _listed_gains(results, everything, but=shown) if gain[0] == stage]
        if others:
            blocks = (html.folded(plain_label(metric), _gain_block(metric, gains)) for _, metric, gains in others)
            sections.append(Section(f"{_of_gains(stage)}: other metrics", "".join(blocks)))
    rows = list({entry.row.name: entry.row for _, _, entries in _every(results) for entry in entries}.values())
    sections += [_runs_section(runs, [row for row in rows if row.not_run]), config_section(config)]
    failed = [run for run in runs if run.error]
    finished = f"{len(runs) - len(failed)} of {len(runs)} runs are finished."
    return Report(
        title=f"Sweep of {name.replace('_', ' ')}",
        kicker=f"Sweep · {name}",
        summary=" ".join([*([finished] if failed else []), *results.notes]),
        facts={
            "Settings": str(len([row for row in rows if not row.not_run])),
            "Seeds": str(len(results.seeds)),
            "Time of all runs": html.duration(seconds),
        },
        sections=sections,
        footer="elk_jax",
    )


def _metric_block(metric: str, entries: Sequence[Entry]) -> str:
    """The table of a metric, below a chart of the settings that have a number."""
    charts = (_chart(plain_label(metric), axis, entries) for axis in _axes(entries))
    return "".join([*charts, _metric_table(metric, entries)])


def _axes(entries: Sequence[Entry]) -> list[str]:
    return list({entry.row.axis: None for entry in entries if entry.row.axis})


def _chart(label: str, axis: str, entries: Sequence[Entry]) -> str:
    """The means over an axis, with their intervals; "" if fewer than two positions on it were measured.

    label: of the metric.
    """
    lines: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    for entry in entries:
        if entry.row.at is not None and entry.row.axis == axis and entry.mean and entry.mean["value"] is not None:
            lines.setdefault(entry.row.line, []).append((entry.row.at, entry.mean))
    if len({at for points in lines.values() for at, _ in points}) < 2:
        return ""
    series, ends = [], list[float]()
    for index, (name, points) in enumerate(lines.items()):
        points.sort(key=lambda point: point[0])
        x = [at for at, _ in points]
        value, low, high = ([mean[key] for _, mean in points] for key in ("value", "low", "high"))
        band = (x, low, high) if any(number is not None for number in low) else None
        series.append(Series(name or label, x, value, index, band))
        ends += [number for number in (*value, *low, *high) if number is not None]
    named = html.legend(lines) if len(lines) > 1 or any(lines) else ""
    margin = 0.06 * (max(ends) - min(ends)) or 0.1
    bounds = min(ends) - margin, max(ends) + margin  # bands included
    return named + line_chart(series, x_label=plain_label(axis), y_label=label, y_range=bounds)


def _metric_table(metric: str, entries: Sequence[Entry]) -> str:
    entries = _with_numbers(entries, metric)
    bounds, differences = _bounds(entries), [entry.difference for entry in entries if entry.difference]
    baselines = {entry.baseline for entry in entries if entry.difference}
    compared = f"Difference from {html.text(*baselines)}" if len(baselines) == 1 else "Difference"
    has_published = any(entry.published(metric) is not None for entry in entries)
    head = ["Setting", "Seeds", "Mean", "", "Deviation", *([compared, ""] if differences else [])]
    head += ["Published"] if has_published else []
    rows = []
    for index, entry in enumerate(entries):
        cells = [_named(entry), *_own_cells(entry, bounds, index)]
        cells += _difference_cells(entry, _reach(differences), index, len(baselines) > 1) if differences else []
        cells += [_published_cell(entry.published(metric))] if has_published else []
        rows.append(html.row(cells))
    return html.table(head, rows)


def _gain_section(stage: str, metric: str, gains: Sequence[Gain]) -> Section:
    note = (
        "The two models belong to the same run and are compared seed by seed on the same patients. The interval is "
        "that of the mean difference."
    )
    if any(entry.difference for _, entry in gains):
        note += " Change: the change of this difference from one setting to another."
    return Section(f"{_of_gains(stage)}: {plain_label(metric)}", _gain_block(metric, gains), note)


def _gain_block(metric: str, gains: Sequence[Gain]) -> str:
    """The table of the differences of a metric between models, below a chart of each over the axes."""
    charts = [
        _chart(f"{plain_label(metric)}, {models}", axis, entries)
        for models in dict.fromkeys(models for models, _ in gains)
        if (entries := [entry for name, entry in gains if name == models])
        for axis in _axes(entries)
    ]
    reach = _reach([entry.mean for _, entry in gains])
    changes = [entry.difference for _, entry in gains if entry.difference]
    head = ["Models", "Seeds", "Difference", "", "Deviation", *(["Change", ""] if changes else [])]
    rows = []
    for index, (models, entry) in enumerate(gains):
        mean = entry.mean or {}
        bar = interval_bar(mean, index, (-reach, reach), BAR) if mean.get("value") is not None else ""
        cells = [
            f'{html.text(models)}<br><span class="range">{html.text(entry.row.name)}</span>',
            str(mean.get("seeds", "")),
            difference_html(entry.gain_entry, better=0),
            f'<span class="{html.colour(index)}">{bar}</span>',
            html.number(mean["deviation"]) if mean.get("deviation") is not None else "",
            *(_difference_cells(entry, _reach(changes), index) if changes else []),
        ]
        rows.append(html.row(cells))
    return "".join([*charts, html.table(head, rows)])


def _named(entry: Entry) -> str:
    note = said(entry.row)
    return html.text(entry.row.name) + (f'<br><span class="range">{html.text(note)}</span>' if note else "")


def _published_cell(value: float | None) -> str:
    return "" if value is None else html.number(value)


def _own_cells(entry: Entry, bounds: tuple[float, float], index: int) -> list[str]:
    if entry.mean is None:
        return ["", "", "", ""]
    mean = entry.mean
    bar = interval_bar(mean, index, bounds, BAR) if mean["value"] is not None else ""
    deviation = html.number(mean["deviation"]) if mean["deviation"] is not None else ""
    return [str(mean["seeds"]), html.estimate_cell(mean), f'<span class="{html.colour(index)}">{bar}</span>', deviation]


def _difference_cells(entry: Entry, reach: float, index: int, named: bool = True) -> list[str]:
    """named: whether the cell names the baseline."""
    if entry.difference is None:
        return ["", ""]
    shown = entry.difference
    bar = interval_bar(shown, index, (-reach, reach), BAR) if shown["value"] is not None else ""
    to = f'<br><span class="range">from {html.text(entry.baseline)}</span>' if named else ""
    return [
        difference_html(entry.difference_entry, better=0) + to,
        f'<span class="{html.colour(index)}">{bar}</span>',
    ]


def _runs_section(runs: Sequence[RunState], not_run: Sequence[Row]) -> Section:
    rows = []
    for run in runs:
        link = f'<a href="{html.text(run.log)}">log</a>'
        if not run.error:
            link = f'<a href="{html.text(run.report)}">report</a>, {link}'
        time = "" if run.seconds is None else html.duration(run.seconds)
        state = html.text(run.error) if run.error else "finished"
        rows.append(html.row([html.text(run.name), state, time, link], numeric_from=2))
    rows += [html.row([html.text(row.name), html.text(said(row)), "", ""], numeric_from=2) for row in not_run]
    return Section("Runs", html.table(["Run", "State", "Time", ""], rows, 2))


def _bounds(entries: Sequence[Entry]) -> tuple[float, float]:
    """The ends of the bars, which hold all intervals."""
    numbers = [
        entry.mean[key]
        for entry in entries
        if entry.mean
        for key in ("value", "low", "high")
        if entry.mean[key] is not None
    ]
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def _reach(differences: Sequence[Mapping[str, Any] | None]) -> float:
    """Half the width of the bars of differences."""
    numbers = [abs(one[key]) for one in differences if one for key in ("value", "low", "high") if one[key] is not None]
    return 1.1 * max(numbers, default=0.0) or 1.0


def _listed(
    metrics: Mapping[Place, Mapping[str, tuple[Entry, ...]]], shown: Mapping[Place, Sequence[str]]
) -> list[tuple[Place, str, tuple[Entry, ...]]]:
    return [(place, name, metrics[place][name]) for place, names in shown.items() for name in names]


def _listed_gains(
    results: Results, shown: Mapping[Place, Sequence[str]], but: Mapping[Place, Sequence[str]] | None = None
) -> list[tuple[str, str, list[Gain]]]:
    """(evaluation stage, metric, gains of its models) for the metrics of a stage that are shown, with some
    exceptions."""
    found = []
    for stage in {stage: None for stage, _ in results.gains}:
        names, left_out = (
            {name: None for (own, _), of_place in chosen.items() if own == stage for name in of_place}
            for chosen in (shown, but or {})
        )
        for name in names:
            gains = [
                (models, entry)
                for (own, models), by_metric in results.gains.items()
                if own == stage
                for entry in _with_numbers(by_metric.get(name, ()), name)
            ]
            if gains and name not in left_out:
                found.append((stage, name, gains))
    return found


def _with_numbers(entries: Sequence[Entry], metric: str) -> list[Entry]:
    """The rows that have this metric, measured or published: not every row has every model."""
    return [entry for entry in entries if entry.mean is not None or entry.published(metric) is not None]


def _of_gains(stage: str) -> str:
    return f"{stage}: between models"


def _every(results: Results) -> list[tuple[Place, str, tuple[Entry, ...]]]:
    return _listed(results.metrics, {place: list(by_metric) for place, by_metric in results.metrics.items()})
