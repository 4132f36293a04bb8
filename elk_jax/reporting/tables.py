"""Blocks of the result tables that stages print in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from elk_jax.output import visible
from elk_jax.reporting import html


class _Folding(Table):
    """A table whose cells continue on the next line if there is no room, so a number never loses its last digits or its
    exponent."""

    def add_column(self, *words: Any, **settings: Any) -> None:
        super().add_column(*words, **{"overflow": "fold", **settings})


def named_table(title: str, first: str) -> Table:
    """A table with a title (none if empty) and a first column of names that do not wrap."""
    table = _Folding(title=name_cell(title) if title else None, title_justify="left", header_style="bold")
    table.add_column(first, no_wrap=True, overflow="ellipsis")
    return table


def name_cell(name: str) -> Text:
    """A user-defined name for any console: without Rich's markup, and with every character visible."""
    return Text(visible(name))


def estimate_cell(entry: Mapping[str, Any], digits: int = 3) -> Text:
    """A value and its interval, {"value", "low", "high"}."""
    text = Text(html.number(entry.get("value"), digits))
    bounds = html.interval(entry, max(2, digits - 1))
    return text.append(f"  {bounds}", "dim") if bounds else text


def difference_cell(entry: Mapping[str, Any], better: int = 1) -> Text:
    """A signed difference and its interval, {"difference", "low", "high"}; coloured if the interval excludes 0.

    better: 1 if larger is better, -1 if smaller is, 0 if neither.
    """
    if entry.get("difference") is None:
        return Text(html.ABSENT)
    bounds = html.interval(entry, write=html.signed)  # with as many digits: whether it includes 0 is seen
    clear = bounds and (entry["low"] > 0 or entry["high"] < 0)
    style = ("green" if better * entry["difference"] > 0 else "red") if clear and better else ""
    text = Text(html.signed(entry["difference"]), style)
    return text.append(f"  {bounds}", "dim") if bounds else text
