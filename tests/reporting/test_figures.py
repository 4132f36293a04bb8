import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from elk_jax.reporting.figures import MAX_POINTS, Series, interval_bar, line_chart, smooth, ticks


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)  # raises if it is not well-formed


def paths(svg: str, style: str) -> list[np.ndarray]:
    """Points [n, 2] of every path of one class."""
    found = [node.get("d") for node in parsed(svg).iter("path") if node.get("class") == style]
    return [np.array(re.findall(r"-?[\d.]+", d), float).reshape(-1, 2) for d in found]


def test_points_are_at_their_coordinates():
    svg = line_chart([Series("a", [0, 1, 2], [0, 1, 0.5])], x_range=(0, 2), y_range=(0, 1), size=(400, 300))
    (line,) = paths(svg, "line")
    np.testing.assert_allclose(np.diff(line[:, 0]), (400 - 48 - 14) / 2, atol=0.1)
    assert line[0, 1] > line[2, 1] > line[1, 1]  # SVG counts downwards
    np.testing.assert_allclose(line[2, 1], line[:2, 1].mean(), atol=0.1)


def test_missing_points_are_omitted():
    svg = line_chart([Series("a", [0, 1, 2, 3], [0.0, None, float("nan"), 1.0])])
    assert len(paths(svg, "line")[0]) == 2
    assert "nan" not in svg


@pytest.mark.parametrize("x, y", [([], []), ([3], [0.2]), ([1, 2], [5.0, 5.0]), ([1, 2], [0.0, 0.0])])
def test_few_or_equal_points(x, y):
    svg = line_chart([Series("a", x, y)], title="t")
    parsed(svg)
    assert "nan" not in svg and "inf" not in svg
    assert len(list(parsed(svg).iter("circle"))) == len(x)


def test_no_series():
    chart = parsed(line_chart([], x_range=(0, 2), y_range=(0, 1), x_label="x"))
    assert chart.find("g") is None and not list(chart.iter("path"))
    assert {"0", "2", "x"} <= {node.text for node in chart.iter("text")}  # the axes are drawn


def test_long_lines_are_thinned_and_keep_their_ends():
    x = np.arange(5000.0)
    svg = line_chart([Series("a", x, x)], x_range=(0, 4999))
    (line,) = paths(svg, "line")
    assert len(line) == MAX_POINTS
    assert line[0, 0] < 60 and line[-1, 0] > 800


def test_smoothing_keeps_the_raw_line_faint():
    x = np.arange(50.0)
    svg = line_chart([Series("a", x, np.sin(x), smoothing=0.2)])
    assert len(paths(svg, "line")) == len(paths(svg, "line faint")) == 1
    assert np.ptp(paths(svg, "line")[0][:, 1]) < np.ptp(paths(svg, "line faint")[0][:, 1])


def test_smooth_by_hand():
    np.testing.assert_allclose(smooth(np.array([0.0, 3, 6, 9]), 0.5), [1.5, 3, 6, 7.5])
    np.testing.assert_allclose(smooth(np.full(9, 2.0), 0.3), 2.0)


def test_band_dots_mark_and_names():
    series = Series("<a>", [0, 1], [0, 1], 2, band=([0, 1], [0, 0.5], [0.5, 1]), dots=([1], [1]), mark=0.5)
    svg = line_chart([series], x_label="x & more", y_label="y")
    root = parsed(svg)
    assert root.find("g").get("class") == "s2"
    classes = [node.get("class") for node in root.find("g")]
    assert classes == ["mark", "band", "line", "dot"]
    assert [node.text for node in root.iter("title")] == ["<a>: 1, 1"]
    assert "x & more" in [node.text for node in root.iter("text")]


def test_diagonal():
    (line,) = (
        node
        for node in parsed(line_chart([], x_range=(0, 1), y_range=(0, 1), diagonal=True, size=(400, 300))).iter("line")
        if node.get("class") == "rule"
    )
    assert [float(line.get(end)) for end in ("x1", "x2", "y1", "y2")] == [48, 386, 274, 14]


def test_band_is_drawn_where_it_is_defined():
    series = Series("a", [0, 1], [0, 1], band=([0, 0.5, 1], [0.0, None, 0.5], [0.5, None, 1.0]))
    (band,) = paths(line_chart([series]), "band")
    assert len(band) == 4


@pytest.mark.parametrize(
    "low, high, about, expected",
    [
        (0, 1, 6, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 4, 8, [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]),
        (-0.3, 0.7, 4, [0, 0.5]),
        (17, 3000, 4, [1000, 2000, 3000]),
        (0, 1e-4, 4, [0, 5e-5, 1e-4]),
    ],
)
def test_ticks(low, high, about, expected):
    np.testing.assert_allclose(ticks(low, high, about), expected, atol=1e-12)


def test_interval_bar():
    full = parsed(interval_bar({"value": 0.5, "low": 0.25, "high": 1.0}, width=110))
    (point,), (bar,) = full.iter("circle"), [n for n in full.iter("line") if n.get("class") == "bar"]
    assert float(point.get("cx")) == 55 and float(bar.get("x1")) == 30 and float(bar.get("x2")) == 105
    assert not list(parsed(interval_bar({"value": None, "low": None, "high": None})).iter("circle"))
    outside = parsed(interval_bar({"value": 5.0, "low": None, "high": None}, width=110))
    assert float(next(outside.iter("circle")).get("cx")) == 105
