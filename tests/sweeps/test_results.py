"""From the evaluations of runs to the table, the files and the page."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from ml_collections import ConfigDict

from elk_jax import files
from elk_jax.experiments import resume
from elk_jax.reporting.report import build_report
from elk_jax.sweeps import page
from elk_jax.sweeps.plan import plan
from elk_jax.sweeps.results import check_references, collect, values
from elk_jax.sweeps.settings import Row
from elk_jax.tasks import TASKS
from tests.experiments import toy_task
from tests.refusals import refused

ROWS = (
    Row("plain", {"toy.steps": 10}, {"train/score": 0.66}, note="per image"),
    Row("<better>", {"toy.steps": 20}),
    Row("theirs", published={"train/score": 0.7}, not_run="needs a GPU"),
)
SCORES = {  # row -> seed -> value of each patient
    "plain": {42: (0.0, 0.2, 0.4), 43: (0.1, 0.3, 0.5)},
    "<better>": {42: (0.1, 0.3, 0.5), 43: (0.2, 0.4, 0.6)},
}


class Score:
    """The mean score over patients, read from a file."""

    def __init__(self, scores):
        self.patients, self.scores = [f"p{number}" for number in range(len(scores))], np.array(scores)

    def __call__(self, weights):
        return {"train/score": weights @ self.scores / weights.sum(axis=1)}


def statistics(folder, stage, recipe):
    return {"": Score(files.read_json(folder / "scores.json"))}


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    kind = replace(toy_task.TASK.stages["evaluate"], statistics=statistics)
    task = replace(toy_task.TASK, stages={**toy_task.TASK.stages, "evaluate": kind})
    monkeypatch.setitem(TASKS, "toy", task)
    return plan(toy_task.get_config(), ROWS, 2, tmp_path)


def write(sweep, leave_out=()):
    for run in sweep.runs:
        if (run.row.name, run.seed) in leave_out:
            continue
        folder, scores = files.make_folder(run.folder / "evaluate"), SCORES[run.row.name][run.seed]
        found = {"score": {"value": float(np.mean(scores)), "low": 0.0, "high": 1.0}, "loss": {"value": 2.5}}
        files.write_json(folder / "evaluation.json", {"train": found, "counts": 3})
        files.write_json(folder / "scores.json", scores)
        files.write_json(folder / "finished.json", {"summary": {}, "seconds": 1.0})
        own = run.experiment.stages["evaluate"]
        depends = resume.settings(run.experiment, own) | resume.inputs(run.experiment, run.folder, own)
        files.write_json(folder / "config.json", depends)


BASELINES = {"<better>": "plain"}


def test_metrics_are_estimates_or_else_fractions():
    assert values({"b": {"value": 0.5, "low": 0.1}, "a": {"1": {"value": None}}, "floor": 0.1, "count": 3}) == {
        "b": 0.5,
        "a/1": None,
    }
    assert values({"m": {"auc": 0.5, "low": 0.1, "high": 0.9, "n": 3, "ok": True}, "all": [0.1]}) == {"m/auc": 0.5}
    assert values([0.5]) == {} and values({}) == {}


def test_means_and_differences_over_seeds_and_patients(sweep):
    write(sweep)
    found = collect(sweep, BASELINES, 300)
    plain, better, theirs = found.metrics["evaluate", ""]["train/score"]
    assert plain.by_seed == pytest.approx((0.2, 0.3)) and plain.mean["value"] == pytest.approx(0.25)
    assert plain.mean["deviation"] == pytest.approx(0.1 / np.sqrt(2)) and plain.mean["over"] == "patients and seeds"
    assert plain.difference is None and plain.mean["low"] < 0.25 < plain.mean["high"]
    difference = better.difference
    assert (difference["value"], difference["low"], difference["high"]) == pytest.approx((0.1, 0.1, 0.1), abs=1e-6)
    assert theirs.mean is None and theirs.published("train/score") == 0.7
    loss = found.metrics["evaluate", ""]["train/loss"][1]
    assert loss.mean["over"] == "seeds" and loss.difference["value"] == 0
    assert any("3 patients and 2 seeds" in note for note in found.notes)


def test_reading_and_resampling_are_shown(sweep):
    write(sweep)
    seen = {}

    def bar(title, unit):
        def show(results, total):
            seen[title, unit] = (len(done := list(results)), total)
            yield from done

        return show

    assert collect(sweep, BASELINES, 20, bar=bar).metrics == collect(sweep, BASELINES, 20).metrics
    assert list(seen) == [("reading", "run"), ("resampling", "setting")]
    assert all(done == total > 1 for done, total in seen.values()), seen


def test_runs_of_other_annotations_are_named(sweep):
    """Boxes that were corrected between two calls of a sweep: its finished runs are judged by the earlier ones."""
    write(sweep)
    ends = [run.folder / "evaluate" / "finished.json" for run in sweep.runs]
    for known in (("a", "a", "a", ""), ("a", "a", "a", "b")):
        for end, one in zip(ends, known, strict=True):
            files.write_json(end, {"summary": {}, "seconds": 1.0, **({"annotations": one} if one else {})})
        noted = [note for note in collect(sweep, BASELINES, 0).notes if "annotations" in note]
        assert len(noted) == ("b" in known) and all(note.startswith("evaluate: ") for note in noted)


def test_runs_that_learned_from_other_annotations_are_named(sweep):
    """They count as finished, and later runs learn from the corrected ones. Seeds may draw different patients."""
    write(sweep)
    for known in (("a", "b", "a", "b"), ("a", "b", "c", "b"), ("a", "b", "", "b")):
        for run, one in zip(sorted(sweep.runs, key=lambda run: run.row.name), known, strict=True):
            folder = files.make_folder(run.folder / "train")
            files.write_json(folder / "finished.json", {"summary": {}, "seconds": 1.0, "annotations": one})
        noted = [note for note in collect(sweep, BASELINES, 0).notes if "annotations" in note]
        assert len(noted) == ("c" in known) and all(note.startswith("train: ") for note in noted)


def test_results_that_have_changed_since_they_were_written_are_refused(sweep):
    write(sweep)
    folder = sweep.runs[0].folder / "evaluate"
    end = files.read_json(folder / "finished.json")
    files.write_json(folder / "finished.json", end | {"results": resume.results(folder)})
    collect(sweep, BASELINES, 0)
    files.write_json(folder / "evaluation.json", {"train": {"score": {"value": 0.99}}})
    with refused("changed", where=folder / "evaluation.json"):
        collect(sweep, BASELINES, 0)


def test_runs_that_are_missing_are_left_out(sweep):
    write(sweep, leave_out=[("plain", 43)])
    plain, better, _ = collect(sweep, BASELINES, 300).metrics["evaluate", ""]["train/score"]
    assert plain.by_seed[1] is None and plain.mean["seeds"] == 1 and plain.mean["over"] == "patients"
    assert better.mean["seeds"] == 2 and better.difference["seeds"] == 1
    assert better.difference["value"] == pytest.approx(0.1)


def test_evaluations_of_an_earlier_call_stay_in_the_table(sweep):
    write(sweep)
    again = plan(toy_task.get_config(), ROWS, 2, sweep.folder, stages=["train"])
    assert collect(again, BASELINES, 100).metrics == collect(sweep, BASELINES, 100).metrics != {}
    other = toy_task.get_config()
    other.stages.evaluate.threshold = 0.9
    changed = plan(other, ROWS, 2, sweep.folder, stages=["train"])
    assert collect(changed, BASELINES, 100).metrics == {}, "they are of other settings"


def test_no_run_at_all(sweep):
    found = collect(sweep, BASELINES, 300)
    assert found.metrics == {} and page.records(found) == [] and page.chosen_metrics(found, ["auroc"]) == {}
    assert "<h1>" in build_report(page.report("toys", found, {}, [], {"seed": 42}, 0.0))


def test_the_files_and_the_page_say_the_same(sweep):
    write(sweep)
    found = collect(sweep, BASELINES, 100)
    rows = list(csv.DictReader(io.StringIO(page.csv_text(found))))
    score = [row for row in rows if row["metric"] == "train/score"]
    assert [row["setting"] for row in score] == ["plain", "<better>", "theirs"]
    assert float(score[1]["difference"]) == pytest.approx(0.1) and score[1]["baseline"] == "plain"
    assert float(score[0]["published"]) == 0.66 and score[2]["mean"] == "" and "not run" in score[2]["note"]
    assert float(score[1]["seed_43"]) == pytest.approx(0.4)
    shown = page.chosen_metrics(found, [])
    assert shown == {("evaluate", ""): ["train/score"]}
    states = [page.RunState("plain, seed 42", 3.0, "", "r.html", "r.log"), page.RunState("x", None, "no <b>", "r", "l")]
    html = build_report(page.report("toys", found, shown, states, {"seed": 42}, 3.0))
    for text in ("+0.100", "0.660", "0.700", "not run: needs a GPU", "per image", "&lt;better&gt;", "no &lt;b&gt;"):
        assert text in html, text
    assert "<better>" not in html and 'href="r.html"' in html and "1 of 2 runs" in html
    assert page.terminal_table(found, shown, "").row_count == 4
    assert page.row_notes(sweep.rows) == ["plain: per image", "theirs: not run: needs a GPU"]


def test_rows_without_a_metric_are_not_in_its_table(sweep):
    """A row that is not run stands where it has a published value, and among the runs."""
    write(sweep)
    found = collect(sweep, BASELINES, 100)
    shown = page.chosen_metrics(found, ["train/score"])
    body = page._metric_table("train/other", found.metrics["evaluate", ""]["train/score"])
    assert "theirs" not in body and "&lt;better&gt;" in body
    html = build_report(page.report("toys", found, shown, [], {"seed": 42}, 3.0))
    runs = next(part for part in html.split("<h2>") if part.startswith("Runs"))
    assert "theirs" in runs and "needs a GPU" in runs and "plain" not in runs


def test_equal_notes_are_one_line():
    rows = [Row("a", note="x"), Row("b", not_run="y"), Row("c", note="x"), Row("d"), Row("e", not_run="y")]
    assert page.row_notes(rows) == ["a, c: x", "b, e: not run: y"]


def drawn(sweep, metric="train/score", **at):
    """The charts of a metric, by an SVG parser, where these rows have a place on an axis."""
    rows = {row.name: replace(row, **at.get(row.name, {})) for row in sweep.rows}
    found = collect(sweep, BASELINES, 100)
    placed = {
        place: {
            name: tuple(replace(entry, row=rows[entry.row.name]) for entry in entries)
            for name, entries in by_metric.items()
        }
        for place, by_metric in found.metrics.items()
    }
    found = replace(found, metrics=placed)
    shown = page.chosen_metrics(found, [metric])
    html = build_report(page.report("toys", found, shown, [], {"seed": 42}, 3.0))
    body = next(part for part in html.split("<h2>") if part.startswith(f"evaluate: {metric}"))
    charts = re.findall(r'<svg viewBox="0 0 820 460".*?</svg>', body, re.S)
    return [ElementTree.fromstring(chart) for chart in charts], body, found


def circles(chart, line=0):
    """{x: y} of the dots of a line, in the units of the chart."""
    groups = [group for group in chart.iter("g") if group.find("circle") is not None]
    return {float(dot.get("cx")): float(dot.get("cy")) for dot in groups[line].iter("circle")}


def test_settings_with_a_number_are_drawn_over_it(sweep):
    """Two rows are a line with a band of intervals; y grows upwards, and the chart holds the band."""
    write(sweep)
    axis = {"axis": "shift, <px>"}
    (chart,), body, found = drawn(sweep, plain={"at": 16, **axis}, **{"<better>": {"at": 0, **axis}})
    (left, high), (right, low) = sorted(circles(chart).items())
    assert left < right and high < low  # 0.35 at 0, on the left, above 0.25 at 16
    texts = [element.text for element in chart.iter("text")]
    assert "shift, <px>" in texts and "train/score" in texts and "16" in texts
    (band,) = (path.get("d") for path in chart.iter("path") if path.get("class") == "band")
    ends = [float(number) for number in re.findall(r"[-0-9.]+ ([-0-9.]+)", band)]
    assert len(ends) == 4 and min(ends) >= 14 and max(ends) <= 460 - 46
    assert max(ends) > low and min(ends) < high
    record = next(one for one in page.records(found) if one["metric"] == "train/score")
    assert (record["at"], record["axis"], record["line"]) == (16, "shift, <px>", "")
    assert body.index("<svg") < body.index("<table") and "<px>" not in body.replace("&lt;px&gt;", "")


def test_lines_are_named_and_single_places_are_no_chart(sweep):
    write(sweep)
    axis, better = {"axis": "shift"}, "<better>"
    (chart,), body, _ = drawn(sweep, plain={"at": 1, "line": "a", **axis}, **{better: {"at": 2, "line": "<b>", **axis}})
    assert len(circles(chart, 0)) == len(circles(chart, 1)) == 1 and "&lt;b&gt;" in body
    assert drawn(sweep, plain={"at": 1, **axis})[0] == []
    assert drawn(sweep, plain={"at": 1, **axis}, **{better: {"at": 2, "axis": "other"}})[0] == []
    assert drawn(sweep, plain={"at": 1, **axis}, theirs={"at": 2, **axis})[0] == []  # the latter was not run


def test_a_metric_without_intervals_is_drawn_too(sweep):
    write(sweep, leave_out=[("plain", 43), ("<better>", 43)])
    axis = {"axis": "shift"}
    (chart,), _, __ = drawn(sweep, "train/loss", plain={"at": 1, **axis}, **{"<better>": {"at": 2, **axis}})
    (first, second) = circles(chart).values()
    assert first == second and not [path for path in chart.iter("path") if path.get("class") == "band"]


def test_metrics_are_chosen_by_name(sweep):
    write(sweep)
    found = collect(sweep, BASELINES, 0)
    assert page.chosen_metrics(found, ["train/loss"]) == {("evaluate", ""): ["train/loss"]}
    assert found.metrics["evaluate", ""]["train/score"][0].mean["low"] is None
    with refused("train/score", "train/loss", where="auroc"):
        page.chosen_metrics(found, ["auroc"])


# ---- Models within each run ------------------------------------------------------------------------------------------

MODELS = ("first", "second", "third")
OF_MODELS = {  # row -> seed -> model -> value of each of four patients
    "plain": {
        42: {"first": (0.1, 0.1, 0.3, 0.3), "second": (0.2, 0.2, 0.4, 0.4), "third": (0.4, 0.2, 0.6, 0.4)},
        43: {"first": (0.5, 0.1, 0.5, 0.1), "second": (0.7, 0.3, 0.7, 0.3), "third": (0.6, 0.0, 0.4, 0.2)},
    },
    "<better>": {
        42: {"first": (0.1, 0.1, 0.3, 0.3), "second": (0.4, 0.4, 0.6, 0.6), "third": (0.1, 0.1, 0.3, 0.3)},
        43: {"first": (0.5, 0.1, 0.5, 0.1), "second": (0.9, 0.5, 0.9, 0.5), "third": (0.5, 0.1, 0.5, 0.1)},
    },
}


def statistics_of_models(folder, stage, recipe):
    return {name: Score(files.read_json(folder / name / "scores.json")) for name in stage.subjects}


@pytest.fixture
def compared(tmp_path, monkeypatch):
    """A sweep whose evaluation has three models, with what its runs left."""
    kind = replace(toy_task.TASK.stages["evaluate"], statistics=statistics_of_models)
    task = replace(toy_task.TASK, stages={**toy_task.TASK.stages, "evaluate": kind})
    monkeypatch.setitem(TASKS, "toy", task)
    config = toy_task.get_config()
    with config.unlocked():
        stages = {**dict.fromkeys(MODELS, config.stages.train), "evaluate": config.stages.evaluate}
        stages["evaluate"].models = MODELS
        config.stages = ConfigDict({name: stage.to_dict() for name, stage in stages.items()}, sort_keys=False)
    found = plan(config, ROWS, 2, tmp_path)
    for run in found.runs:
        stage = files.make_folder(run.folder / "evaluate")
        files.write_json(stage / "finished.json", {"summary": {}, "seconds": 1.0})
        for name, scores in OF_MODELS[run.row.name][run.seed].items():
            folder = files.make_folder(stage / name)
            files.write_json(folder / "evaluation.json", {"train": {"score": {"value": float(np.mean(scores))}}})
            files.write_json(folder / "scores.json", scores)
    return found


def test_models_of_an_evaluation_are_compared_within_each_run(compared):
    """second - first is 0.1 and 0.2 in the two seeds, for every patient: only seeds make an interval."""
    gains = collect(compared, BASELINES, 4000).gains
    assert list(gains) == [("evaluate", "second - first"), ("evaluate", "third - first")]
    plain, better = gains["evaluate", "second - first"]["train/score"]
    assert plain.by_seed == pytest.approx((0.1, 0.2)) and plain.mean["value"] == pytest.approx(0.15)
    assert (plain.mean["low"], plain.mean["high"]) == pytest.approx((0.1, 0.2), abs=1e-6)
    assert plain.mean["over"] == "patients and seeds" and plain.mean["deviation"] == pytest.approx(0.1 / np.sqrt(2))
    assert plain.mean["p_value"] < 0.001
    assert better.by_seed == pytest.approx((0.3, 0.4))
    change = better.difference
    assert (change["value"], change["low"], change["high"]) == pytest.approx((0.2, 0.2, 0.2), abs=1e-6)


def test_gains_are_paired_over_patients(compared):
    """third - first of seed 42: 0.3, 0.1, 0.3, 0.1 by patient; of 43: 0.1, -0.1, -0.1, 0.1. Exact 95 % ends of all
    256 x 4 equally likely draws of four patients and two seeds."""
    gain = collect(compared, BASELINES, 60_000).gains["evaluate", "third - first"]["train/score"][0].mean
    by_patient = np.array([[0.3, 0.1, 0.3, 0.1], [0.1, -0.1, -0.1, 0.1]])
    of_draws = by_patient[:, np.indices((4,) * 4).reshape(4, -1)].mean(axis=1)
    means = [(of_draws[a] + of_draws[b]) / 2 for a in range(2) for b in range(2)]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    assert gain["value"] == pytest.approx(0.1)
    assert (gain["low"], gain["high"]) == pytest.approx((low, high), abs=0.011)


def test_models_are_compared_with_those_that_are_named(compared):
    named = lambda *names: [models for _, models in collect(compared, {}, 0, names).gains]
    assert named("third", "first") == ["first - third", "second - third", "second - first"]
    assert named("second") == ["first - second", "third - second"]
    check_references(compared, MODELS, "--models_against")
    with refused("fourth", "first, second, third", where="--models_against=fourth"):
        check_references(compared, ["first", "fourth"], "--models_against=fourth")


def test_an_evaluation_of_one_model_compares_nothing(sweep):
    write(sweep)
    assert collect(sweep, BASELINES, 100).gains == {}
    with refused("train", where="--models_against=train"):
        check_references(sweep, ["train"], "--models_against=train")


def test_a_seed_without_an_evaluation_has_no_gain(compared):
    (compared.runs[1].folder / "evaluate" / "finished.json").unlink()
    plain = collect(compared, BASELINES, 100).gains["evaluate", "second - first"]["train/score"][0]
    assert plain.by_seed == (pytest.approx(0.1), None) and plain.mean["seeds"] == 1 and plain.mean["over"] == "patients"


def test_gains_stand_in_the_files_in_the_terminal_and_on_the_page(compared):
    found = collect(compared, BASELINES, 200)
    rows = list(csv.DictReader(io.StringIO(page.csv_text(found))))
    gains = [row for row in rows if row["model"] == "second - first"]
    assert [row["setting"] for row in gains] == ["plain", "<better>"] and gains[0]["published"] == ""
    assert float(gains[0]["mean"]) == pytest.approx(0.15) and float(gains[0]["seed_43"]) == pytest.approx(0.2)
    assert float(gains[0]["mean_p_value"]) < 0.05 and float(gains[1]["difference"]) == pytest.approx(0.2)
    assert all(row["mean_p_value"] == "" for row in rows if " - " not in row["model"])
    shown = page.chosen_metrics(found, [])
    html = build_report(page.report("toys", found, shown, [], {"seed": 42}, 0.0))
    body = next(part for part in html.split("<h2>") if part.startswith("evaluate: between models: train/score"))
    for text in ("second - first", "third - first", "+0.150", "+0.350", "+0.200", "&lt;better&gt;", "from plain"):
        assert text in body, text
    table = page.terminal_table(found, shown, "")
    assert table.row_count == 3 * 4 + 2 * 3  # three models of a title and three rows; two gains of two rows


def test_a_page_of_one_setting_has_no_column_of_changes(compared):
    pages = []
    for baselines in (BASELINES, {}):
        found = collect(compared, baselines, 0)
        html = build_report(page.report("toys", found, page.chosen_metrics(found, []), [], {}, 0.0))
        pages.append([part for part in html.split("<h2>") if part.split("</h2>")[0].endswith("train/score")])
    assert len(pages[0]) == len(pages[1]) == 4  # three models, and what is between them
    for (*compared_models, gains), there in zip(pages, (True, False), strict=True):
        assert all(("Difference" in part) == there for part in compared_models)
        assert ("Change" in gains) == ("change" in gains) == there and "Difference" in gains


def test_gains_are_drawn_over_an_axis(compared):
    axis = {"axis": "shift, px"}
    rows = (replace(ROWS[0], at=0, **axis), replace(ROWS[1], at=16, **axis), ROWS[2])
    found = collect(replace(compared, rows=rows), BASELINES, 100)
    html = build_report(page.report("toys", found, page.chosen_metrics(found, []), [], {"seed": 42}, 0.0))
    body = next(part for part in html.split("<h2>") if part.startswith("evaluate: between models: train/score"))
    charts = [ElementTree.fromstring(chart) for chart in re.findall(r'<svg viewBox="0 0 820 460".*?</svg>', body, re.S)]
    (left, low), (right, high) = sorted(circles(charts[0]).items())
    assert len(charts) == 2 and left < right and high < low  # second - first grows from 0.15 to 0.35
    assert "train/score, second - first" in [element.text for element in charts[0].iter("text")]
