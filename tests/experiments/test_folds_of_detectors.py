"""Cross-validation of detectors: one, the ensemble of its folds, and several together; with a toy detector."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import cem_ensemble, cem_real
from elk_jax import files
from elk_jax.data.sources import folds as dealing
from elk_jax.data.sources.patients import patient_hash
from elk_jax.detection import detectors
from elk_jax.evaluation import operating
from elk_jax.evaluation.detections import ImageResult
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from elk_jax.tasks import folds
from elk_jax.tasks.detection import predict
from elk_jax.tasks.detection.model import load
from elk_jax.tasks.detection.search import score_of
from elk_jax.tasks.run import Run
from elk_jax.training import mesh as meshes
from elk_jax.weights import model_folder
from tests.detection import toy_detector
from tests.experiments.checks import assert_refused, summary
from tests.refusals import refused


@pytest.fixture(scope="module", autouse=True)
def toy_detectors():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(detectors.DETECTORS, "toy", toy_detector.KIND)
        yield


# ---- A detector ------------------------------------------------------------------------------------------------------


def of_detector():
    """Two folds of a toy detector that looks at mirrored views and two sizes, fused in two ways; one evaluation, at the
    end."""
    config = cem_real.get_config("tiny")
    with config.unlocked():
        config.detector.model = ConfigDict(dataclasses.asdict(toy_detector.ToyConfig(width=4)))
    config.detector.test_flips, config.detector.folds, config.detector.eval_every = ("horizontal",), 2, 0
    config.detector.test_same, config.detector.best_metric = (0.5, 0.3), "ap10"
    config.detector.update(steps=80, checkpoint_every=80, test_scales=(1.0, 1.5))
    config.detector.schedule.update(base=0.01, warmup_steps=5)  # what finds nothing is fused alike by any rule
    return config


@pytest.fixture(scope="module")
def detected(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("detector") / "run"
    run_experiment(of_detector(), folder)
    return folder


def test_operating_points_are_chosen_on_what_folds_say_of_patients_they_have_not_seen(detected):
    """The model of each fold, run again on the patients that it does not know, gives the points of model.json."""
    experiment = parse(of_detector())
    run, recipe = Run(experiment, detected, meshes.make_mesh()), experiment.recipes["detector"]
    whole = dealing.pooled(run.open("real", "train"), run.open("real", "val"))
    mirrored, sizes = ("horizontal",), (1.0, 1.5)
    ways = {
        "as they are": ((), 0.5, (1.0,)),
        "as they are+horizontal, one lesion from IoU 0.5": (mirrored, 0.5, (1.0,)),
        "as they are+horizontal, one lesion from IoU 0.3": (mirrored, 0.3, (1.0,)),
        "as they are at 1 and 1.5 times the size, one lesion from IoU 0.5": ((), 0.5, sizes),
        "as they are at 1 and 1.5 times the size, one lesion from IoU 0.3": ((), 0.3, sizes),
        "as they are+horizontal at 1 and 1.5 times the size, one lesion from IoU 0.5": (mirrored, 0.5, sizes),
        "as they are+horizontal at 1 and 1.5 times the size, one lesion from IoU 0.3": (mirrored, 0.3, sizes),
    }
    by_views: dict[str, list[ImageResult]] = {name: [] for name in ways}
    for number in (1, 2):
        fold = load(detected / "real" / f"fold_{number}" / "model")
        unseen = {
            i.patient_id for i in whole.infos if patient_hash(i.patient_id) not in fold.description.trained.patients
        }
        theirs = dealing.of_patients(whole, unseen)
        for name, (flips, same, scales) in ways.items():
            entry = dataclasses.replace(fold.description.input, flips=flips, same=same, scales=scales)
            looking = fold._replace(description=dataclasses.replace(fold.description, input=entry))
            by_views[name] += predict.detect_with(looking, theirs, run.mesh, recipe.score_floor)
    assert sorted(r.image_id for r in by_views["as they are"]) == sorted(i.image_id for i in whole.infos)
    model = load(detected / "real" / "model").description
    found = summary(detected, "real")
    assert list(found["views"]) == list(by_views)
    measured = {name: score_of(results, recipe) for name, results in by_views.items()}
    assert found["views"] == {name: pytest.approx(value, abs=1e-6) for name, value in measured.items()}
    best = max(found["views"], key=lambda name: found["views"][name])
    assert len(set(measured.values())) == len(ways)
    assert found["way"] == best and (model.input.flips, model.input.same, model.input.scales) == ways[best]
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
    assert summary(detected, "real")["warning"]
    fold = files.read_object(detected / "real" / "fold_1" / "finished.json")["summary"]
    assert not fold["warning"], "nobody uses the thresholds of a fold"
    page = (detected / "report.html").read_text()
    assert "Thresholds of the models" in page and "Cross-validation: real" in page
    assert "Fusion of views" in page and "one lesion from IoU 0.3" in page and "on 2 folds" in page


# ---- The folds as an ensemble ----------------------------------------------------------------------------------------


def of_ensemble():
    """As `of_detector`, with evaluations at several steps, whose folds are the model."""
    config = of_detector()
    config.detector.update(refit=False, steps=40, eval_every=10, checkpoint_every=10)
    return config


@pytest.fixture(scope="module")
def joined(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("joined") / "run"
    run_experiment(of_ensemble(), folder)
    return folder


def test_every_patient_is_judged_by_the_member_that_has_not_seen_it(joined):
    """The members of the ensemble folder, run again on the patients that each does not know, give its thresholds."""
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
    assert score_of(results, recipe) == pytest.approx(best, abs=1e-6)
    assert ensemble.description.same == ensemble.members[0].description.input.same


def test_a_member_that_is_gone_is_named(joined, tmp_path):
    run = shutil.copytree(joined, tmp_path / "run")
    (run / "real" / "finished.json").unlink()
    (member,) = run.glob("real/fold_2/held_out/*/model")
    shutil.rmtree(member)
    with refused("missing", run / "real" / "fold_2", where=member):
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
    assert "members of the ensemble" in page and "2 folds, by the member that had not seen them" in page


# ---- Detectors with folds, together ----------------------------------------------------------------------------------


def of_several():
    """Two detectors as in `of_detector`, which look at views of their own choice, and their ensemble."""
    config = cem_ensemble.get_config("tiny")
    with config.unlocked():
        config.detector = ConfigDict(of_detector().detector.to_dict())
        config.other = ConfigDict(config.detector.to_dict())
        config.other.update(steps=60, test_flips=(), test_same=(0.5,), test_scales=(1.0,))
    config.stages.real_1.recipe = "other"
    config.stages.ensemble.weights = (2.0, 1.0)
    return config


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("several") / "run"
    run_experiment(of_several(), folder)
    return folder


def test_an_ensemble_is_chosen_by_what_all_members_find_of_patients_that_none_has_seen(several):
    """The folds of each member, run again on the patients that they do not know, and fused."""
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
            entry = dataclasses.replace(fold.description.input, flips=looks.flips, same=looks.same, scales=looks.scales)
            looking = fold._replace(description=dataclasses.replace(fold.description, input=entry))
            results += predict.detect_with(looking, theirs, run.mesh, recipe.score_floor)
        assert sorted(r.image_id for r in results) == sorted(i.image_id for i in whole.infos)
        by_member.append(sorted(results, key=lambda result: result.image_id))
    fused = lambda same: predict.fuse_members([[one] for one in by_member], (2.0, 1.0), same, recipe.score_floor)
    found, ensemble = summary(several, "ensemble"), load(several / "ensemble" / "model").description
    measured = {same: score_of(fused(same), recipe) for same in (0.4, 0.3, 0.5)}
    assert [value for _, value in found["tried"]] == pytest.approx(list(measured.values()), abs=1e-6)
    assert ensemble.same == max(measured, key=measured.__getitem__) and max(measured.values()) > 0
    choice = operating.choose(fused(ensemble.same), score_floor=recipe.score_floor, resamples=0, data="2 folds")
    assert any(point.threshold > recipe.score_floor for point in choice.points)
    for own, again in zip(ensemble.operating_points, choice.points):
        assert own.threshold == pytest.approx(again.threshold, abs=1e-4)
    assert ensemble.chosen_on == dataclasses.replace(choice.on, patients_needed=ensemble.chosen_on.patients_needed)
    assert found["chosen_on"] == "2 folds" and "ensemble, chosen on 2 folds" in (several / "report.html").read_text()


def test_what_folds_predict_is_read_at_the_step_that_their_stage_chose(tmp_path):
    run = Run(parse(of_several()), tmp_path, mesh=None)
    files.write_json(files.make_folder(tmp_path / "real") / folds.CHOSEN, {"step": 40})
    places = [tmp_path / "real" / f"fold_{number}" / "held_out" / "40" for number in (1, 2)]
    assert folds.held_out(run, "real") == places


def test_an_ensemble_of_detectors_with_folds_is_not_judged_on_their_validation_split(several, toy):
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
def test_members_of_different_folds_and_scales_without_predictions_are_refused(change, where, words, toy, tmp_path):
    config = of_several()
    config.update_from_flattened_dict(change)
    assert_refused(config, tmp_path / "run", *words, where=f"config.stages.ensemble.{where}")
