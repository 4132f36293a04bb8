"""Cross-validation of a training recipe, of any task, with the toy task."""

from __future__ import annotations

import dataclasses
import shutil
import statistics
from pathlib import Path

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import cem_ensemble, cem_real, cem_real_dp, swin_real
from elk_jax import files
from elk_jax.data.sources.patients import patient_hash
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from elk_jax.experiments.patients import check_folds
from elk_jax.tasks import TASKS, folds, training
from elk_jax.tasks.folds import Curve
from elk_jax.tasks.lesion_quality.recipe import LesionQualityStage
from elk_jax.tasks.run import Run
from elk_jax.training import mesh as meshes
from elk_jax.training.writer import read_metrics
from elk_jax.weights import model_folder
from tests.experiments import toy_task
from tests.experiments.checks import assert_refused, on_files, summary
from tests.models import EARLIER, save_earlier
from tests.refusals import refused


def small(count: int = 3):
    config = toy_task.get_config()
    config.toy.folds, config.toy.steps, config.toy.eval_every, config.toy.checkpoint_every = count, 12, 4, 2
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("folds") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "toy", toy_task.TASK)
        run_experiment(small(), folder)
    return folder


# ---- The number of steps ---------------------------------------------------------------------------------------------


def test_the_step_is_the_best_of_the_mean_curve_and_of_equals_the_last():
    curves = [
        Curve("ap50", "max", {10: 0.5, 20: 0.5, 30: 0.3, 40: 0.9}),
        Curve("ap50", "max", {10: 0.1, 20: 0.3, 30: 0.5, 40: None}),
    ]
    chosen = folds.choose(curves)
    assert (chosen.step, chosen.mean, chosen.own_best) == (30, pytest.approx(0.4), pytest.approx(0.7))
    assert chosen.mean_curve == {10: pytest.approx(0.3), 20: pytest.approx(0.4), 30: pytest.approx(0.4)}
    assert chosen.deviation == pytest.approx(statistics.stdev([0.3, 0.5]))
    least = folds.choose([Curve("loss", "min", {1: 0.5, 2: 0.2}), Curve("loss", "min", {1: 0.1, 2: 0.3})])
    assert (least.step, least.own_best) == (2, pytest.approx(0.15))
    with refused("ap50", "2 folds", where="config.x.folds"):
        folds.choose([Curve("ap50", "max", {1: None}), Curve("ap50", "max", {1: 0.3})], "config.x.folds")


# ---- Any task --------------------------------------------------------------------------------------------------------


def test_every_patient_is_held_out_once_and_the_last_training_has_all(whole, toy):
    run = Run(parse(small()), whole, meshes.make_mesh())
    pool = {info.patient_id for split in ("train", "val") for info in run.list("real", split).infos}
    test = {info.patient_id for info in run.list("real", "test").infos}
    seen = [model_folder.seen_patients(whole / "train" / f"fold_{k}" / "model") for k in (1, 2, 3)]
    hashes = {patient_hash(patient) for patient in pool}
    for patient in hashes:
        assert sum(patient not in one for one in seen) == 1
    assert model_folder.seen_patients(whole / "train" / "model") == hashes
    assert not hashes & {patient_hash(patient) for patient in test}
    counts = [files.read_object(whole / "train" / f"fold_{k}" / "finished.json")["summary"]["data"] for k in (1, 2, 3)]
    images = summary(whole)["data"]["train"]["images"]
    assert [one["train"]["images"] + one["validation"]["images"] for one in counts] == [images] * 3


def test_the_last_training_ends_at_the_chosen_step_without_validation(whole):
    found = summary(whole)["folds"]
    curves = [
        [
            line["eval/accuracy"]
            for line in read_metrics(whole / "train" / f"fold_{k}" / "metrics.jsonl")
            if "eval/accuracy" in line
        ]
        for k in (1, 2, 3)
    ]
    mean = np.mean(curves, axis=0)
    assert found["step"] == 4 * (1 + max(np.flatnonzero(mean == mean.max()))) == summary(whole)["best_step"]
    assert found["mean"] == pytest.approx(mean.max())
    lines = read_metrics(whole / "train" / "metrics.jsonl")
    assert lines[-1]["step"] == found["step"] and not any(key.startswith("eval/") for line in lines for key in line)
    assert model_folder.read(whole / "train" / "model").training.step == found["step"]
    page = (whole / "report.html").read_text()
    assert "Cross-validation: train" in page and f"number of steps, {found['step']}." in page


def test_killed_folds_are_resumed_and_finished_ones_kept(whole, toy, tmp_path, monkeypatch):
    """Stopped in the second fold, and again in the last training: the same weights as without a stop."""
    run = tmp_path / "run"
    measure, calls = toy_task.measure, []

    def stopping(at: int):
        def stopped(*arguments):
            calls.append(0)
            if len(calls) == at:
                raise KeyboardInterrupt("killed")
            return measure(*arguments)

        return stopped

    monkeypatch.setattr(toy_task, "measure", stopping(5))  # of three evaluations in each fold
    with pytest.raises(KeyboardInterrupt):
        run_experiment(small(), run)
    assert (run / "train" / "fold_1" / "finished.json").is_file()
    assert not (run / "train" / "fold_2" / "finished.json").exists()
    assert not (run / "train" / "fold_1" / "checkpoints").exists()
    left = run / "train" / "fold_1" / "checkpoints" / "12"
    left.mkdir(parents=True)  # as a kill leaves it while the checkpoints are removed
    kept = (run / "train" / "fold_1" / "model" / "params.safetensors").stat().st_mtime_ns
    other = small()
    other.toy.steps = 16
    with refused("recipe.steps was 12 and is 16", where=run):
        run_experiment(other, run)
    monkeypatch.setattr(toy_task, "measure", measure)
    keep = training.kept_weights

    def stopped_at_the_end(run, *arguments):
        if run.fold.is_last:
            raise KeyboardInterrupt("killed")
        return keep(run, *arguments)

    monkeypatch.setattr(training, "kept_weights", stopped_at_the_end)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(small(), run)
    assert (run / "train" / "fold_3" / "finished.json").is_file() and not (run / "train" / "finished.json").exists()
    assert not left.parent.exists()
    monkeypatch.setattr(training, "kept_weights", keep)
    run_experiment(small(), run)
    assert (run / "train" / "fold_1" / "model" / "params.safetensors").stat().st_mtime_ns == kept
    same = lambda name: np.array_equal(
        *(model_folder.load_params(one / "train" / name)[0]["weights"] for one in (run, whole))
    )
    assert same("fold_2/model") and same("fold_3/model") and same("model")
    assert summary(run)["folds"] == summary(whole)["folds"]


def test_folds_are_not_kept_where_an_image_has_changed(toy, coco, tmp_path):
    """One grey value of one image, under the same name, patient and boxes; finished folds, then one that was killed."""
    patients = {"train": ("A", "B", "C"), "val": ("D", "E"), "test": ("F",)}
    config, run = small(2), tmp_path / "run"
    config.data.real.spec = coco("real", patients)
    config.toy.steps, config.toy.eval_every = 2, 1
    run_experiment(config, run)
    (run / "train" / "finished.json").unlink()
    path = str(tmp_path / "images" / "1.png")
    before = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
    after = before.copy()
    after[5, 7] += 1
    cv2.imwrite(path, after)
    with refused("images have changed", where=run / "train"):
        run_experiment(config, run)
    for number in (1, 2):
        (run / "train" / f"fold_{number}" / "finished.json").unlink()
        (run / "train" / f"fold_{number}" / "checkpoints" / "1").mkdir(parents=True)
    with refused("images have changed", where=run / "train"):
        run_experiment(config, run)
    shutil.rmtree(run / "train")
    run_experiment(config, run)


# ---- Refusals --------------------------------------------------------------------------------------------------------


def test_folds_that_cannot_be_are_refused(ran, coco, tmp_path):
    config = on_files(cem_real, real=coco("real"))
    for value, word in ((1, "no patient"), (-1, "folds"), (51, "folds")):
        config.detector.folds = value
        assert_refused(config, tmp_path / "run", word, where="config.detector.folds")
    config.detector.folds = 4
    assert_refused(config, tmp_path / "run", "4 folds of 3 patients", "at most 3", where="config.detector.folds")
    config.detector.folds = 3
    config.data.real.train_where = "view=MLO"
    experiment = parse(config)
    with refused("train_where", "data.real.where", where="config.detector.folds"):
        check_folds(experiment, experiment.stages["real"], lambda source, split: None)
    apart = on_files(real=coco("real"), synthetic=coco("painted", {"train": ("E",)}))
    apart.detector.folds = 2
    assert_refused(apart, tmp_path / "run", "'real'", "not trained on", where="config.detector.folds")


def test_folds_that_could_not_be_judged_or_trained_are_refused_before_anything_is_trained(ran, coco, tmp_path):
    few = {"train": ("A", "B"), "val": ("C", "D"), "test": ("E",)}
    config = on_files(cem_real, real=coco("real", few, lesions=("train", "test")))
    config.detector.folds = 3
    assert_refused(config, tmp_path / "run", "is evaluated", "a lesion", where="config.detector.folds")
    config.detector.folds = 2
    run = Run(parse(config), tmp_path / "run", mesh=None)
    stage, recipe = run.experiment.stages["real"], run.experiment.recipes["detector"]
    assert sorted(map(len, folds.deal(run, stage, recipe, TASKS["detection"].stages["train"].lacks))) == [2, 2]
    one = {"train": ("A",), "val": ("C",), "test": ("E",)}
    config.data.real.spec = coco("one", one, lesions=("train", "test"))
    assert_refused(config, tmp_path / "run", "fold", "of 2", "a lesion", where="config.detector.folds")
    assert not ran


def test_folds_of_a_classifier_have_both_classes(tmp_path):
    """Three patients with benign patches, and two with malignant ones."""
    people = {"train": {"benign": (1, 2), "malignant": (4,)}, "val": {"benign": (3,), "malignant": (5,)}}
    for split, classes in people.items():
        for name, numbers in classes.items():
            place = files.make_folder(tmp_path / "patches" / split / name)
            for number in numbers:
                cv2.imwrite(str(place / f"P_{number}_1.png"), np.full((16, 16), 10 * number, np.uint8))
    config = swin_real.get_config("tiny")
    config.data.patches.update(spec=f"folders:{tmp_path / 'patches'}", patient_pattern=r"P_(\d+)")
    recipe = config.stages.network.recipe
    lacks = TASKS["classification"].stages["train"].lacks
    for count, missing in ((2, ""), (3, "malignant")):
        config[recipe].folds = count
        experiment = parse(config)
        run, stage = Run(experiment, tmp_path / "run", mesh=None), experiment.stages["network"]
        if not missing:
            assert sorted(map(len, folds.deal(run, stage, experiment.recipe_of(stage), lacks))) == [2, 3]
            continue
        with refused("is evaluated", "malignant", where=f"config.{recipe}.folds"):
            folds.deal(run, stage, experiment.recipe_of(stage), lacks)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"patients": 2}, ("patients=2", "data.real.patients")),
        ({"train_share": 0.5}, ("train_share=0.5", "data.real.train_share")),
        ({"partner": "other", "shuffled_partners": True}, ("partners", "data.real.shuffled_partners")),
    ],
)
def test_folds_of_drawn_patients_and_of_exchanged_partners_are_refused(settings, words):
    config = on_files(cem_real, real="coco:real.json")
    config.detector.folds = 2
    config.data.real.update(settings)
    experiment = parse(config)
    with refused(*words, where="config.detector.folds"):
        check_folds(experiment, experiment.stages["real"], lambda source, split: None)


def test_an_ensemble_that_cannot_be_is_refused(ran, toy, coco, tmp_path):
    config = on_files(cem_real, real=coco("real"))
    config.detector.refit = False
    assert_refused(config, tmp_path / "run", "no folds", where="config.detector.refit")
    config.detector.folds = 2
    config.stages.tuned = ConfigDict({**config.stages.real.to_dict(), "init_from": "real"})
    assert_refused(config, tmp_path / "run", "'real'", "ensemble", where="config.stages.tuned.init_from")
    del config.stages["tuned"]
    quality = LesionQualityStage(on="real", split="test", synthetic="real", features="real")
    config.stages.quality = ConfigDict(dataclasses.asdict(quality))
    assert_refused(config, tmp_path / "run", "'real'", "quality", where="config.stages.quality.features")
    config = small()
    config.toy.refit = False
    assert_refused(config, tmp_path / "run", "toy", "ensemble", where="config.toy.refit")
    config = on_files(cem_ensemble, real=coco("real"))
    config.stages.tuned = ConfigDict({**config.stages.real.to_dict(), "init_from": "ensemble"})
    assert_refused(config, tmp_path / "run", "'ensemble'", "members", where="config.stages.tuned.init_from")
    del config.stages["tuned"]
    config.detector.folds, config.detector.refit = 2, False
    assert_refused(config, tmp_path / "run", "real is an ensemble", where="config.stages.ensemble.members[0]")


def test_patients_that_another_stage_protects_are_not_chosen_on():
    config = cem_real_dp.get_config("tiny")
    config.stages.same_layers.validate_on, config.same_layers.folds = "real", 2
    experiment = parse(config)
    with refused("protects", "'real'", where="config.same_layers.folds"):
        check_folds(experiment, experiment.stages["same_layers"], lambda source, split: None)


def test_a_private_training_has_no_folds(tmp_path):
    config = cem_real.get_config("tiny")
    config.detector.folds = 2
    config.detector.privacy = ConfigDict({"epsilon": 8.0})
    assert_refused(config, tmp_path / "run", "private", "folds", where="config.detector.folds")


def test_weights_and_painters_that_know_the_patients_are_refused(ran, coco, tmp_path):
    painted = coco("painted", {"train": ("E",)})
    config = on_files(cem_real, real=coco("real"))
    config.detector.folds = 2
    model = tmp_path / "theirs"
    save_earlier(model, {}, EARLIER | {"trained": {"patients": [patient_hash("C")]}})
    config.stages.real.init_from = str(model)
    assert_refused(config, tmp_path / "run", "patient C", model, where="config.detector.folds")
    path = Path(painted.removeprefix("coco:"))
    files.write_json(path, files.read_json(path) | {"info": {"seen_patients": [patient_hash("A")]}})
    config = on_files(real=coco("real"), synthetic=painted)
    config.stages.synthetic.train_on = ("real", "synthetic")
    config.detector.folds = 2
    assert_refused(config, tmp_path / "run", "patient A", "painter", where="config.detector.folds")


def test_a_model_of_folds_is_not_judged_on_the_validation_split(ran, coco, tmp_path):
    config = on_files(cem_real, real=coco("real"))
    run_experiment(config, tmp_path / "plain")
    config.stages.evaluate.split = "val"
    run_experiment(config, tmp_path / "plain")
    config.detector.folds = 2
    assert_refused(config, tmp_path / "run", "patient C", "'val'", where="stage evaluate")
