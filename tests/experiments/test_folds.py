"""Cross-validation of a training recipe, of any task: with the toy task, and with a toy detector."""

from __future__ import annotations

import dataclasses
import shutil
import statistics
from pathlib import Path

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import cem_ensemble, cem_real, cem_real_dp
from elk_jax import files
from elk_jax.data.sources import folds as dealing
from elk_jax.data.sources.patients import patient_hash
from elk_jax.detection import detectors
from elk_jax.evaluation import operating
from elk_jax.evaluation.detections import ImageResult
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from elk_jax.experiments.patients import check_folds
from elk_jax.tasks import TASKS, folds, training
from elk_jax.tasks.detection import predict, train
from elk_jax.tasks.detection.model import load
from elk_jax.tasks.folds import Curve
from elk_jax.tasks.lesion_quality.recipe import LesionQualityStage
from elk_jax.tasks.run import Run
from elk_jax.training import mesh as meshes
from elk_jax.training.writer import read_metrics
from elk_jax.weights import model_folder
from tests.detection import toy_detector
from tests.experiments import toy_task
from tests.experiments.checks import assert_refused, on_files
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


def summary(run: Path, stage: str = "train") -> dict:
    return files.read_object(run / stage / "finished.json")["summary"]


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
    assert "Cross-validation: train" in page and f"{found['step']} steps" in page


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
    assert_refused(config, tmp_path / "run", "4 folds of 3 patients", "3 at most", where="config.detector.folds")
    config.detector.folds = 3
    config.data.real.train_where = "view=MLO"
    experiment = parse(config)
    with refused("train_where", "data.real.where", where="config.detector.folds"):
        check_folds(experiment, experiment.stages["real"], lambda source, split: None)
    apart = on_files(real=coco("real"), synthetic=coco("painted", {"train": ("E",)}))
    apart.detector.folds = 2
    assert_refused(apart, tmp_path / "run", "'real'", "not trained on", where="config.detector.folds")


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
    quality = LesionQualityStage(on="real", synthetic="real", features="real")
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


# ---- A detector ------------------------------------------------------------------------------------------------------


def of_detector():
    """Two folds of a toy detector that looks at mirrored views, fused in two ways; one evaluation, at the end."""
    config = cem_real.get_config("tiny")
    with config.unlocked():
        config.detector.model = ConfigDict(dataclasses.asdict(toy_detector.ToyConfig(width=4)))
    config.detector.test_flips, config.detector.folds, config.detector.eval_every = ("horizontal",), 2, 0
    config.detector.test_same, config.detector.best_metric = (0.5, 0.3), "ap10"
    config.detector.update(steps=80, checkpoint_every=80)
    config.detector.schedule.update(base=0.01, warmup_steps=5)  # what finds nothing is fused alike by any rule
    return config


@pytest.fixture(scope="module")
def detected(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(detectors.DETECTORS, "toy", toy_detector.KIND)
        folder = tmp_path_factory.mktemp("detector") / "run"
        run_experiment(of_detector(), folder)
    return folder


def test_operating_points_are_chosen_on_what_folds_say_of_patients_they_have_not_seen(detected, monkeypatch):
    """The model of each fold, run again on the patients that it does not know, gives the points of model.json."""
    monkeypatch.setitem(detectors.DETECTORS, "toy", toy_detector.KIND)
    experiment = parse(of_detector())
    run, recipe = Run(experiment, detected, meshes.make_mesh()), experiment.recipes["detector"]
    whole = dealing.pooled(run.open("real", "train"), run.open("real", "val"))
    ways = {
        "as they are": ((), 0.5),
        "as they are+horizontal, one lesion from IoU 0.5": (("horizontal",), 0.5),
        "as they are+horizontal, one lesion from IoU 0.3": (("horizontal",), 0.3),
    }
    by_views: dict[str, list[ImageResult]] = {name: [] for name in ways}
    for number in (1, 2):
        fold = load(detected / "real" / f"fold_{number}" / "model")
        unseen = {
            i.patient_id for i in whole.infos if patient_hash(i.patient_id) not in fold.description.trained.patients
        }
        theirs = dealing.of_patients(whole, unseen)
        for name, (flips, same) in ways.items():
            entry = dataclasses.replace(fold.description.input, same=same)
            looking = fold._replace(description=dataclasses.replace(fold.description, input=entry))
            by_views[name] += predict.detect_with(looking, theirs, run.mesh, recipe.score_floor, flips)
    assert sorted(r.image_id for r in by_views["as they are"]) == sorted(i.image_id for i in whole.infos)
    model = load(detected / "real" / "model").description
    found = summary(detected, "real")
    assert list(found["views"]) == list(by_views)
    measured = {name: train.score_of(results, recipe) for name, results in by_views.items()}
    assert found["views"] == {name: pytest.approx(value, abs=1e-6) for name, value in measured.items()}
    best = max(found["views"], key=lambda name: found["views"][name])
    assert len(set(measured.values())) == 3
    assert found["way"] == best and (model.input.flips, model.input.same) == ways[best]
    choice = operating.choose(
        by_views[best], score_floor=recipe.score_floor, resamples=recipe.bootstrap, data="2 folds"
    )
    assert model.chosen_on == dataclasses.replace(choice.on, patients_needed=model.chosen_on.patients_needed)
    assert model.chosen_on.lesions == sum(int((~info.ignore).sum()) for info in whole.infos)
    for own, again in zip(model.operating_points, choice.points):
        assert own.threshold == pytest.approx(again.threshold, abs=1e-4)


def test_the_evaluation_shows_whether_the_thresholds_keep_what_they_promise(detected):
    chosen = files.read_object(detected / "evaluate" / "real" / "evaluation.json")["own_thresholds"]
    assert [point["promised"] for point in chosen["points"]] == list(operating.PROMISED)
    assert chosen["on"].startswith("2 folds: ") and "patients" in chosen["warning"]
    page = (detected / "report.html").read_text()
    assert "Thresholds of the models" in page and "Cross-validation: real" in page
    assert "Views together" in page and "one lesion from IoU 0.3" in page and "on 2 folds" in page


# ---- The folds as an ensemble ----------------------------------------------------------------------------------------


def of_ensemble():
    """As `of_detector`, with evaluations at several steps, whose folds are the model."""
    config = of_detector()
    config.detector.update(refit=False, steps=40, eval_every=10, checkpoint_every=10)
    return config


@pytest.fixture(scope="module")
def joined(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(detectors.DETECTORS, "toy", toy_detector.KIND)
        folder = tmp_path_factory.mktemp("joined") / "run"
        run_experiment(of_ensemble(), folder)
    return folder


def test_every_patient_is_judged_by_the_member_that_has_not_seen_it(joined, monkeypatch):
    """The members of the model folder, run again on the patients that each does not know, give its thresholds."""
    monkeypatch.setitem(detectors.DETECTORS, "toy", toy_detector.KIND)
    experiment = parse(of_ensemble())
    run, recipe = Run(experiment, joined, meshes.make_mesh()), experiment.recipes["detector"]
    whole = dealing.pooled(run.open("real", "train"), run.open("real", "val"))
    ensemble = load(joined / "real" / "model")
    seen = [set(member.description.trained.patients) for member in ensemble.members]
    everyone = {patient_hash(info.patient_id) for info in whole.infos}
    assert set(ensemble.description.trained.patients) == everyone == seen[0] | seen[1] and not seen[0] >= everyone
    results = []
    for member, known in zip(ensemble.members, seen):
        theirs = dealing.of_patients(
            whole, {i.patient_id for i in whole.infos if patient_hash(i.patient_id) not in known}
        )
        results += predict.detect_with(member, theirs, run.mesh, recipe.score_floor)
    assert sorted(r.image_id for r in results) == sorted(i.image_id for i in whole.infos)
    choice = operating.choose(results, score_floor=recipe.score_floor, resamples=recipe.bootstrap)
    assert any(point.threshold > recipe.score_floor for point in choice.points)
    for own, again in zip(ensemble.description.operating_points, choice.points):
        assert own.threshold == pytest.approx(again.threshold, abs=1e-4)
    best = max(summary(joined, "real")["views"].values())
    assert train.score_of(results, recipe) == pytest.approx(best, abs=1e-6)
    assert ensemble.description.same == ensemble.members[0].description.input.same


def test_a_member_that_is_gone_is_named(joined, monkeypatch, tmp_path):
    monkeypatch.setitem(detectors.DETECTORS, "toy", toy_detector.KIND)
    run = shutil.copytree(joined, tmp_path / "run")
    (run / "real" / "finished.json").unlink()
    (member,) = run.glob("real/fold_2/held_out/*/model")
    shutil.rmtree(member)
    with refused("gone", run / "real" / "fold_2", where=member):
        run_experiment(of_ensemble(), run, ["real"])


def test_members_are_as_they_were_at_the_chosen_step(joined):
    found = summary(joined, "real")
    step = found["folds"]["step"]
    assert step < 40, "the weights of the last step would pass for those of the chosen one"
    kept = sorted(joined.glob("real/fold_*/held_out/*/model"))
    assert [path.parent.name for path in kept] == [str(step)] * 2
    ensemble, description = model_folder.load_params(joined / "real" / "model")
    assert [one["trained"]["step"] for one in description.entries["members"]] == [step] * 2
    for number, path in enumerate(kept):
        alone = model_folder.flatten(model_folder.load_params(path)[0])
        member = model_folder.flatten(ensemble["members"][str(number)])
        assert alone.keys() == member.keys() and all(np.array_equal(alone[name], member[name]) for name in alone)
    page = (joined / "report.html").read_text()
    assert "members of the model" in page and "2 folds, by the member that had not seen them" in page


# ---- Detectors with folds, together ----------------------------------------------------------------------------------


def of_several():
    """Two detectors as in `of_detector`, which look at views of their own choice, and their ensemble."""
    config = cem_ensemble.get_config("tiny")
    with config.unlocked():
        config.detector = ConfigDict(of_detector().detector.to_dict())
        config.other = ConfigDict(config.detector.to_dict())
        config.other.update(steps=60, test_flips=(), test_same=(0.5,))
    config.stages.real_1.recipe = "other"
    config.stages.ensemble.weights = (2.0, 1.0)
    return config


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(detectors.DETECTORS, "toy", toy_detector.KIND)
        folder = tmp_path_factory.mktemp("several") / "run"
        run_experiment(of_several(), folder)
    return folder


def test_an_ensemble_is_chosen_by_what_all_members_find_of_patients_that_none_has_seen(several, monkeypatch):
    """The folds of each member, run again on the patients that they do not know, and fused."""
    monkeypatch.setitem(detectors.DETECTORS, "toy", toy_detector.KIND)
    experiment = parse(of_several())
    run, recipe = Run(experiment, several, meshes.make_mesh()), experiment.recipes["detector"]
    whole = dealing.pooled(run.open("real", "train"), run.open("real", "val"))
    by_member: list[list[ImageResult]] = []
    for name in ("real", "real_1"):
        looks, results = load(several / name / "model").description.input, []
        for number in (1, 2):
            fold = load(several / name / f"fold_{number}" / "model")
            known = fold.description.trained.patients
            theirs = dealing.of_patients(
                whole, {i.patient_id for i in whole.infos if patient_hash(i.patient_id) not in known}
            )
            entry = dataclasses.replace(fold.description.input, flips=looks.flips, same=looks.same)
            looking = fold._replace(description=dataclasses.replace(fold.description, input=entry))
            results += predict.detect_with(looking, theirs, run.mesh, recipe.score_floor)
        assert sorted(r.image_id for r in results) == sorted(i.image_id for i in whole.infos)
        by_member.append(sorted(results, key=lambda result: result.image_id))
    fused = lambda same: predict.fuse_members([[one] for one in by_member], (2.0, 1.0), same, recipe.score_floor)
    found, ensemble = summary(several, "ensemble"), load(several / "ensemble" / "model").description
    measured = {same: train.score_of(fused(same), recipe) for same in (0.4, 0.3, 0.5)}
    assert [value for _, value in found["tried"]] == pytest.approx(list(measured.values()), abs=1e-6)
    assert ensemble.same == max(measured, key=measured.__getitem__) and max(measured.values()) > 0
    choice = operating.choose(fused(ensemble.same), score_floor=recipe.score_floor, resamples=0, data="2 folds")
    assert any(point.threshold > recipe.score_floor for point in choice.points)
    for own, again in zip(ensemble.operating_points, choice.points):
        assert own.threshold == pytest.approx(again.threshold, abs=1e-4)
    assert ensemble.chosen_on == dataclasses.replace(choice.on, patients_needed=ensemble.chosen_on.patients_needed)
    assert found["chosen_on"] == "2 folds" and "ensemble, chosen on 2 folds" in (several / "report.html").read_text()


def test_what_folds_predict_is_read_at_the_step_that_their_stage_chose(tmp_path, monkeypatch):
    monkeypatch.setitem(detectors.DETECTORS, "toy", toy_detector.KIND)
    run = Run(parse(of_several()), tmp_path, mesh=None)
    files.write_json(files.make_folder(tmp_path / "real") / folds.CHOSEN, {"step": 40})
    places = [tmp_path / "real" / f"fold_{number}" / "held_out" / "40" for number in (1, 2)]
    assert folds.held_out(run, "real") == places


def test_an_ensemble_of_detectors_with_folds_is_not_judged_on_their_validation_split(several, toy, monkeypatch):
    monkeypatch.setitem(detectors.DETECTORS, "toy", toy_detector.KIND)
    config = of_several()
    config.stages.evaluate.update(split="val", models=("ensemble",))
    assert_refused(config, several, "'val'", "ensemble", where="stage evaluate")


@pytest.mark.parametrize(
    "change, where, words",
    [
        ({"other.folds": 3}, "members", ("real_1 has 3 folds", "real has 2")),
        ({"other.folds": 0}, "members", ("real has 2 folds", "real_1 has none")),
        ({"other.refit": False}, "members[1]", ("real_1 is an ensemble", "refit=True")),
        ({"stages.ensemble.scales": (1.0, 1.25)}, "scales", ("folds", "(1.0, 1.25)")),
    ],
)
def test_members_of_different_folds_and_scales_without_predictions_are_refused(
    change, where, words, toy, monkeypatch, tmp_path
):
    monkeypatch.setitem(detectors.DETECTORS, "toy", toy_detector.KIND)
    config = of_several()
    config.update_from_flattened_dict(change)
    assert_refused(config, tmp_path / "run", *words, where=f"config.stages.ensemble.{where}")
