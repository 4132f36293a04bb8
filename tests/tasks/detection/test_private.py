"""A detector is fine-tuned privately, from public weights to its model folder, its report and its predictions."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from configs import cem_real_dp
from elk_jax import files
from elk_jax.experiments.experiment import run_experiment
from elk_jax.privacy.accounting import epsilon_of
from elk_jax.tasks.detection import evaluate, predict
from elk_jax.tasks.detection import model as detectors
from elk_jax.training.checkpoint import kept_secret
from elk_jax.training.writer import read_metrics
from elk_jax.weights import model_folder
from tests.refusals import refused

STAGES = ["public", "private", "open", "evaluate"]


def config_with(**settings):
    config = cem_real_dp.get_config("tiny")
    config.private.privacy.update({"epsilon": None, "noise_multiplier": 1.0, "accountant": "rdp", **settings})
    config.stages.evaluate.models = ("public", "private", "open")
    return config


@pytest.fixture(scope="module")
def private_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("private")
    run_experiment(config_with(), folder, stages=STAGES)
    return folder


def finished(folder, stage):
    return files.read_object(folder / stage / "finished.json")["summary"]


def test_a_private_detector_says_what_it_promises_and_nothing_of_its_patients(private_run):
    trained = detectors.load(private_run / "private" / "model").description.trained
    promise = trained.privacy
    assert promise.private and promise.ledger.unit == "patient" and promise.ledger.phases[0].steps == 4
    assert promise.epsilon == pytest.approx(epsilon_of(promise.ledger.phases, promise.delta, "rdp"))
    public = detectors.load(private_run / "public" / "model").description.trained
    assert trained.patients == public.patients != () and trained.init_from == "public"
    units = round(2 / promise.ledger.phases[0].sampling_rate)
    summary = finished(private_run, "private")
    assert summary["data"]["train"] == {"units": units}
    assert summary["draws_per_epoch"] == {} and "loss" not in str(read_metrics(private_run / "private/metrics.jsonl"))


def test_what_another_training_on_the_same_patients_would_tell_is_withheld(private_run):
    """The stage `open` is not private, but its counts in the report would be those of the protected patients."""
    summary = finished(private_run, "open")
    assert set(summary["data"]) == {"validation"} and summary["draws_per_epoch"] == {}
    assert "train" in finished(private_run, "public")["data"]


def test_only_the_layers_of_the_recipe_are_trained(private_run):
    before, after = (
        model_folder.flatten(model_folder.load_params(private_run / name / "model")[0]) for name in ("public", "private")
    )
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    last = ("rpn/objectness", "rpn/deltas", "box_head/class_logits", "box_head/box_deltas")
    assert changed == {f"{layer}/{kind}" for layer in last for kind in ("kernel", "bias")} | {
        name for name in changed if name.startswith(last)
    }


def test_no_file_outside_the_checkpoints_has_the_secret(private_run):
    text, _ = kept_secret(private_run / "private" / "checkpoints")
    for path in private_run.rglob("*"):
        if path.is_file() and "checkpoints" not in path.parts:
            assert text.encode() not in path.read_bytes(), path


def test_a_private_training_is_resumed_to_the_bit(private_run, tmp_path):
    copy = shutil.copytree(private_run, tmp_path / "run")
    for name in ("checkpoints/4", "model"):
        shutil.rmtree(copy / "private" / name)
    (copy / "private" / "finished.json").unlink()
    run_experiment(config_with(), copy, stages=["private"])
    whole, again = (
        model_folder.flatten(model_folder.load_params(f / "private" / "model")[0]) for f in (private_run, copy)
    )
    for name, leaf in whole.items():
        np.testing.assert_array_equal(again[name], leaf, err_msg=name)


def test_the_report_has_the_promise_and_the_share_of_the_gain(private_run):
    page = (private_run / "report.html").read_text()
    assert detectors.load(private_run / "private" / "model").description.trained.privacy.sentence() in page
    gains = finished(private_run, "evaluate")["gains"]
    assert set(gains) == {"private"} and gains["private"]["reference"] == "open"
    assert "private keeps" in page or "open gains nothing" in page


def test_evaluations_and_predictions_name_the_promise(private_run, tmp_path, capsys):
    pass


@pytest.mark.parametrize("with_data, weight", [(True, 0.0), (False, 0.5)])
def test_public_data_and_their_weight_belong_together(tmp_path, with_data, weight):
    config = config_with(public_weight=weight)
    config.stages.private.public = ("mammo",) if with_data else ()
    with refused("public", "private.privacy.public_weight", where="stages.private.public"):
        run_experiment(config, tmp_path, stages=["public", "private"])


def test_weights_that_have_seen_the_protected_patients_are_refused(private_run, tmp_path):
    config = config_with()
    config.stages.private.init_from = str(private_run / "open" / "model")
    with refused("seen the patient", where="config.stages.private.init_from"):
        run_experiment(config, tmp_path / "run", stages=["private"])
    assert not (tmp_path / "run").exists()
    config.stages.private.init_from = "open"
    with refused("'open'", "real", where="config.stages.private.init_from"):
        run_experiment(config, tmp_path / "run", stages=["public", "open", "private"])


def test_mixing_weights_are_refused(tmp_path):
    config = config_with()
    config.stages.private.weights = (1.0,)
    with refused("probability", where="config.stages.private.weights"):
        run_experiment(config, tmp_path, stages=["public", "private"])
