"""A comparison of two sets as text: the cells of its tables, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.table import Table
from rich.text import Text

from elk_jax.distances.compare import Comparison, Measure, Spread
from elk_jax.output import Console
from elk_jax.reporting import html
from elk_jax.reporting.tables import named_table


def print_comparison(found: Comparison, console: Console) -> None:
    """Print the distances, those of each class, the most different features, and the notes."""
    console.print(_measures("", found.measures))
    for name, measures in found.of_classes.items():
        console.print(_measures(f"class {name}", measures))
    table = named_table("Most different features", "feature")
    for name in ("real", "synthetic", "difference, sd"):
        table.add_column(name, justify="right")
    for one in found.different[:10]:
        table.add_row(one.name, written(one.real, 4), written(one.synthetic, 4), html.signed(one.difference, 2))
    console.print(table)
    if found.told_apart is not None:
        console.print(told_apart(found))
    for note in found.notes:
        console.print(f"note: {note}")


def _measures(title: str, measures: Sequence[Measure]) -> Table:
    table = named_table(title, "measure")
    for name in ("synthetic from real", "real from real", "ratio", "images", "features", "unit"):
        table.add_column(name, justify="left" if name == "unit" else "right")
    for one in measures:
        counts = written(one.ratio), str(one.images), str(one.features)
        table.add_row(one.name, _cell(one.synthetic), _cell(one.real), *counts, Text(one.unit, "dim"))
    return table


def _cell(spread: Spread) -> Text:
    cell = Text(written(spread.mean), "bold")
    return cell.append(f"  {ends(spread)}", "dim") if ends(spread) else cell


def headline(found: Comparison) -> str:
    """The result in a sentence."""
    one = next((measure for measure in found.measures if measure.name == "FRD v1"), found.measures[0])
    words = f"{one.name} ({one.unit}) of synthetic from real images {written(one.synthetic.mean)}"
    return words + (f", of real from real ones {written(one.real.mean)}." if one.real.mean is not None else ".")


def told_apart(found: Comparison) -> str:
    """How well the features separate the sets, in a sentence; "" if undefined."""
    if found.told_apart is None:
        return ""
    estimate = {name: found.told_apart[key] for name, key in (("value", "auc"), ("low", "low"), ("high", "high"))}
    bounds = html.interval(estimate, 2)
    return (
        f"In cross-validation, these features separate the sets with an AUC of {html.number(estimate['value'], 2)}"
        f"{f' ({bounds})' if bounds else ''}; 0.5 would be indistinguishable."
    )


def ends(spread: Spread) -> str:
    """The smallest and largest value of several draws."""
    if spread.low is None or spread.high is None or spread.low == spread.high:
        return ""
    return f"{written(spread.low)} to {written(spread.high)}"


def written(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, or a whole one below a million: 0.0123, 7.45, 79,493, 4.82e−3."""
    if value is None or not np.isfinite(value):
        return html.ABSENT
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        text = f"{mantissa}e{int(power)}"
    elif size >= 10 ** (digits - 1):
        text = f"{value:,.0f}"
    else:
        places = digits - 1 if size == 0 else digits - 1 - int(np.floor(np.log10(size)))
        text = f"{value:.{places}f}"
    return text.replace("-", "−")
