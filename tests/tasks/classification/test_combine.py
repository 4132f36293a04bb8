"""Kernel heads and the mean of classifiers: from the patches to model folders, evaluations and predictions."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from configs import frozen_heads
from elk_jax import files
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.patients import patient_hash
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.evaluation.predictions import read_predictions
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from elk_jax.tasks import frozen
from elk_jax.tasks.classification import evaluate, fit, model, predict
from elk_jax.tasks.classification.evaluate import EvaluateSettings
from elk_jax.tasks.classification.predict import PredictSettings
from elk_jax.weights import model_folder
from tests.refusals import refused
from tests.tasks.classification.conftest import COUNTS, SIZE, cheap, experiment


def kernels(folder):
    """The configuration of two kernel heads on the pictures, and their mean."""
    config = frozen_heads.get_config("tiny")
    config.data.patches.spec, config.data.patches.patient_pattern = f"folders:{folder / 'patches'}", r"p(\d+)_"
    for name in ("gaussian", "linear"):
        config[name].size, config[name].features.scattering.scales = SIZE, 2
    return config


@pytest.fixture(scope="module")
def combined(folders, tmp_path_factory):
    """(run folder, summaries) of both heads and their mean."""
    run, patch = tmp_path_factory.mktemp("combined"), pytest.MonkeyPatch()
    patch.setattr(frozen, "_compute", cheap)
    try:
        return run, run_experiment(kernels(folders), run)
    finally:
        patch.undo()


@pytest.fixture
def source(folders):
    return SourceSpec(f"folders:{folders / 'patches'}", patient_pattern=r"p(\d+)_")


# ---- Kernel heads ----------------------------------------------------------------------------------------------------


def test_draws_that_a_killed_attempt_with_a_linear_head_left_are_not_read(combined, tmp_path):
    trained = model.load(combined[0] / "gaussian" / "model")
    (tmp_path / fit.DRAWS).write_bytes(b"of another head")
    assert fit.with_draws(trained, tmp_path) is trained


def test_kernel_heads_learn_and_are_chosen_by_validation_and_cross_validation(combined):
    _, summaries = combined
    for name, tried in (("gaussian", 20), ("linear", 5)):
        summary = summaries[name]
        assert summary["auroc"][0] > 0.9 and summary["cross_validated"] > 0.9 and summary["tried"] == tried
    assert "Gaussian kernel" in summaries["gaussian"]["chosen"] and "linear kernel" in summaries["linear"]["chosen"]


def test_a_folder_says_that_it_has_features_of_training_images(combined):
    run, summaries = combined[0], ("gaussian", "linear", "mean")
    gaussian, linear = (model.load(run / name / "model") for name in ("gaussian", "linear"))
    assert len(gaussian.head.anchors) == 2 * COUNTS["train"] and len(linear.head.anchors) == 1
    assert "training images" in gaussian.description.contains and linear.description.contains == ""
    modes = {name: (run / name / "model" / "params.safetensors").stat().st_mode & 0o777 for name in summaries}
    assert modes["gaussian"] == modes["mean"] == 0o600 != modes["linear"]
    page = (run / "report.html").read_text()
    for name in summaries:  # heads and their mean warn alike of few patients
        assert "few patients" in combined[1][name]["warning"] and f"Warning: {name}: " in page
        assert all(
            point.on and point.low is not None
            for point in model.load(run / name / "model").description.operating_points
        )
    assert gaussian.description.contains in page and "Kernel ridge regression" in page
    known = frozenset(patient_hash(str(701 + number)) for number in range(COUNTS["train"]))
    assert model_folder.seen_patients(run / "gaussian" / "model") == known


def test_images_that_name_no_patient_count_as_one_each(folders, tmp_path, cheap_features):
    config = kernels(folders)
    config.data.patches.patient_pattern = ""
    for name in ("linear", "mean", "evaluate"):
        del config.stages[name]
    del config["linear"]
    summary = run_experiment(config, tmp_path)["gaussian"]
    assert summary["unnamed"] and summary["cross_validated"] > 0.9


# ---- The mean --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", ["log_odds", "probabilities"])
def test_the_mean_is_that_of_its_members(combined, source, tmp_path, cheap_features, mean):
    run, _ = combined
    images = open_source(source, "test")
    own = shutil.copytree(run / "mean" / "model", tmp_path / "model")  # needs no other folder
    trained = model.load(own)
    trained = trained._replace(description=replace(trained.description, mean=mean))
    members = np.stack([model.load(run / name / "model").probabilities(images)[0] for name in ("gaussian", "linear")])
    odds = np.log(members / (1 - members)).mean(0)
    expected = 1 / (1 + np.exp(-odds)) if mean == "log_odds" else members.mean(0)
    np.testing.assert_allclose(trained.probabilities(images), expected[None], rtol=1e-6)
    assert model_folder.seen_patients(own) == model_folder.seen_patients(run / "gaussian" / "model")


def test_a_mean_is_evaluated_and_predicts_as_in_its_stage(combined, folders, source, tmp_path, cheap_features):
    run, summaries = combined
    staged = files.read_object(run / "evaluate" / "mean" / "evaluation.json")
    assert summaries["mean"]["auroc"][0] > 0.9 and len(staged["operating_points"]) == 3
    settings = EvaluateSettings(against=str(run / "gaussian" / "model"), bootstrap=0)
    found = evaluate.evaluate_source(
        model=run / "mean" / "model", data=source, split="test", on_error="stop", output=tmp_path, settings=settings
    )
    assert found["auroc"]["value"] == pytest.approx(staged["auroc"]["value"])
    predicted = read_predictions(run / "evaluate" / "mean" / "predictions.json")
    rows = predict.predict_files(
        model=run / "mean" / "model", inputs=[str(folders / "patches" / name) for name in predicted.image_ids[:3]],
        decoding=SourceSpec(), on_error="stop", output=tmp_path, settings=PredictSettings(),
    )  # fmt: skip
    np.testing.assert_allclose([row["probability"] for row in rows], predicted.scores("malignant")[:3], atol=2e-6)
    page = (run / "report.html").read_text()
    assert "<h2>Means of classifiers</h2>" in page and "log odds of gaussian, linear" in page


def test_beside_a_private_head_cross_validation_is_withheld_and_a_mean_keeps_its_promise(
    folders, tmp_path, cheap_features
):
    config, own = experiment(folders), kernels(folders)
    del config.stages["without_privacy"], config.stages["evaluate"]
    config.gaussian, config.stages.gaussian, config.stages.mean = own.gaussian, own.stages.gaussian, own.stages.mean
    config.stages.mean.members = ("gaussian", "epsilon_6")
    summaries = run_experiment(config, tmp_path)
    assert summaries["gaussian"]["withheld"] and summaries["gaussian"]["cross_validated"] is None
    trained = model.load(tmp_path / "mean" / "model").description.trained
    assert [round(promise.epsilon) for promise in trained.inherited] == [6] and trained.privacy is None
    assert len(trained.patients) == COUNTS["train"]  # of the member that is not private
    promise, protection = summaries["mean"]["promise"], summaries["mean"]["protection"]
    assert promise.startswith("Only the private training runs") and protection == "without privacy"
    assert "epsilon 6" in promise and promise in (tmp_path / "report.html").read_text()


def test_a_model_of_the_run_folder_is_evaluated_without_its_stage(combined, folders, tmp_path, cheap_features):
    run = shutil.copytree(combined[0], tmp_path / "run")
    config = kernels(folders)
    del config.stages["linear"], config.stages["mean"], config["linear"]
    config.stages.evaluate.models = ("linear", "gaussian")
    run_experiment(config, run)
    found = files.read_object(run / "evaluate" / "linear" / "evaluation.json")
    assert found == files.read_object(combined[0] / "evaluate" / "linear" / "evaluation.json")


def test_members_of_other_classes_are_refused(combined, tmp_path):
    run, _ = combined
    params, content = model_folder.load_params(run / "mean" / "model")
    members = [dict(one) for one in content.entries["members"]]
    members[1]["positive"] = "benign"
    model_folder.save_params(tmp_path, params, {**content.entries, "members": members})
    with refused("positive", "malignant", "benign", where=tmp_path):
        model.load(tmp_path)
    model_folder.save_params(tmp_path, {"members": {"0": params["members"]["0"]}}, content.entries)
    with refused("2 members", where=tmp_path):
        model.load(tmp_path)


# ---- Refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, where, words",
    [
        (lambda c: c.stages.gaussian.update(epsilon=6.0), "config.stages.gaussian.epsilon", ["kernel", "linear head"]),
        (lambda c: c.stages.gaussian.update(public=("patches",)), "config.stages.gaussian.public", ["public"]),
        (lambda c: c.gaussian.search.update(folds=1), "config.gaussian.search.folds", ["at least 2"]),
        (lambda c: c.gaussian.search.update(widths=(-1.0,)), "config.gaussian.search.widths", ["at least 0"]),
        (lambda c: c.gaussian.search.update(name="forest"), "config.gaussian.search.name", ["linear, kernel"]),
        (lambda c: c.stages.mean.update(members=("gaussian", "tree")), "tree", ["no model"]),
        (lambda c: c.stages.mean.update(members=("evaluate",)), "config.stages.mean.members[0]", ["before 'mean'"]),
        (lambda c: c.stages.mean.update(members=()), "config.stages.mean.members", ["at least one"]),
        (lambda c: c.stages.mean.update(mean="ranks"), "config.stages.mean.mean", ["log_odds"]),
        (lambda c: c.stages.mean.update(rules=("best",)), "config.stages.mean.rules", ["best"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(folders, tmp_path, change, where, words):
    config = kernels(folders)
    change(config)
    with refused(*words, where=where):
        run_experiment(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_linear_head_needs_public_images(folders, tmp_path):
    config = experiment(folders, public=())
    with refused("whiten", where="config.stages.epsilon_6.public"):
        run_experiment(config, tmp_path / "run")


def test_a_member_that_is_not_a_classifier_is_refused(folders, tmp_path):
    model_folder.save_params(tmp_path / "other", {"a": np.zeros(1)}, {"architecture": "translator"})
    config = kernels(folders)
    config.stages.mean.members = ("gaussian", str(tmp_path / "other"))
    with refused("not a classifier", where="config.stages.mean.members[1]"):
        run_experiment(config, tmp_path / "run")


@pytest.mark.parametrize("variant", [None, "tiny", "small"])
def test_every_variant_is_well_formed(variant):
    experiment = parse(frozen_heads.get_config(variant))
    heads = [name for name, stage in experiment.stages.items() if stage.kind == "fit"]
    assert len(heads) == 2 and experiment.stages["mean"].members == tuple(heads)
