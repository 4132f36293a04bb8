"""A translator is trained privately, from the phantom to its model folder."""

from __future__ import annotations

import pytest
from ml_collections import ConfigDict

from configs import bridge_le_to_cem
from elk_jax import files
from elk_jax.experiments.experiment import run_experiment
from elk_jax.privacy.accounting import epsilon_of
from elk_jax.tasks.translation import model as translators
from elk_jax.training.writer import read_metrics
from tests.refusals import refused
from tests.tasks.checks import assert_same_weights, assert_secret_stays_in_checkpoints, resumed


def config_with(**settings):
    config = bridge_le_to_cem.get_config("tiny,private")
    config.bridge.privacy.update({"epsilon": None, "noise_multiplier": 1.0, "accountant": "rdp", **settings})
    return config


@pytest.fixture(scope="module")
def private_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("private")
    run_experiment(config_with(), folder)
    return folder


def test_a_private_run_says_what_it_promises_and_nothing_of_its_patients(private_run):
    _, _, description = translators.load(private_run / "translator" / "model")
    promise = description.trained.privacy
    finished = files.read_object(private_run / "translator" / "finished.json")["summary"]
    assert promise.private and promise.ledger.unit == "patient" and promise.ledger.phases[0].steps == 4
    assert promise.epsilon == pytest.approx(epsilon_of(promise.ledger.phases, promise.delta, "rdp"))
    assert description.trained.patients == ()
    units = finished["data"]["train"]["units"]
    assert finished["data"]["train"] == {"units": units}
    assert promise.ledger.phases[0].sampling_rate == pytest.approx(4 / units)
    keys = {key for line in read_metrics(private_run / "translator" / "metrics.jsonl") for key in line}
    assert not {"train/loss", "train/clean_error"} & keys and "eval/loss" in keys


def test_no_file_outside_the_checkpoints_has_the_secret(private_run):
    assert_secret_stays_in_checkpoints(private_run, "translator")


def test_a_private_run_is_resumed_with_its_own_secret(private_run, tmp_path):
    copy = resumed(private_run, config_with(), "translator", 4, tmp_path / "run")
    assert_same_weights(private_run / "translator", copy / "translator")


def test_the_report_has_the_promise_in_a_sentence(private_run):
    _, _, description = translators.load(private_run / "translator" / "model")
    assert description.trained.privacy.sentence() in (private_run / "report.html").read_text()


def with_public(config):
    with config.unlocked():
        config.data.synthetic = config.data.pairs.copy_and_resolve_references()
    config.data.synthetic.spec = "phantom:size=64,count=16,seed=9"
    config.stages.translator.public = ("synthetic",)
    return config


def test_public_pairs_are_learned_from_and_a_known_seed_is_not_private(tmp_path, capsys):
    config = with_public(config_with(known_seed=1, public_weight=0.5))
    config.bridge.steps = 1
    run_experiment(config, tmp_path, stages=["translator"])
    assert "Not private" in capsys.readouterr().out
    trained = translators.load(tmp_path / "translator" / "model").description.trained
    assert not trained.privacy.private and trained.on == ("pairs", "synthetic")
    finished = files.read_object(tmp_path / "translator" / "finished.json")["summary"]
    assert finished["data"]["public"]["tiles"] > 0
    lines = read_metrics(tmp_path / "translator" / "metrics.jsonl")
    assert [line["train/public_loss"] > 0 for line in lines if "train/grad_norm" in line] == [True]


@pytest.mark.parametrize("with_data, weight", [(True, 0.0), (False, 0.5)])
def test_public_data_and_their_weight_belong_together(tmp_path, with_data, weight):
    config = config_with(public_weight=weight)
    with refused("public", "bridge.privacy.public_weight", where="stages.translator.public"):
        run_experiment(with_public(config) if with_data else config, tmp_path, stages=["translator"])


@pytest.mark.parametrize(
    "settings, words, where",
    [({"known_seed": 1}, ["batch"], "batch_size"), ({"epsilon": 1e-9}, ["epsilon"], "noise_multiplier")],
)
def test_a_budget_that_does_not_fit_is_refused_before_training(tmp_path, settings, words, where):
    config = config_with(**settings)
    config.bridge.pairs.batch_size = 4 if "epsilon" in settings else 1000
    with refused(*words, where=where):
        run_experiment(config, tmp_path, stages=["translator"])
    assert not (tmp_path / "translator" / "checkpoints").exists()


def test_weights_that_have_seen_the_protected_patients_are_refused(tmp_path):
    config = config_with()
    first = config.stages.translator.copy_and_resolve_references()
    first.name, first.recipe = "first", "open"
    config.stages.translator.init_from = "first"
    with config.unlocked():
        config.open = config.bridge.copy_and_resolve_references()
        config.open.privacy = None
        config.stages = ConfigDict({"first": first, **config.stages}, sort_keys=False)
    with refused("'first'", "pairs", where="config.stages.translator.init_from"):
        run_experiment(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
