import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from elk_jax.reporting.marks import MOST_POINTS, Bar, Cloud, cloud_chart, paired_bars


def widths(svg):
    return [float(node.get("width")) for node in ElementTree.fromstring(svg).iter("rect")]


def test_bars_of_a_row_share_a_scale():
    svg = paired_bars([("a", [Bar(4, "four"), Bar(1, "one")]), ("b", [Bar(0.2, "x"), Bar(0.4, "y")])], title="t")
    first, second, third, fourth = widths(svg)
    assert first == pytest.approx(4 * second) and fourth == pytest.approx(2 * third) and first == fourth
    assert "four" in svg and ElementTree.fromstring(svg).get("aria-label") == "t"


@pytest.mark.parametrize("lengths", [(None, None), (0.0, 0.0), (-1.0, 2.0), (None, 3.0)])
def test_bars_without_length(lengths):
    svg = paired_bars([("<a>", [Bar(length, "s") for length in lengths])], title="t")
    assert len(widths(svg)) == 2 and widths(svg)[0] == 1 and "nan" not in svg and "&lt;a&gt;" in svg


def test_points_are_at_their_coordinates():
    svg = cloud_chart([Cloud("a", np.array([[0.0, 0], [10, 0], [0, 5]]))], title="t", x_label="x", y_label="y")
    circles = [(float(node.get("cx")), float(node.get("cy"))) for node in ElementTree.fromstring(svg).iter("circle")]
    assert circles[0][1] == circles[1][1] > circles[2][1]  # SVG counts downwards
    assert circles[0][0] == circles[2][0] < circles[1][0]


@pytest.mark.parametrize("points", [np.zeros((0, 2)), np.ones((1, 2)), np.ones((3, 2))])
def test_few_or_equal_points(points):
    svg = cloud_chart([Cloud("a", points)], title="t")
    assert "nan" not in svg and len(list(ElementTree.fromstring(svg).iter("circle"))) == len(points)


def test_of_many_points_some_are_drawn_with_their_names():
    points = np.random.default_rng(0).normal(size=(MOST_POINTS + 50, 2))
    svg = cloud_chart([Cloud("a", points, [f"<{k}>" for k in range(len(points))])], title="t")
    names = [node.text for node in ElementTree.fromstring(svg).iter() if node.tag == "title"]
    assert len(names) == MOST_POINTS and names[0] == "<0>" and names[-1] == f"<{MOST_POINTS + 49}>"
