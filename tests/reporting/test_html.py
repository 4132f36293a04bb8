import pytest

from elk_jax.reporting import html


def test_text_is_harmless():
    assert html.text("<b onclick=\"x('&')\">") == "&lt;b onclick=&quot;x(&#x27;&amp;&#x27;)&quot;&gt;"


@pytest.mark.parametrize(
    "value, plain, signed",
    [
        (0.74251, "0.743", "+0.743"),
        (-0.0311, "−0.031", "−0.031"),
        (0.0, "0.000", "0.000"),
        (0.0001, "0.000", "0.000"),
        (None, "–", "–"),
    ],
)
def test_numbers(value, plain, signed):
    assert html.number(value) == plain
    assert html.signed(value) == signed


def test_no_minus_before_zero():
    assert html.number(-0.0001) == "0.000"
    assert html.signed(-0.0001) == "0.000"


def test_intervals():
    entry = {"value": 0.1, "low": -0.02, "high": 0.2}
    assert html.interval(entry, 2) == "−0.02 – 0.20"
    assert html.interval(entry, 2, html.signed) == "−0.02 to +0.20"
    assert html.interval({"low": None, "high": None}) == ""
    assert "<br>" not in html.estimate_cell({"value": 0.5, "low": None, "high": None})


@pytest.mark.parametrize("value, said", [(0.0005, "p < 0.001"), (0.0123, "p = 0.012"), (0.5, "p = 0.50"), (None, "")])
def test_p_values(value, said):
    assert html.p_value(value) == said


@pytest.mark.parametrize(
    "seconds, said", [(0.4, "0 s"), (59.6, "1 min 0 s"), (812, "13 min 32 s"), (12_060, "3 h 21 min")]
)
def test_durations(seconds, said):
    assert html.duration(seconds) == said


def test_flatten_keeps_order_and_empty_groups():
    tree = {"b": {"y": 1, "x": [1, 2]}, "a": {}, "c": None}
    assert html.flatten(tree) == {"b.y": 1, "b.x": [1, 2], "a": {}, "c": None}
    assert list(html.flatten(tree)) == ["b.y", "b.x", "a", "c"]


def test_colours_repeat():
    assert html.colour(0) == html.colour(6) == "s0" != html.colour(1)
