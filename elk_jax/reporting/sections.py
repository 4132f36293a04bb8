"""Sections for the report of any experiment: training curves, data, configuration, environment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from elk_jax.reporting import html
from elk_jax.reporting.figures import Series, line_chart
from elk_jax.reporting.report import Section

FIRST_CURVES = ("train/loss", "eval/loss")


def plain_label(key: str) -> str:
    """A key as words."""
    return key.replace("_", " ")


def training_section(
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    chosen_steps: Mapping[str, int],
    colours: Mapping[str, int],
    title: str = "Training",
    first_curves: Sequence[str] = FIRST_CURVES,
    label: Callable[[str], str] = plain_label,
) -> Section:
    """One small chart for each key of metrics.jsonl, with all trained models.

    histories: lines of metrics.jsonl by model. chosen_steps, colours: by model, the step of the saved weights and the
    index of the colour. first_curves: keys whose charts are not folded. label: the name of a validation metric.
    """
    keys = {key: None for lines in histories.values() for line in lines for key in line if key != "step"}
    charts: dict[str, str] = {}
    for key in keys:
        series = []
        for name, lines in histories.items():
            points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
            if points:
                x, y = zip(*points)
                mark = chosen_steps.get(name) if key.startswith("eval/") else None
                smoothing = 0.05 if key.startswith("train/") else 0.0
                series.append(Series(name, x, y, colours.get(name, 0), smoothing=smoothing, mark=mark))
        if series:
            charts[key] = line_chart(series, title=_curve_title(key, label), size=(330, 210))
    first = [key for key in first_curves if key in charts] or list(charts)[:4]
    names = sorted(histories, key=lambda name: colours.get(name, 0))
    swatches = "".join(f"<span>{html.swatch(colours.get(n, 0))}{html.text(n)}</span>" for n in names)
    parts = [f'<div class="legend">{swatches}</div>', _multiples(charts[key] for key in first)]
    groups = {"Losses and rates": "train/", "Validation": "eval/", "Time": "time/"}
    for group, prefix in groups.items():
        rest = [charts[key] for key in sorted(charts) if key.startswith(prefix) and key not in first]
        if rest:
            parts.append(html.folded(f"{group} ({len(rest)} more)", _multiples(rest)))
    other = [charts[k] for k in sorted(charts) if k not in first and not k.startswith(tuple(groups.values()))]
    if other:
        parts.append(html.folded(f"Others ({len(other)})", _multiples(other)))
    note = "Over training steps."
    if chosen_steps:
        saved = ", ".join(f"{name} at step {step}" for name, step in chosen_steps.items())
        note += f" Dashed lines mark the saved weights: {saved}."
    return Section(title, "".join(parts), note)


def data_section(data: Mapping[str, Mapping[str, Any]], skipped: Sequence[tuple[str, str]]) -> Section:
    """Counts of every split, and the skipped images with the reason."""
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
        listed = [html.row([html.text(image), html.text(reason)], numeric_from=2) for image, reason in skipped]
        parts.append(f"<h3>Skipped images ({len(skipped)})</h3>{html.table(['Image', 'Reason'], listed, 2)}")
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


def _curve_title(key: str, label: Callable[[str], str]) -> str:
    prefix, _, name = key.rpartition("/")
    words = label(name) if prefix == "eval" else plain_label(name)
    return f"{words[:1].upper()}{words[1:]}{', validation' if prefix == 'eval' else ''}"


def _multiples(charts: Iterable[str]) -> str:
    return f'<div class="multiples">{"".join(charts)}</div>'
