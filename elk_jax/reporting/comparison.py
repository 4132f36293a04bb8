"""Models side by side: cards with a value and its interval, and paired differences in words and colour.

An estimate is {"value", "low", "high"}; a difference is {"difference", "low", "high", "p_value"}, second minus first.
"""

from __future__ import annotations

from collections.abc import Mapping

from elk_jax.reporting import html
from elk_jax.reporting.figures import interval_bar

Difference = Mapping[str, float | None]


def interpret(entry: Difference, better: int = 1) -> tuple[str, str]:
    """A difference in words, and its style. better: 1 if larger is better, -1 if smaller is, 0 if neither."""
    low, high, difference = entry.get("low"), entry.get("high"), entry.get("difference")
    if difference is None:
        return "the difference is undefined", ""
    if low is None or high is None:
        return f"{html.signed(difference)}, without an interval", ""
    if low <= 0 <= high:
        return "no clear difference", ""
    size = html.number(abs(difference))
    if better == 0:
        return f"{'larger' if low > 0 else 'smaller'} by {size}", ""
    return (f"better by {size}", "good") if better * low > 0 else (f"worse by {size}", "bad")


def difference_html(entry: Difference, better: int = 1) -> str:
    """The cell of a table: the signed difference, with its interval and p-value below."""
    if entry.get("difference") is None:
        return html.ABSENT
    _, style = interpret(entry, better)
    bounds = html.interval(entry, write=html.signed)
    beneath = f'<br><span class="range">{bounds}, {html.p_value(entry.get("p_value"))}</span>' if bounds else ""
    return f'<b class="{style}">{html.signed(entry["difference"])}</b>{beneath}'


def value_card(name: str, estimate: html.Estimate, what: str, index: int) -> str:
    """A card with a value, its interval as a bar and in numbers, and its description `what`, in the colour of series
    `index`."""
    bounds = html.interval(estimate) or "no interval"
    return (
        f'<div class="card {html.colour(index)}"><div class="name">{html.text(name)}</div>'
        f'<div class="big">{html.number(estimate["value"])}</div>{interval_bar(estimate, index)}'
        f'<div class="what">{html.text(what)}, {bounds}</div></div>'
    )


def difference_card(first: str, name: str, entry: Difference, index: int) -> str:
    """A card with the difference of the model `name` from the `first`, for a metric for which larger is better."""
    words, style = interpret(entry)
    estimate = {"value": entry.get("difference"), "low": entry.get("low"), "high": entry.get("high")}
    reach = max([0.1, *(abs(v) * 1.15 for v in estimate.values() if v is not None)])
    bounds = html.interval(estimate, write=html.signed) or "no interval"
    p = html.p_value(entry.get("p_value"))
    title = f"{html.text(name)} − {html.text(first)}"
    return (
        f'<div class="card {html.colour(index)}"><div class="name">{title}</div>'
        f'<div class="big">{html.signed(estimate["value"])}</div>{interval_bar(estimate, index, (-reach, reach))}'
        f'<div class="what">{bounds}{f", {p}" if p else ""}</div>'
        f'<div class="verdict small {style}">{html.text(words[0].upper() + words[1:])}</div></div>'
    )
