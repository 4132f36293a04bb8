"""Building blocks for the HTML of a report. `text` escapes text; arguments named `html` already are HTML."""

from __future__ import annotations

import html as _html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from elk_jax.output import visible
from elk_jax.reporting.style import COLOURS

Estimate = Mapping[str, float | None]
"""A value with its interval: {"value", "low", "high"}; None if not defined."""

ABSENT = "–"


def text(value: Any) -> str:
    """Anything as escaped HTML text."""
    return _html.escape(visible(str(value), but="\n\t"), quote=True)


def paragraph(value: Any, style: str = "") -> str:
    return f'<p class="{style}">{text(value)}</p>' if style else f"<p>{text(value)}</p>"


def colour(index: int) -> str:
    """The CSS class with the colour of series `index`."""
    return f"s{index % COLOURS}"


def swatch(index: int) -> str:
    return f'<span class="swatch {colour(index)}"></span>'


def named(index: int, name: object) -> str:
    """A name beside the swatch of its colour."""
    return f"{swatch(index)}{text(name)}"


def legend(names: Iterable[str]) -> str:
    """Names of series, in the order of their colours."""
    items = "".join(f"<span>{named(i, name)}</span>" for i, name in enumerate(names))
    return f'<div class="legend">{items}</div>'


def table(head: Sequence[str], rows: Iterable[str], numeric_from: int = 1) -> str:
    """A table of head cells (HTML) and rows made by `row`; columns from `numeric_from` on are right-aligned."""
    cells = "".join(f'<th scope="col"{_numeric(i, numeric_from)}>{cell}</th>' for i, cell in enumerate(head))
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def row(cells: Sequence[str], numeric_from: int = 1, style: str = "") -> str:
    """One row of HTML cells; the first is the row header."""
    head, *rest = cells
    body = "".join(f"<td{_numeric(i + 1, numeric_from)}>{cell}</td>" for i, cell in enumerate(rest))
    marked = f' class="{style}"' if style else ""
    return f'<tr{marked}><th scope="row">{head}</th>{body}</tr>'


def group_row(name: str, columns: int, index: int | None = None) -> str:
    """The header of a group of rows, with the colour of series `index`."""
    mark = "" if index is None else swatch(index)
    return f'<tr class="group"><th colspan="{columns}" scope="rowgroup">{mark}{text(name)}</th></tr>'


def key_values(pairs: Mapping[str, Any], code: bool = False) -> str:
    """A table of names and values, as code or as text."""
    write = (lambda value: f"<code>{text(value)}</code>") if code else text
    rows = "".join(f'<tr><th scope="row">{write(k)}</th><td>{write(v)}</td></tr>' for k, v in pairs.items())
    return f'<table class="keys"><tbody>{rows}</tbody></table>'


def folded(summary: str, html: str, is_open: bool = False) -> str:
    """HTML in a block that unfolds on a click on its heading."""
    return f"<details{' open' if is_open else ''}><summary>{text(summary)}</summary>{html}</details>"


def number(value: float | None, digits: int = 3) -> str:
    """0.742, -0.031 with a real minus sign; a dash for None."""
    return ABSENT if value is None else f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """+0.031, −0.031."""
    if value is None:
        return ABSENT
    return f"{'+' if round(value, digits) > 0 else ''}{number(value, digits)}"


def interval(estimate: Estimate, digits: int = 3, write=number) -> str:
    """'0.68 – 0.80', or '−0.02 to +0.05' if written signed; empty without an interval."""
    if estimate.get("low") is None or estimate.get("high") is None:
        return ""
    dash = " to " if write is signed else " – "
    return f"{write(estimate['low'], digits)}{dash}{write(estimate['high'], digits)}"


def estimate_cell(estimate: Estimate, digits: int = 3) -> str:
    """Value in bold, with its interval below."""
    bounds = interval(estimate, digits)
    beneath = f'<br><span class="range">{bounds}</span>' if bounds else ""
    return f"<b>{number(estimate.get('value'), digits)}</b>{beneath}"


def p_value(value: float | None) -> str:
    if value is None:
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys, as in `--config.any.key=value`."""
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def duration(seconds: float) -> str:
    """'47 s', '12 min 5 s', '3 h 20 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _numeric(column: int, numeric_from: int) -> str:
    return ' class="n"' if column >= numeric_from else ""
