"""Bars in pairs and clouds of points as inline SVG, coloured by the style sheet.

Sizes are in SVG units, which are pixels at full width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from elk_jax.reporting.figures import ticks
from elk_jax.reporting.html import colour, text
from elk_jax.spread import spread

MOST_POINTS = 600  # points of a cloud: more would hide each other
ROW, BAR, NAMES, VALUES = 46, 15, 250, 150


@dataclass(frozen=True)
class Bar:
    """A bar from 0 to `length`, at least 0 (None: no bar), with a label at its end."""

    length: float | None
    says: str


@dataclass(frozen=True)
class Cloud:
    """Points [N, 2] with a name each, in the colour of series `index`."""

    name: str
    points: np.ndarray
    titles: Sequence[str] = ()
    index: int = 0


def paired_bars(rows: Sequence[tuple[str, Sequence[Bar]]], *, title: str, width: int = 820) -> str:
    """Rows of bars, each with its own scale: the longest bar of a row has the full length.

    rows: (name, one bar for each series).
    """
    count = max((len(bars) for _, bars in rows), default=1)
    step = ROW + BAR * (count - 2)
    height = step * len(rows) + 8
    room = width - NAMES - VALUES
    parts = [f'<line class="axis" x1="{NAMES}" x2="{NAMES}" y1="4" y2="{height - 8}"/>']
    for place, (name, bars) in enumerate(rows):
        top = 4 + step * place
        longest = max((bar.length for bar in bars if bar.length is not None), default=0.0)
        middle = top + BAR * count / 2 + 4
        parts.append(f'<text x="{NAMES - 10}" y="{middle + 4:.1f}" text-anchor="end">{text(name)}</text>')
        for index, bar in enumerate(bars):
            length = room * max(bar.length, 0.0) / longest if bar.length is not None and longest > 0 else 0.0
            y = top + 4 + BAR * index
            parts.append(
                f'<g class="{colour(index)}"><rect class="point" x="{NAMES}" y="{y:.1f}" '
                f'width="{max(length, 1.0):.1f}" height="{BAR - 3}"/></g>'
                f'<text x="{NAMES + length + 7:.1f}" y="{y + BAR - 5:.1f}">{text(bar.says)}</text>'
            )
    return _svg("".join(parts), width, height, title)


def cloud_chart(
    clouds: Sequence[Cloud], *, title: str, x_label: str = "", y_label: str = "", size: tuple[int, int] = (820, 520)
) -> str:
    """Points of several clouds on common axes. Large clouds are thinned evenly along their order."""
    width, height = size
    left, right, top, bottom = 58, 14, 12, 46
    together = np.concatenate([np.zeros((0, 2)), *(cloud.points for cloud in clouds)])
    low, high = (together.min(0), together.max(0)) if len(together) else (np.zeros(2), np.ones(2))
    margin = np.where(high > low, 0.04 * (high - low), 1.0)
    low, high = low - margin, high + margin
    x = lambda value: left + (value - low[0]) / (high[0] - low[0]) * (width - left - right)
    y = lambda value: height - bottom - (value - low[1]) / (high[1] - low[1]) * (height - top - bottom)
    parts = []
    for tick in ticks(float(low[1]), float(high[1]), 6):
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{_tick(tick)}</text>')
    for tick in ticks(float(low[0]), float(high[0]), 8):
        parts.append(f'<text x="{x(tick):.1f}" y="{height - bottom + 18}" text-anchor="middle">{_tick(tick)}</text>')
    base = height - bottom
    parts.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{base}" y2="{base}"/>')
    parts.append(f'<text x="{(left + width - right) / 2}" y="{height - 8}" text-anchor="middle">{text(x_label)}</text>')
    middle = (top + base) / 2
    turned = f'transform="rotate(-90 14 {middle})"'
    parts.append(f'<text x="14" y="{middle}" text-anchor="middle" {turned}>{text(y_label)}</text>')
    for cloud in clouds:
        parts.append(f'<g class="{colour(cloud.index)}" fill-opacity="0.55">')
        for k in spread(len(cloud.points), MOST_POINTS):
            name = f"<title>{text(cloud.titles[k])}</title>" if len(cloud.titles) else ""
            place = f'cx="{x(cloud.points[k, 0]):.1f}" cy="{y(cloud.points[k, 1]):.1f}"'
            parts.append(f'<circle class="point" {place} r="3.2">{name}</circle>')
        parts.append("</g>")
    return _svg("".join(parts), width, height, title)


def _svg(content: str, width: int, height: int, title: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{text(title)}">{content}</svg>'


def _tick(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")
