"""Sections and table of classifiers, from evaluations of small sets."""

import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from elk_jax.evaluation.classification import compare_classification, confident_errors, evaluate_classification
from elk_jax.evaluation.predictions import Predictions
from elk_jax.evaluation.thresholds import choose, rule_from_text
from elk_jax.reporting import classification as page
from elk_jax.reporting import html
from elk_jax.reporting.report import Report, build_report

RULES = ("youden", "specificity:0.9")


def predictions(seed: int, signal: float) -> Predictions:
    rng = np.random.default_rng(seed)
    labels = np.arange(60) % 2
    p = 1 / (1 + np.exp(-rng.normal(signal * (labels - 0.5), 1)))
    return Predictions(range(60), [f"P{i // 3}" for i in range(60)], labels, np.stack([1 - p, p], 1), ("good", "b<ad"))


@pytest.fixture(scope="module")
def models():
    """Evaluations and comparisons of three models; the second is named in HTML."""
    sets = {name: predictions(3, signal) for name, signal in (("one", 1.0), ("<two>", 2.5), ("three", 1.5))}
    points = [choose(predictions(4, 1.5), "b<ad", rule_from_text(rule)) for rule in RULES]
    setting = {"positive": "b<ad", "resamples": 100}
    evaluations = {name: evaluate_classification(p, points=points, **setting) for name, p in sets.items()}
    rest = {name: compare_classification(sets["one"], p, **setting) for name, p in sets.items() if name != "one"}
    return evaluations, rest


def svgs(html: str) -> list[ElementTree.Element]:
    found = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.S)]
    assert found and "nan" not in html
    return found


def drawn(chart: ElementTree.Element, kind: str) -> int:
    return sum(kind in node.get("class", "").split() for node in chart.iter())


def test_results_name_the_positive_class_and_chance(models):
    section = page.results_section(*models)
    assert "Positive class: b<ad, 50% of 60 images of 20 patients" in section.note
    assert "average precision 0.50 for b<ad and 0.50 for good" in section.note
    for words in ("Average precision, b&lt;ad positive", "Average precision, good positive", "&lt;two&gt; − one"):
        assert words in section.html
    assert "<two>" not in section.html and "b<ad" not in section.html


def test_less_is_better_where_it_is(models):
    evaluations, comparisons = models
    table = page.results_section(evaluations, comparisons).html.split("Paired differences")[1]
    cell = r'</th><td class="n"><b class="(\w*)">(.)'
    rows = {row: re.search(f"{row}{cell}", table).groups() for row in ("AUROC", "Brier score")}
    assert rows == {"AUROC": ("good", "+"), "Brier score": ("good", "−")}


def test_curves_bands_and_operating_points(models):
    evaluations, _ = models
    (roc,), (reliability, *_) = (
        svgs(section(evaluations).html) for section in (page.roc_section, page.calibration_section)
    )
    assert [drawn(roc, kind) for kind in ("line", "band", "dot", "rule")] == [3, 3, 6, 1]
    assert drawn(reliability, "line") == drawn(reliability, "band") == 3 and drawn(reliability, "rule") == 1
    many = {str(number): evaluations["one"] for number in range(page.MOST_BANDS + 1)}
    section = page.roc_section(many)
    assert drawn(svgs(section.html)[0], "band") == 0 and "Band" not in section.note


def test_thin_bins_are_not_drawn(models):
    evaluations, _ = models
    filled = [one for one in evaluations["one"]["reliability"] if one["images"] >= page.LEAST_IMAGES]
    chart = svgs(page.calibration_section({"one": evaluations["one"]}).html)[0]
    assert drawn(chart, "dot") == len(filled) < sum(one["images"] > 0 for one in evaluations["one"]["reliability"])


def test_operating_points_say_where_they_were_chosen(models):
    evaluations, _ = models
    section = page.operating_points_section(evaluations)
    point = evaluations["one"]["operating_points"][1]
    assert section.html.count("specificity ≥ 0.9, validation") == 3
    assert f"{point['threshold']:.3f}" in section.html
    bounds = {"value": point["threshold"], "low": point["low"], "high": point["high"]}
    assert html.estimate_cell(bounds) in section.html
    for name in ("sensitivity", "specificity"):
        own = f'<td class="n">{point["there"][name]:.2f}</td>'
        assert own + f'<td class="n">{html.estimate_cell(point["intervals"][name], 2)}</td>' in section.html
    assert "Warning" not in section.html
    assert page.rule_label({"rule": "", "chosen_on": ""}) == "given"


def test_what_is_said_against_thresholds_is_shown_with_their_model(models):
    evaluations = {name: {**one, "warning": "Few <patients>."} for name, one in models[0].items()}
    section = page.operating_points_section(evaluations)
    assert section.html.count("Warning: ") == 3 and "&lt;two&gt;: Few &lt;patients&gt;." in section.html


def test_operating_points_of_earlier_versions_promise_nothing_for_others(models):
    """Of a first one without any intervals, and of a second whose intervals hold the threshold as it is."""
    one, later = models[0]["one"], ("low", "high", "intervals", "on")
    points = [{k: v for k, v in point.items() if k not in later} for point in one["operating_points"]]
    fixed = {name: {"low": 0.123, "high": 0.987} for name in ("sensitivity", "specificity")}
    for point in (points, [{**one, "intervals": fixed} for one in points]):
        earlier = {key: value for key, value in one.items() if key != "warning"} | {"operating_points": point}
        section = page.operating_points_section({"one": earlier})
        assert f"<b>{points[0]['threshold']:.3f}</b></td>" in section.html and "Warning" not in section.html
        assert f'<td class="n">{points[0]["there"]["sensitivity"]:.2f}</td><td' in section.html
        assert "0.12" not in section.html and "0.99" not in section.html


def test_histograms_of_every_model_with_its_classes(models):
    evaluations, _ = models
    section = page.scores_section(evaluations)
    charts = svgs(section.html)
    assert len(charts) == 3 and all(drawn(chart, "line") == 2 and drawn(chart, "mark") == 1 for chart in charts)
    assert "b&lt;ad" in section.html and "good" in section.html


def test_confident_errors_show_label_and_score():
    found = confident_errors(predictions(3, 1.0), "b<ad", 0.5, 2)
    image = np.zeros((8, 8), np.float32)
    named, bare = page.error_picture(found[0], image, "a picture"), page.error_picture(found[1], image)
    what = f"{found[0]['label']}, score {found[0]['score']:.3f}"
    assert (named.title, named.caption) == ("a picture", what) and bare.caption == ""
    section = page.errors_section("one", [named, bare], "b<ad", 0.5)
    assert section.html.count("<figure>") == 2 and "0.500" in section.note and "b<ad" in section.note
    assert "None" in page.errors_section("one", [], "b<ad", 0.5).html


@pytest.mark.parametrize("scores", [[0.9, 0.8, 0.2, 0.1], [0.5] * 4])
def test_a_small_or_constant_set_makes_a_page(scores):
    rows = np.stack([1 - np.array(scores), scores], 1)
    tiny = Predictions("abcd", ["P"] * 4, [1, 1, 0, 0], rows, ("good", "bad"))
    evaluation = evaluate_classification(tiny, positive="bad", resamples=50)
    sections = page.classification_sections({"m": evaluation})
    html = build_report(Report("t", sections=sections))
    assert "nan" not in html and "no interval" in html and "fewer than two patients" in html


def test_terminal_table(models):
    console = Console(width=200, file=io.StringIO())
    console.print(page.results_table(*models, title="test"))
    text = console.file.getvalue()
    assert "test, positive: b<ad" in text and "<two> - one" in text and "Brier score" in text
