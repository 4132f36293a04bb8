"""A detector is fine-tuned privately, from public weights to its model folder, its report and its predictions.

With the toy of the tests in place of a Faster R-CNN, which compiles in a tenth of the time.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import asdict

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import cem_real_dp
from elk_jax import files
from elk_jax.data.sources.patients import patient_hash
from elk_jax.detection import detectors
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from elk_jax.privacy.accounting import epsilon_of
from elk_jax.tasks.detection import model as folders
from elk_jax.tasks.detection.evaluate import references
from elk_jax.training.writer import read_metrics
from elk_jax.weights import model_folder
from elk_jax.weights.model_folder import Training
from tests.detection import toy_detector
from tests.refusals import refused
from tests.tasks.checks import assert_same_weights, assert_secret_stays_in_checkpoints, resumed


@pytest.fixture(scope="module", autouse=True)
def toy():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(detectors.DETECTORS, "toy", toy_detector.KIND)
        yield


def config_with(**settings):
    config = cem_real_dp.get_config("tiny")
    for recipe in (config.detector, config.same_layers, config.private):
        with config.unlocked():
            recipe.model = ConfigDict(asdict(toy_detector.ToyConfig(width=4)))
        recipe.test_flips = ()
        recipe.optimizer.frozen = () if recipe is config.detector else ("^backbone_",)
    config.private.privacy.update({"epsilon": None, "noise_multiplier": 1.0, "accountant": "rdp", **settings})
    return config


@pytest.fixture(scope="module")
def private_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("private")
    run_experiment(config_with(), folder)
    return folder


def finished(folder, stage):
    return files.read_object(folder / stage / "finished.json")["summary"]


def weights(folder, stage):
    return model_folder.flatten(model_folder.load_params(folder / stage / "model")[0])


def test_a_private_detector_says_what_it_promises_and_nothing_of_its_patients(private_run):
    trained = folders.load(private_run / "private" / "model").description.trained
    promise = trained.privacy
    assert promise.private and promise.ledger.unit == "patient" and promise.ledger.phases[0].steps == 4
    assert promise.epsilon == pytest.approx(epsilon_of(promise.ledger.phases, promise.delta, "rdp"))
    public = folders.load(private_run / "public" / "model").description.trained
    assert trained.patients == public.patients != () and trained.init_from == "public"
    summary = finished(private_run, "private")
    assert summary["data"]["train"] == {"units": round(2 / promise.ledger.phases[0].sampling_rate)}
    assert summary["draws_per_epoch"] == {} and summary["skipped"] == []
    keys = {key for line in read_metrics(private_run / "private" / "metrics.jsonl") for key in line}
    assert not {key for key in keys if "loss" in key or key.startswith("time/")} and "eval/mean_sensitivity" in keys


def test_what_other_trainings_on_the_same_patients_would_tell_is_withheld(private_run):
    for stage in ("same_layers", "open"):
        summary = finished(private_run, stage)
        assert set(summary["data"]) == {"validation"} and summary["draws_per_epoch"] == {}
    assert "train" in finished(private_run, "public")["data"]


def test_only_the_layers_of_the_recipe_are_trained(private_run):
    before, after = weights(private_run, "public"), weights(private_run, "private")
    changed = {name.partition("/")[0] for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"context", "classes", "sides"}


def test_no_file_outside_the_checkpoints_has_the_secret(private_run):
    assert_secret_stays_in_checkpoints(private_run, "private")


def test_a_private_training_is_resumed_to_the_bit(private_run, tmp_path):
    copy = resumed(private_run, config_with(), "private", 4, tmp_path / "run")
    assert_same_weights(private_run / "private", copy / "private")


def test_the_report_has_the_promise_and_the_share_of_the_gain(private_run):
    page = (private_run / "report.html").read_text()
    assert folders.load(private_run / "private" / "model").description.trained.privacy.sentence() in page
    gains = finished(private_run, "evaluate")["gains"]
    assert set(gains) == {"private"} and gains["private"]["reference"] in ("same_layers", "open")
    assert "private keeps" in page or "gains nothing" in page


def test_the_reference_is_the_best_training_without_privacy_from_the_same_weights():
    privacy = object()
    trainings = {
        "public": Training(),
        "private": Training(init_from="public", privacy=privacy),
        "few": Training(init_from="public"),
        "all": Training(init_from="public"),
        "other": Training(init_from="weights"),
    }
    values = {"public": 0.1, "private": 0.4, "few": 0.5, "all": 0.3, "other": 0.9}
    evaluations = {name: {"mean_sensitivity": {"value": value}} for name, value in values.items()}
    assert references(trainings, evaluations) == {"private": "few"}
    assert references({name: trainings[name] for name in ("public", "private", "other")}, evaluations) == {}


def test_mixing_weights_are_refused(tmp_path):
    config = config_with()
    config.stages.private.weights = (1.0,)
    with refused("probability", where="config.stages.private.weights"):
        run_experiment(config, tmp_path, stages=["public", "private"])


@pytest.mark.parametrize("with_data, weight", [(True, 0.0), (False, 0.5)])
def test_public_data_and_their_weight_belong_together(tmp_path, with_data, weight):
    config = config_with(public_weight=weight)
    config.stages.private.public = ("mammo",) if with_data else ()
    with refused("public", "private.privacy.public_weight", where="stages.private.public"):
        run_experiment(config, tmp_path, stages=["public", "private"])


def test_public_images_are_learned_from_and_a_known_seed_is_not_private(private_run, tmp_path, capsys):
    config = config_with(known_seed=1, public_weight=0.5)
    config.stages.private.update({"public": ("mammo",), "init_from": str(private_run / "public" / "model")})
    config.private.steps = 1
    run_experiment(config, tmp_path, stages=["private"])
    assert "Not private" in capsys.readouterr().out
    trained = folders.load(tmp_path / "private" / "model").description.trained
    assert not trained.privacy.private and trained.on == ("real", "mammo")
    assert finished(tmp_path, "private")["data"]["public"]["images"] > 0
    lines = read_metrics(tmp_path / "private" / "metrics.jsonl")
    assert [line["train/public_loss"] > 0 for line in lines if "train/grad_norm" in line] == [True]


def test_weights_that_have_seen_the_protected_patients_are_refused(private_run, tmp_path):
    config = config_with()
    config.stages.public.train_on = ("mammo", "real")
    with refused("'public'", "real", where="config.stages.private.init_from"):
        run_experiment(config, tmp_path / "run", stages=["public", "private"])
    seen = shutil.copytree(private_run / "public" / "model", tmp_path / "seen")
    written = files.read_json(seen / "model.json")
    written["trained"]["patients"] = [patient_hash("S1P00003")]
    files.write_json(seen / "model.json", written)
    with refused("S1P00003", where="config.stages.private.init_from"):
        config.stages.private.init_from = str(seen)
        run_experiment(config, tmp_path / "run", stages=["private"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("extra", "kernels"),
    [
        ("", {"rpn/objectness", "rpn/deltas", "box_head/class_logits", "box_head/box_deltas"}),
        (",retinanet", {"class_head/logits", "box_head/deltas"}),
        (",efficientdet", {"class_head/logits", "box_head/deltas"}),
    ],
)
def test_every_detector_is_fine_tuned_in_its_scales_biases_and_output_layers(extra, kernels):
    recipe = parse(cem_real_dp.get_config(f"tiny{extra}")).recipes["private"]
    detector = detectors.build(recipe.model)
    names = model_folder.flatten(jax.eval_shape(detector.init, jax.random.key(0)))
    trained = [name for name in names if not any(re.search(one, name) for one in recipe.optimizer.frozen)]
    outputs = {name for name in trained if not name.endswith(("/scale", "/bias"))}
    assert {"/".join(name.split("/")[:2]) for name in outputs} == kernels
    assert outputs == {name for name in names if name.startswith(tuple(kernels)) and not name.endswith("/bias")}
    assert {name for name in names if name.endswith(("/scale", "/bias"))} <= {*trained}
    assert not recipe.plan_anchors, "anchors follow from no data"


@pytest.mark.parametrize("kind", ["retinanet", "efficientdet"])
def test_many_is_of_the_faster_rcnn(kind):
    with pytest.raises(ValueError, match=f"many.*{kind}.*exclude"):
        cem_real_dp.get_config(f"quick,many,{kind}")
