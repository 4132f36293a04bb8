"""The tables of results that a run ends with in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from elk_jax.reporting import html
from elk_jax.tasks.detection.page import MAIN, Comparisons, Evaluations, estimate_of, metric_keys, metric_label
from elk_jax.tasks.inpainting import page as inpainting
from elk_jax.tasks.translation import page as translation


def results_table(evaluations: Evaluations, comparisons: Comparisons | None = None, title: str = "") -> Table:
    """Metrics as rows, models as columns with intervals, then the paired differences from the first model:
    green or red where the interval excludes 0.

    Print it with `rich.console.Console().print(table)`.
    """
    comparisons = comparisons or {}
    first = next(iter(evaluations), "")
    table = Table(title=title or None, title_justify="left", header_style="bold")
    table.add_column("metric", no_wrap=True)
    for name in (*evaluations, *(f"{name} - {first}" for name in comparisons)):
        table.add_column(Text(name), justify="right")
    for key in metric_keys(evaluations[first]) if evaluations else ():
        cells = [_estimate(estimate_of(evaluation, key)) for evaluation in evaluations.values()]
        cells += [_difference(comparison.get(key, {})) for comparison in comparisons.values()]
        table.add_row(metric_label(key), *cells, style="bold" if key == MAIN else "")
    return table


def quality_table(evaluation: Mapping[str, Any], title: str = "") -> Table:
    """How synthetic lesions compare with real ones (evaluation.json of lesion synthesis)."""
    table = Table(title=title or None, title_justify="left", header_style="bold")
    table.add_column("measure", no_wrap=True)
    for name in ("synthetic", "real", "good is"):
        table.add_column(name, justify="left" if name == "good is" else "right")
    for measure in inpainting.measures(evaluation):
        found = Text(measure.found).append(f"  {measure.bounds}" if measure.bounds else "", "dim")
        table.add_row(measure.name, found, measure.yardstick, Text(measure.good, "dim"))
    table.add_section()
    for one in inpainting.compared(evaluation):
        gap = Text(f"gap {html.number(one.gap, 2)}, chance {html.number(one.chance, 2)}", "dim")
        table.add_row(one.name, html.number(one.synthetic, one.digits), html.number(one.real, one.digits), gap)
    return table


def translation_table(evaluation: Mapping[str, Any], title: str = "") -> Table:
    """How near translated images come to real ones (evaluation.json of translation)."""
    table = Table(title=title or None, title_justify="left", header_style="bold")
    table.add_column("", no_wrap=True)
    for words, _ in translation.MEASURES.values():
        table.add_column(words, justify="right")
    for name, found in evaluation["measures"].items():
        cells = [_estimate(found.get(key, {}), digits) for key, (_, digits) in translation.MEASURES.items()]
        table.add_row(name, *cells, style="bold" if name in evaluation["models"] else "")
    return table


def _estimate(entry: Mapping[str, Any], digits: int = 3) -> Text:
    text = Text(html.number(entry.get("value"), digits))
    bounds = html.interval(entry, max(2, digits - 1))
    return text.append(f"  {bounds}", "dim") if bounds else text


def _difference(entry: Mapping[str, Any]) -> Text:
    if entry.get("difference") is None:
        return Text(html.ABSENT)
    bounds = html.interval(entry, 2, html.signed)
    clear = bounds and (entry["low"] > 0 or entry["high"] < 0)
    style = ("green" if entry["difference"] > 0 else "red") if clear else ""
    text = Text(html.signed(entry["difference"]), style)
    return text.append(f"  {bounds}", "dim") if bounds else text
