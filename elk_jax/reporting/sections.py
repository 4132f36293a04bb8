"""Sections for the report of any experiment: data, configuration, environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elk_jax.reporting import html
from elk_jax.reporting.report import Section

MOST_SKIPPED = 200
"""Skipped images on a page: of a large data set there may be thousands."""


def plain_label(key: str) -> str:
    """A key as words."""
    return key.replace("_", " ")


def data_section(data: Mapping[str, Mapping[str, Any]], skipped: Sequence[tuple[str, str]]) -> Section:
    """Counts of every split, and the skipped images with the reason, at most MOST_SKIPPED."""
    parts = []
    columns = list({key: None for counts in data.values() for key in counts})
    if columns:
        head = ["Split", *(html.text(plain_label(column)) for column in columns)]
        rows = [
            html.row([html.text(name), *(html.text(counts.get(c, html.ABSENT)) for c in columns)])
            for name, counts in data.items()
        ]
        parts.append(html.table(head, rows))
    if skipped:
        listed = [
            html.row([html.text(image), html.text(reason)], numeric_from=2) for image, reason in skipped[:MOST_SKIPPED]
        ]
        parts.append(f"<h3>Skipped images ({len(skipped)})</h3>{html.table(['Image', 'Reason'], listed, 2)}")
    if len(skipped) > MOST_SKIPPED:
        said = f"These are the first {MOST_SKIPPED} of {len(skipped)}."
        every = "All are in finished.json of the stages of a run, and in skipped.csv of an evaluation."
        parts.append(html.paragraph(f"{said} {every}", "soft small"))
    return Section("Data", "".join(parts), "" if skipped else "No images were skipped.")


def config_section(config: Mapping[str, Any]) -> Section:
    """The configuration by dotted key, in folded blocks."""
    plain = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    parts = [html.folded("General", html.key_values(plain, code=True))] if plain else []
    for key, value in config.items():
        if isinstance(value, Mapping):
            parts.append(html.folded(str(key), html.key_values(html.flatten(value, str(key)), code=True)))
    return Section("Configuration", "".join(parts), "Every key can be set with --config.KEY=VALUE.")


def environment_section(versions: Mapping[str, Any], seconds: Mapping[str, float]) -> Section:
    """Versions, hardware and time."""
    parts = []
    if seconds:
        rows = [html.row([html.text(name), html.duration(value)]) for name, value in seconds.items()]
        if len(seconds) > 1:
            rows.append(html.row(["<b>all</b>", f"<b>{html.duration(sum(seconds.values()))}</b>"]))
        parts.append(html.table(["Stage", "Time"], rows))
    if versions:
        parts.append(html.folded("Versions and hardware", html.key_values(versions), is_open=True))
    return Section("Environment", "".join(parts))
