"""The evaluation of classifiers, in an experiment and on any source, and predictions for files."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from elk_jax import files
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.evaluation.predictions import read_predictions
from elk_jax.tasks.classification import evaluate, predict
from elk_jax.tasks.classification.evaluate import EvaluateSettings
from elk_jax.tasks.classification.predict import PredictSettings
from elk_jax.tasks.run import SKIPPED
from elk_jax.weights import model_folder
from tests.refusals import refused
from tests.tasks.classification.conftest import COUNTS


@pytest.fixture
def source(folders) -> SourceSpec:
    return SourceSpec(f"folders:{folders / 'patches'}", patient_pattern=r"p(\d+)_")


def test_the_stage_measures_every_model_and_draw(fitted):
    run, summaries = fitted
    assert summaries["evaluate"]["data"] == {"images": 28, "patients": 14, "benign": 14, "malignant": 14}
    found = files.read_object(run / "evaluate" / "epsilon_6" / "evaluation.json")
    assert found["positive"] == "malignant" and set(found["average_precision"]) == {"malignant", "benign"}
    draws = files.read_object(run / "evaluate" / "draws.json")
    assert [len(draws[name]["auroc"]) for name in ("without_privacy", "epsilon_6")] == [1, 3]
    assert draws["epsilon_6"]["auroc"][0] == pytest.approx(found["auroc"]["value"])  # the first draw is the model
    compared = files.read_object(run / "evaluate" / "comparisons.json")["epsilon_6"]["auroc"]
    assert compared["second"] == pytest.approx(found["auroc"]["value"])


def test_metrics_as_functions_of_patients_are_those_that_were_measured(fitted):
    folder = fitted[0] / "evaluate"
    statistics = evaluate.statistics(folder, SimpleNamespace(models=("without_privacy", "epsilon_6")), None)
    assert list(statistics) == ["without_privacy", "epsilon_6"]
    found, statistic = files.read_object(folder / "epsilon_6" / "evaluation.json"), statistics["epsilon_6"]
    values = statistic(np.ones((1, len(statistic.patients))))
    assert values["auroc"][0] == pytest.approx(found["auroc"]["value"])
    assert values["average_precision/benign"][0] == pytest.approx(found["average_precision"]["benign"]["value"])


def test_predictions_are_a_table_with_a_row_for_every_image(fitted):
    run, _ = fitted
    with open(run / "evaluate" / "epsilon_6" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    predicted = read_predictions(run / "evaluate" / "epsilon_6" / "predictions.json")
    assert [row["image_id"] for row in rows] == list(predicted.image_ids) and len(rows) == 2 * COUNTS["test"]
    scores = [float(row["probability_of_malignant"]) for row in rows]
    np.testing.assert_allclose(scores, predicted.scores("malignant"), atol=1e-6)
    threshold = files.read_object(run / "epsilon_6" / "model" / "model.json")["operating_points"][0]["threshold"]
    assert all((row["called"] == "malignant") == (score >= threshold - 1e-6) for row, score in zip(rows, scores))


def test_the_report_shows_privacy_beside_published_values(fitted):
    run, _ = fitted
    page = (run / "report.html").read_text()
    for title in ("Heads", "Privacy and accuracy", "Results", "ROC", "Operating points", "Calibration"):
        assert f"<h2>{title}</h2>" in page
    for value in ("epsilon 6, per patient", "before", "0.677", "0.778", "3 draws", "30 patients"):
        assert value in page


def test_a_model_is_evaluated_on_any_source_against_another(fitted, source, tmp_path, cheap_features, capsys):
    run, _ = fitted
    settings = EvaluateSettings(against=str(run / "without_privacy"), bootstrap=50)
    folder = run / "epsilon_6" / "model"
    found = evaluate.evaluate_source(
        model=folder, data=source, split="test", on_error="stop", output=tmp_path, settings=settings
    )
    staged = files.read_object(run / "evaluate" / "epsilon_6" / "evaluation.json")
    assert found["auroc"]["value"] == pytest.approx(staged["auroc"]["value"])
    assert set(files.read_object(tmp_path / "comparisons.json")) == {"epsilon_6"}
    assert "AUROC" in (tmp_path / "report.html").read_text() and "epsilon_6" in capsys.readouterr().out


def test_skipped_images_are_listed_beside_the_evaluation(fitted, source, folders, tmp_path, cheap_features):
    run, _ = fitted
    shutil.copytree(folders / "patches", tmp_path / "patches")
    bad = sorted((tmp_path / "patches").rglob("*.png"))[0]
    bad.write_bytes(b"no image")
    evaluate.evaluate_source(
        model=run / "epsilon_6" / "model", data=replace(source, spec=f"folders:{tmp_path / 'patches'}"),
        split="", on_error="skip", output=tmp_path / "out", settings=EvaluateSettings(bootstrap=0),
    )  # fmt: skip
    _, row = (tmp_path / "out" / SKIPPED).read_text().splitlines()
    assert bad.stem in row


def test_a_model_says_whom_it_was_trained_on_unless_it_is_private(fitted, source, tmp_path, cheap_features):
    run, _ = fitted
    notes = lambda name: evaluate.evaluate_source(
        model=run / name / "model", data=source, split="train", on_error="stop", output=tmp_path / name,
        settings=EvaluateSettings(bootstrap=0),
    )["notes"]  # fmt: skip
    assert any("30 of these 30 patients" in note for note in notes("without_privacy"))
    assert [note for note in notes("epsilon_6") if "privately" in note] and "of these" not in str(notes("epsilon_6"))


def test_other_classes_are_refused(fitted, folders, tmp_path, cheap_features):
    run, _ = fitted
    with refused("benign, malignant", where=folders / "public"):
        evaluate.evaluate_source(
            model=run / "epsilon_6" / "model", data=SourceSpec(f"folders:{folders / 'public'}"), split="",
            on_error="stop", output=tmp_path / "out", settings=EvaluateSettings(),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_files_are_classified_as_in_the_evaluation(fitted, folders, tmp_path, cheap_features):
    run, _ = fitted
    predicted = read_predictions(run / "evaluate" / "epsilon_6" / "predictions.json")
    inputs = [str(folders / "patches" / name) for name in predicted.image_ids[:3]]
    common = {"inputs": inputs, "decoding": SourceSpec(), "on_error": "stop", "output": tmp_path}
    rows = predict.predict_files(model=run / "epsilon_6" / "model", settings=PredictSettings(), **common)
    assert [row["file"] for row in rows] == inputs
    np.testing.assert_allclose([row["probability"] for row in rows], predicted.scores("malignant")[:3], atol=2e-6)
    content = json.loads((tmp_path / "predictions.json").read_text())
    assert content["positive"] == "malignant" and content["images"] == rows
    rows = predict.predict_files(model=run / "epsilon_6" / "model", settings=PredictSettings(threshold=0.0), **common)
    assert {row["called"] for row in rows} == {"malignant"}


def test_a_model_without_a_threshold_calls_what_is_more_probable(
    fitted, folders, source, tmp_path, cheap_features, capsys
):
    """As of a member of an ensemble of folds."""
    params, content = model_folder.load_params(fitted[0] / "without_privacy" / "model")
    model_folder.save_params(tmp_path / "member", params, {**content.entries, "operating_points": []})
    common = {"decoding": SourceSpec(), "on_error": "stop", "output": tmp_path / "out"}
    images = [str(folders / "patches" / "test")]
    rows = predict.predict_files(model=tmp_path / "member", inputs=images, settings=PredictSettings(), **common)
    assert {row["called"] for row in rows} == {"benign", "malignant"}
    assert all((row["called"] == "malignant") == (row["probability"] >= 0.5) for row in rows)
    assert "no threshold" in (printed := capsys.readouterr().out) and "--threshold" in printed
    found = evaluate.evaluate_source(
        model=tmp_path / "member",
        data=source,
        split="test",
        on_error="stop",
        output=tmp_path / "evaluated",
        settings=EvaluateSettings(bootstrap=0),
    )
    assert [point["threshold"] for point in found["operating_points"]] == [0.5]
    assert any("no threshold" in note for note in found["notes"])
