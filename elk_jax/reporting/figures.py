"""Line charts as inline SVG, coloured by the style sheet, without a library in the page.

Sizes are in SVG units, which are pixels at full width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from elk_jax.reporting.html import colour, interval, number, text
from elk_jax.reporting.style import picture_style
from elk_jax.spread import spread

MAX_POINTS = 400  # per line: more would not be visible


@dataclass(frozen=True)
class Series:
    """One line, without points that are not finite. `index` selects the colour."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    index: int = 0
    band: tuple[Sequence[float], Sequence[float | None], Sequence[float | None]] | None = None  # x, low, high
    dots: tuple[Sequence[float], Sequence[float]] | None = None  # x, y of points to highlight
    smoothing: float = 0.0  # 0 to 1; above 0 the line is a running mean over this share of its points
    mark: float | None = None  # x of a vertical line, for example the selected step


def line_chart(
    series: Sequence[Series],
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    rules: Sequence[float] = (),
    diagonal: bool = False,
    size: tuple[int, int] = (820, 460),
) -> str:
    """A chart of all series on common axes, as an <svg>. Ranges that are not given follow from the data.

    rules: x positions of faint vertical lines. diagonal: a faint line y = x, from corner to corner of equal ranges.
    """
    width, height = size
    left, right, top, bottom = 58 if y_label else 48, 14, 30 if title else 14, 46 if x_label else 26
    points = [_points(one) for one in series]
    x_low, x_high = x_range or _extent([x for x, _ in points])
    y_low, y_high = y_range or _padded(_extent([y for _, y in points]))

    def to_x(values):
        return left + (np.asarray(values, float) - x_low) / (x_high - x_low) * (width - left - right)

    def to_y(values):
        return height - bottom - (np.asarray(values, float) - y_low) / (y_high - y_low) * (height - top - bottom)

    parts = [f'<text class="title" x="{left}" y="17">{text(title)}</text>'] if title else []
    for tick in ticks(y_low, y_high, 4 if height < 300 else 6):
        y = to_y(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{_tick(tick)}</text>')
    for tick in ticks(x_low, x_high, 4 if width < 500 else 8):
        x = to_x(tick)
        parts.append(f'<text x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle">{_tick(tick)}</text>')
    for rule in rules:
        x = to_x(rule)
        parts.append(f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - bottom}"/>')
    base = height - bottom
    if diagonal:
        ends = max(x_low, y_low), min(x_high, y_high)
        (x1, x2), (y1, y2) = to_x(ends), to_y(ends)
        parts.append(f'<line class="rule" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>')
    parts.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{base}" y2="{base}"/>')
    if x_label:
        parts.append(
            f'<text x="{(left + width - right) / 2}" y="{height - 8}" text-anchor="middle">{text(x_label)}</text>'
        )
    if y_label:
        middle = (top + height - bottom) / 2
        turned = f'transform="rotate(-90 14 {middle})"'
        parts.append(f'<text x="14" y="{middle}" text-anchor="middle" {turned}>{text(y_label)}</text>')
    for one, (xs, ys) in zip(series, points, strict=True):
        parts.append(_draw(one, xs, ys, to_x, to_y, (top, base)))
    label = text(title or y_label or "chart")
    opening = f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{label}">'
    return f"{opening}{''.join(parts)}</svg>"


def picture(charts: Sequence[str], names: Sequence[str] = (), *, title: str = "", size: tuple[int, int]) -> str:
    """Charts of `size` side by side as one SVG file, which any program draws; names: of the series, for the legend."""
    width, height = size
    top = (26 if title else 0) + (26 if names else 0)
    parts = [f'<text class="title" x="20" y="22">{text(title)}</text>'] if title else []
    for index, name in enumerate(names):
        x, y = 28 + 170 * index, top - 8
        dot = f'<circle class="point" cx="{x}" cy="{y - 4}" r="5"/>'
        parts.append(f'<g class="{colour(index)}">{dot}</g><text x="{x + 11}" y="{y}">{text(name)}</text>')
    for index, chart in enumerate(charts):
        parts.append(f'<svg x="{index * width}" y="{top}" width="{width}" height="{height}">{chart}</svg>')
    whole = f"{len(charts) * width} {top + height}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole}" width="{len(charts) * width}" '
        f'height="{top + height}" font-family="sans-serif"><style>{picture_style()}</style>'
        f'<rect fill="#ffffff" width="100%" height="100%"/>{"".join(parts)}</svg>\n'
    )


def interval_bar(estimate, index: int = 0, bounds: tuple[float, float] = (0.0, 1.0), width: int = 220) -> str:
    """A small bar from low to high with a dot at the value, on a track over `bounds`."""
    low, high = bounds

    def at(value: float) -> float:
        return 5 + min(max((value - low) / (high - low), 0.0), 1.0) * (width - 10)

    parts = [f'<line class="track" x1="5" x2="{width - 5}" y1="8" y2="8"/>']
    if low < 0 < high:
        parts.append(f'<line class="axis" x1="{at(0):.1f}" x2="{at(0):.1f}" y1="1" y2="15"/>')
    if estimate.get("low") is not None and estimate.get("high") is not None:
        ends = f'x1="{at(estimate["low"]):.1f}" x2="{at(estimate["high"]):.1f}"'
        parts.append(f'<line class="bar" {ends} y1="8" y2="8"/>')
    if estimate.get("value") is not None:
        parts.append(f'<circle class="point" cx="{at(estimate["value"]):.1f}" cy="8" r="4.5"/>')
    label = f"{number(estimate.get('value'))} ({interval(estimate)})"
    return (
        f'<svg class="{colour(index)}" viewBox="0 0 {width} 16" width="{width}" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>'
    )


def ticks(low: float, high: float, about: int) -> list[float]:
    """About `about` round numbers from low to high, in steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def smooth(values: np.ndarray, share: float) -> np.ndarray:
    """Running mean over a centred window of `share` of all points, shorter at the ends."""
    half = max(1, int(len(values) * share / 2))
    total = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    start, end = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return (total[end] - total[start]) / (end - start)


def _points(one: Series) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.array([np.nan if v is None else v for v in values], float) for values in (one.x, one.y))
    finite = np.isfinite(x) & np.isfinite(y)
    return x[finite], y[finite]


def _draw(one: Series, xs: np.ndarray, ys: np.ndarray, to_x, to_y, span: tuple[float, float]) -> str:
    parts = []
    if one.mark is not None:
        x = float(to_x(one.mark))
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{span[0]}" y2="{span[1]}"/>')
    if one.band is not None:
        band_x, low, high = (np.array(values, float) for values in one.band)
        known = np.isfinite(low) & np.isfinite(high)
        band_x, low, high = band_x[known], low[known], high[known]
        outline_x = to_x(np.concatenate([band_x, band_x[::-1]]))
        outline_y = to_y(np.concatenate([low, high[::-1]]))
        parts.append(f'<path class="band" d="{_path(outline_x, outline_y)}Z"/>')
    if one.smoothing > 0 and len(ys) > 10:
        parts.append(f'<path class="line faint" d="{_path(*_thinned(to_x(xs), to_y(ys)))}"/>')
        ys = smooth(ys, one.smoothing)
    if len(xs) > 1:
        parts.append(f'<path class="line" d="{_path(*_thinned(to_x(xs), to_y(ys)))}"/>')
    dots = one.dots if one.dots is not None else ((xs, ys) if len(xs) <= 12 else ((), ()))
    for x, y in zip(*dots, strict=True):
        parts.append(
            f'<circle class="dot" cx="{float(to_x(x)):.1f}" cy="{float(to_y(y)):.1f}" r="3.6">'
            f"<title>{text(one.name)}: {x:g}, {y:.4g}</title></circle>"
        )
    return f'<g class="{colour(one.index)}">{"".join(parts)}</g>'


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(x) <= MAX_POINTS:
        return x, y
    kept = spread(len(x), MAX_POINTS)
    return x[kept], y[kept]


def _path(x: np.ndarray, y: np.ndarray) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def _extent(values: Sequence[np.ndarray]) -> tuple[float, float]:
    joined = np.concatenate([np.zeros(0), *values])
    if joined.size == 0:
        return 0.0, 1.0
    low, high = float(joined.min()), float(joined.max())
    if high > low:
        return low, high
    spread = abs(low) * 0.1 or 1.0  # one value only
    return low - spread, high + spread


def _padded(extent: tuple[float, float]) -> tuple[float, float]:
    low, high = extent
    margin = 0.06 * (high - low)
    return (0.0 if 0 <= low < 0.4 * high else low - margin), high + margin


def _tick(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    if 0 < abs(value) < 1e-3:
        digits, _, power = f"{value:.1e}".partition("e")
        return f"{float(digits):g}e{int(power)}".replace("-", "−")
    return f"{value:.6g}".replace("-", "−")
