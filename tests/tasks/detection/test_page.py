"""Report sections and terminal table of detectors, from hand-made data."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace

import pytest
from rich.console import Console

from elk_jax.evaluation.evaluate import SEVERAL, compare_detections, evaluate_detections
from elk_jax.evaluation.operating import OperatingPoint
from elk_jax.reporting.detections import classes_section, results_table
from elk_jax.reporting.report import build_report
from elk_jax.reporting.run import RunRecord, run_report
from elk_jax.tasks.detection.page import DetectionRun, Evaluated, detection_part, notes_of, promises_section, verdict
from tests.evaluation.conftest import make_result
from tests.pages import detection_run


@pytest.fixture(scope="module")
def run() -> DetectionRun:
    return detection_run()


def test_metrics_and_differences_are_in_the_page(run):
    page = build_report(run_report(RunRecord("x"), [detection_part(run)]))
    for expected in ("0.600", "+0.100", "p = 0.12", "No clear difference", "Worse by 0.100", "IoU ≥ 0.3."):
        assert expected in page, expected
    (note,) = run.evaluated[0].evaluations["real"]["notes"]
    assert note in page


def test_a_note_on_some_of_several_models_names_them():
    both, some, own = "no lesion-free images", "no predictions", "mixed was trained on 1 of these 3 patients"
    evaluations = {"real": {"notes": [both]}, "mixed": {"notes": [both, some, own]}, "late": {"notes": [some, both]}}
    assert notes_of(evaluations) == [both, f"mixed, late: {some}", own]
    assert notes_of({"real": {"notes": [some]}}) == [some] and notes_of({"real": {}}) == []


def test_verdict_in_words(run):
    (evaluated,) = run.evaluated
    words = verdict(evaluated.evaluations, evaluated.comparisons)
    assert words == (
        "Mean sensitivity: real 0.600 (0.500 – 0.700), mixed 0.700 (0.600 – 0.800), synthetic 0.500 (0.400 – 0.600). "
        "Compared with real, mixed: no clear difference; synthetic: worse by 0.100."
    )
    better = {"mixed": {"mean_sensitivity": {"difference": 0.1, "low": 0.01, "high": 0.2, "p_value": 0.01}}}
    assert "mixed: better by 0.100" in verdict(evaluated.evaluations, better)


def test_undefined_metrics_and_missing_comparisons(run):
    nothing = {"value": None, "low": None, "high": None}
    evaluation = {
        **run.evaluated[0].evaluations["real"],
        "mean_sensitivity": nothing,
        "sensitivity_at": {"1": nothing},
        "curve": {
            "false_positives_per_image": [],
            "sensitivity": [],
            "band_at": None,
            "low": None,
            "high": None,
        },
    }
    evaluated = Evaluated("", {"a": evaluation, "b": evaluation}, {"b": {}})
    page = build_report(run_report(RunRecord("x"), [detection_part(DetectionRun([evaluated]))]))
    assert "None" not in page and "nan" not in page


@pytest.mark.parametrize(
    "names", [("own_thresholds", "in_model"), ("chosen", "chosen")], ids=["now", "earlier version"]
)
def test_thresholds_are_shown_with_what_they_promise_and_what_comes(run, names):
    of_evaluation, of_point = names
    one = {"value": 1.4, "low": 0.9, "high": 2.1}
    found = {"value": 0.7, "low": 0.6, "high": 0.8}
    own = dataclasses.asdict(OperatingPoint(1.0, 0.31, 0.25, 0.4, 0.55, 1.85, 0.77, 0.66, 0.88))
    point = {of_point: own, "promised": 1.0, "threshold": 0.31, "false_positives_per_image": one, "sensitivity": found}
    chosen = {"on": "4 folds: 269 lesions", "warning": "About <99> patients would do.", "points": [point]}
    assert promises_section(run.evaluated[0].evaluations) == []
    (section,) = promises_section(
        {"real": {**run.evaluated[0].evaluations["real"], of_evaluation: chosen}, "other": {}}
    )
    for words in (
        "0.55 – 1.85",
        "<b>0.310</b>",
        "0.660 – 0.880",
        "<b>1.40</b>",
        "4 folds: 269 lesions",
        "real: About &lt;99&gt;",
    ):
        assert words in section.html, words
    assert "other" not in section.html


def test_a_model_without_a_threshold_is_warned_of_in_the_report():
    chosen = {"on": "validation: 9 lesions", "warning": "There are no <thresholds>.", "points": []}
    (section,) = promises_section({"real": {"own_thresholds": chosen}})
    assert "real: There are no &lt;thresholds&gt;" in section.html and "table" not in section.html


def test_every_evaluation_is_shown_under_its_own_name(run):
    (first,) = run.evaluated
    second = Evaluated("val split of clinic", {"mixed": first.evaluations["mixed"]})
    report = run_report(RunRecord("x"), [detection_part(replace(run, evaluated=[first, second]))])
    titles = [section.title for section in report.sections]
    assert titles[:4] == [
        f"{title}: phantom, test split" for title in ("Results", "FROC", "Operating points", "Images: mixed")
    ]
    assert titles[4:7] == [f"{title}: val split of clinic" for title in ("Results", "FROC", "Operating points")]
    assert "val split of clinic: Mean sensitivity: mixed 0.700" in report.summary
    assert report.facts["Evaluated on"] == "phantom, test split, val split of clinic"
    assert build_report(report)


def printed(table, width=160) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_models_side_by_side_with_intervals(run):
    (evaluated,) = run.evaluated
    text = printed(results_table(evaluated.evaluations, evaluated.comparisons, "cem_mixed"))
    lines = [line for line in text.splitlines() if "Mean sensitivity" in line]
    assert len(lines) == 1
    assert "0.600  0.50 – 0.70" in lines[0] and "0.700  0.60 – 0.80" in lines[0]
    assert "+0.100  −0.020 to +0.200" in lines[0]
    for expected in (
        "cem_mixed",
        "mixed - real",
        "synthetic - real",
        "Sensitivity at 0.5 FP per image",
        "AP at IoU 0.1",
    ):
        assert expected in text


def test_clear_differences_are_coloured(run):
    (evaluated,) = run.evaluated
    console = Console(width=200, record=True, file=open("/dev/null", "w"), force_terminal=True)  # noqa: SIM115
    console.print(results_table(evaluated.evaluations, evaluated.comparisons))
    markup = console.export_html()
    assert "#800000" in markup  # red: synthetic is clearly worse
    assert "#008000" not in markup  # mixed is not clearly better


def test_without_comparisons_or_models(run):
    assert "–" in printed(results_table({"real": run.evaluated[0].evaluations["real"]}))
    printed(results_table({}))


def test_many_models_are_the_rows_of_the_terminal_table(run):
    real = run.evaluated[0].evaluations["real"]
    comparison = next(iter(run.evaluated[0].comparisons.values()))
    names = [f"detector_number_{number}" for number in range(6)]
    text = printed(results_table(dict.fromkeys(names, real), dict.fromkeys(names[1:], comparison)))
    assert all(name in text for name in names) and f"- {names[0]}" in text


def of_two_classes(models: int):
    """Evaluations by class: of four patients, everything has a box, that of the second model one class higher."""
    box, far = [0, 0, 100, 100], [300, 0, 380, 80]
    names = ("<a>", "All classes", "none")
    run = lambda shift: [
        make_result(str(i), [box], [box, far], [0.9, 0.3], gt_labels=[i % 2], labels=[i % 2 + shift, 0])
        for i in range(4)
    ]
    runs = {f"model{number}": run(min(number, 1)) for number in range(models)}
    how = {"resamples": 40, "classes": names}
    comparisons = {name: compare_detections(runs["model0"], run, **how) for name, run in runs.items()}
    del comparisons["model0"]
    return {name: evaluate_detections(run, **how) for name, run in runs.items()}, comparisons


def table_rows(page: str) -> list[tuple[str, list[str]]]:
    """(header, cells without their intervals) of all rows in their order."""
    found = re.findall(r"<tr[^>]*><th[^>]*>(.*?)</th>(.*?)</tr>", page.partition("<tbody>")[2])
    text = lambda cell: re.sub("<[^>]*>", "", cell.partition("<br>")[0])
    return [(text(head), [text(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", cells)]) for head, cells in found]


def test_each_class_has_a_column_for_every_model_and_difference():
    evaluations, comparisons = of_two_classes(2)
    (section,) = classes_section(evaluations, comparisons)
    first, _, second = section.html.partition("<h3>")
    assert re.findall(r'<th scope="col".*?>(.*?)</th>', first) == [
        "Metric",
        "All classes",
        "&lt;a&gt;",
        "All classes",
        "none",
    ]
    lesions, *rows = table_rows(first)
    assert lesions == ("Lesions", ["4", "2", "2", "no lesion of this class"])
    metrics = ["Mean sensitivity", *(f"Sensitivity at {rate} FP per image" for rate in ("0.5", 1, 2, 3))]
    metrics += ["AP, IoU 0.50 to 0.95", "AP at IoU 0.5", "AP at IoU 0.3"]
    for name, value in (("model0", "1.000"), ("model1", "0.000"), ("model1 − model0", "−1.000")):
        group, own, rows = rows[0], rows[1:9], rows[9:]
        assert group == (name, []) and own == [(metric, [value] * 3 + ["–"]) for metric in metrics]
    assert rows == []
    assert "Found as &lt;a&gt;" in second and "model1" not in second  # which finds nothing at that rate
    assert [cells for _, cells in table_rows(second)][1:] == [["2", "0", "0", "0"], ["0", "2", "0", "0"], ["0"] * 4]


def test_where_false_positives_of_a_class_are_counted_is_said():
    evaluations, _ = of_two_classes(1)
    (section,) = classes_section(evaluations, {})
    assert "a lesion of it" in section.note
    (section,) = classes_section({"model0": evaluations["model0"] | {"froc_images": "all"}}, {})
    assert "a lesion of it" not in section.note and "false positives on all images" in section.note


def test_only_several_classes_have_a_section(run):
    titles = lambda run: [section.title for section in detection_part(run).sections]
    assert titles(DetectionRun([Evaluated("test", *of_two_classes(2))])).count("By class") == 1
    assert "By class" not in titles(run)


@pytest.mark.parametrize("models", [1, 2, 4])
def test_classes_follow_in_the_terminal(models):
    evaluations, comparisons = of_two_classes(models)
    lines = printed(results_table(evaluations, comparisons)).splitlines()
    at = [next(i for i, line in enumerate(lines) if text in line) for text in ("<a> alone, 2", "All classes alone, 2")]
    assert [line for line in lines if "none: no lesion of this class" in line]
    own = lines[at[0] + 1 : at[1]]
    (line,) = [line for line in own if ("Mean sensitivity" if models < 4 else "model1") in line]
    expected = {1: ["1.000"], 2: ["1.000", "0.000", "−1.000"], 4: ["0.000", "−1.000", "0.000", "0.000", "0.000"]}
    assert re.findall(r"−?\d\.\d{3}", re.sub(r"\S+ (–|to) \S+", "", line)) == expected[models]
    assert not any("AUFROC" in line for line in own)


def test_several_criteria_and_mistakes_are_shown_of_each_model():
    box, inside, far = [0, 0, 100, 100], [0, 0, 40, 50], [300, 0, 380, 80]
    runs = {
        "one": [make_result(str(i), [box], [box if i else inside, far], [0.9, 0.3]) for i in range(4)],
        "two": [make_result(str(i), [box], [box, far], [0.9, 0.3]) for i in range(4)],
    }
    evaluations = {name: evaluate_detections(r, resamples=9, several=SEVERAL) for name, r in runs.items()}
    comparisons = {"two": compare_detections(runs["one"], runs["two"], resamples=9, several=SEVERAL)}
    report = run_report(RunRecord("x"), [detection_part(DetectionRun([Evaluated("test", evaluations, comparisons)]))])
    titles = [section.title for section in report.sections]
    assert titles[:5] == ["Results", "FROC", "By several criteria", "Mistakes", "Operating points"]
    criteria, wrong = (report.sections[titles.index(title)].html for title in ("By several criteria", "Mistakes"))
    for expected in ("IoU ≥ 0.1", "centre in box", "regions, IoU ≥ 0.3", "+0.250", "<h3>one</h3>", "0.750"):
        assert expected in criteria, expected
    assert criteria.count("<svg") == 2 and "overlap" in report.sections[titles.index("By several criteria")].note
    rows = dict(re.findall(r'<tr[^>]*><th scope="row">(.*?)</th>(.*?)</tr>', wrong))
    numbers = {said: [int(n) for n in re.findall(r">(\d+)<", cells)] for said, cells in rows.items()}
    assert numbers["on a missed lesion, no larger than it"] == [1, 0]
    assert numbers["False positives"] == [1, 0] and numbers["Missed lesions"] == [1, 0]
    assert numbers["a box lies on it"] == [1, 0]
    assert re.findall(r">(\d of \d)<", rows["16% to 30% of the longer side of the image"]) == ["3 of 4", "4 of 4"]
    assert build_report(report)
