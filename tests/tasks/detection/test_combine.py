"""Ensembles of detectors: from trained members to one model folder, its evaluation, its report and its predictions.

With the toy of the tests in place of a Faster R-CNN; the members differ in seed, width and contrast.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import cem_ensemble
from elk_jax import files
from elk_jax.data.augment import Resize
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.detection import detectors
from elk_jax.evaluation import detections, operating
from elk_jax.evaluation.detections import Detections
from elk_jax.evaluation.evaluate import evaluate_detections
from elk_jax.evaluation.fusion import fuse_boxes
from elk_jax.experiments.experiment import run_experiment
from elk_jax.privacy.accounting import Ledger, Phase, epsilon_of
from elk_jax.privacy.mechanism import Statement
from elk_jax.tasks.detection import model, predict
from elk_jax.tasks.detection.combine import found_by_folds, promised
from elk_jax.tasks.detection.evaluate import EvaluateSettings, evaluate_source
from elk_jax.tasks.detection.train import from_weights
from elk_jax.training.mesh import make_mesh
from elk_jax.weights import model_folder
from elk_jax.weights.model_folder import Training
from tests.detection import toy_detector
from tests.refusals import refused

SCALES, WEIGHTS = (1.0, 2.0), (2.0, 1.0)


@pytest.fixture(scope="module", autouse=True)
def toy():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(detectors.DETECTORS, "toy", toy_detector.KIND)
        yield


def config_of():
    """Two toys of different widths and contrasts, the second with mirrored views, and their ensemble at two scales."""
    config = cem_ensemble.get_config("tiny")
    with config.unlocked():
        config.detector.model = ConfigDict(asdict(toy_detector.ToyConfig(width=4)))
        config.detector.test_flips = ()
        config.detector.update(steps=80, eval_every=80, checkpoint_every=80)
        config.detector.schedule.update(base=0.01, warmup_steps=5)  # what finds nothing is fused alike by any rule
        config.other = ConfigDict(config.detector.to_dict())
        config.other.model = ConfigDict(asdict(toy_detector.ToyConfig(width=6, pixel_std=0.5)))
        config.other.test_flips = ("horizontal",)
    config.detector.score_floor = config.other.score_floor = 0.02
    config.detector.bootstrap = 20
    config.stages.real_1.recipe = "other"
    config.stages.ensemble.update(scales=SCALES, weights=WEIGHTS)
    return config


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(run folder, summaries)."""
    folder = tmp_path_factory.mktemp("ensemble")
    return folder, run_experiment(config_of(), folder)


@pytest.fixture(scope="module")
def spec():
    return SourceSpec(cem_ensemble.get_config("tiny").data.real.spec)


def folder_of(ran, name="ensemble"):
    return ran[0] / name / "model"


# ---- What it computes ------------------------------------------------------------------------------------------------


def test_an_ensemble_fuses_what_its_members_find_at_every_scale_and_needs_no_other_folder(ran, spec, tmp_path):
    source, mesh = open_source(spec, "test"), make_mesh()
    own = shutil.copytree(folder_of(ran), tmp_path / "model")
    ensemble = model.load(own)
    views, weights = [], []
    for name, weight in zip(("real", "real_1"), WEIGHTS):
        member = model.load_one(folder_of(ran, name))
        entry = member.description.input
        large = replace(entry, buckets=tuple((2 * h, 2 * w) for h, w in entry.buckets))
        for seen in (entry, large):
            scaled = member._replace(description=replace(member.description, input=seen))
            views.append(predict.detect_with(scaled, source, mesh, 0.02))
            weights.append(weight)
    found = predict.detect_with(ensemble, source, mesh, 0.02)
    assert len(found) == len(source.infos)
    assert sum(len(result.scores) for result in found) > 0
    for result, *of_image in zip(found, *views):
        expected = fuse_boxes([Detections(r.boxes, r.scores, r.labels) for r in of_image],
                              ensemble.description.same, weights)  # fmt: skip
        np.testing.assert_allclose(result.boxes, expected.boxes, rtol=1e-6)
        np.testing.assert_allclose(result.scores, expected.scores, rtol=1e-6)


def test_the_floor_of_who_asks_leaves_fused_boxes_out_and_changes_none(ran, spec, monkeypatch):
    """A floor of 0.1 before the fusion would take the weak box from the mean: 0.2 instead of (0.4 * 2 + 0.05) / 3."""
    source, ensemble, asked = open_source(spec, "val"), model.load(folder_of(ran)), []
    assert ensemble.description.score_floor == 0.02
    box = [0, 0, 10, 10]

    def found(members, scales, source, mesh, score_floor, *others):
        asked.append(score_floor)
        first, second = found_in_an_image([box], [0.4]), found_in_an_image([box, [40, 40, 50, 50]], [0.05, 0.09])
        return [[[first]], [[second]]]

    monkeypatch.setattr(predict, "members_views", found)
    (all_of_them,) = predict.detect_with(ensemble, source, None, 0.0)
    (fused,) = predict.detect_with(ensemble, source, None, 0.1)
    np.testing.assert_allclose(all_of_them.scores, [(0.4 * 2 + 0.05) / 3, 0.09 / 3])
    np.testing.assert_allclose(fused.scores, [(0.4 * 2 + 0.05) / 3])
    assert asked == [0.02, 0.02]
    earlier = ensemble._replace(description=replace(ensemble.description, score_floor=None))
    predict.detect_with(earlier, source, None, 0.1)
    assert asked[-1] == 0.1


def test_an_ensemble_of_an_earlier_version_names_no_floor_and_no_rates_of_its_thresholds(ran, tmp_path):
    own = shutil.copytree(folder_of(ran), tmp_path / "model")
    entries = files.read_object(own / "model.json")
    del entries["score_floor"]
    for point in entries["operating_points"]:
        del point["rate"]
    files.write_json(own / "model.json", entries)
    assert model.load(own).description.score_floor is None


def test_fused_boxes_below_the_score_floor_are_left_out():
    """A box that one of two members finds has half its score, so that it can fall below the floor of both."""
    both, alone, high = [0, 0, 10, 10], [40, 40, 50, 50], [20, 20, 30, 30]
    first = found_in_an_image([both, high, alone], [0.4, 0.06, 0.03])
    second = found_in_an_image([both], [0.2])
    (fused,) = predict.fuse_members([[[first]], [[second]]], (1.0, 1.0), 0.5, score_floor=0.02)
    np.testing.assert_allclose(fused.scores, [0.3, 0.03])
    np.testing.assert_allclose(fused.boxes, [both, high])
    (fused,) = predict.fuse_members([[[first]], [[second]]], (1.0, 1.0), 0.5, score_floor=0.0)
    np.testing.assert_allclose(fused.scores, [0.3, 0.03, 0.015])


def found_in_an_image(boxes, scores):
    none = np.zeros((0, 4))
    return detections.ImageResult(
        image_id="a", patient_id="p", width=64, height=64,
        gt_boxes=none, gt_labels=np.zeros(0, int), gt_ignore=np.zeros(0, bool),
        boxes=np.array(boxes, float), scores=np.array(scores), labels=np.zeros(len(scores), int),
    )  # fmt: skip


def test_fusion_and_thresholds_are_chosen_on_the_validation_split(ran, spec):
    folder, summaries = ran
    summary, description = summaries["ensemble"], model.load(folder_of(ran)).description
    tried = dict(summary["tried"])
    assert list(tried) == [0.4, 0.3, 0.5]
    best = next(same for same, value in tried.items() if value > max(tried.values()) - 1e-9)
    assert description.same == summary["same"] == best
    validation = open_source(spec, "val")
    found = predict.detect_with(model.load(folder_of(ran)), validation, make_mesh(), 0.02)
    expected = evaluate_detections(detections.above(found, 0.02), score_floor=0.02, resamples=0)
    assert tried[summary["same"]] == pytest.approx(expected["mean_sensitivity"]["value"])
    choice = operating.choose(detections.above(found, 0.02), score_floor=0.02, resamples=0)
    thresholds = lambda points: {point.false_positives_per_image: point.threshold for point in points}
    assert thresholds(description.operating_points) == pytest.approx(thresholds(choice.points))
    assert description.chosen_on.images == choice.on.images > 0
    page = (folder / "report.html").read_text()
    assert "<h2>Ensembles</h2>" in page and "real_1 alone" in page and "1, 2." in page


def test_it_has_seen_what_its_members_have_seen(ran):
    trained = model.load(folder_of(ran)).description.trained
    both = model_folder.seen_patients(folder_of(ran, "real")) | model_folder.seen_patients(folder_of(ran, "real_1"))
    assert set(trained.patients) == both and len(both) > 0 and trained.on == ("real",)
    hashes = tuple(model_folder.read(folder_of(ran, name)).hash for name in ("real", "real_1"))
    assert model.load(folder_of(ran)).description.hashes == hashes


# ---- Where it is used ------------------------------------------------------------------------------------------------


def test_it_is_evaluated_as_in_its_stage_and_finds_lesions_in_files(ran, spec, tmp_path, capsys):
    staged = files.read_object(ran[0] / "evaluate" / "ensemble" / "evaluation.json")
    settings = EvaluateSettings(score_floor=0.02, bootstrap=0, against=str(folder_of(ran, "real")))
    found = evaluate_source(
        model=folder_of(ran), data=spec, split="test", on_error="stop", output=tmp_path / "test", settings=settings
    )
    for key in ("mean_sensitivity", "ap10"):
        assert found[key]["value"] == pytest.approx(staged[key]["value"])
    record = open_source(spec, "test")[0]
    cv2.imwrite(str(tmp_path / "a.png"), (record.image[..., 0] * 255).astype(np.uint8))
    results = predict.predict_files(
        model=folder_of(ran), inputs=[str(tmp_path / "a.png")], decoding=SourceSpec(), on_error="stop",
        output=tmp_path / "found", settings=predict.PredictSettings(score_floor=0.02),
    )  # fmt: skip
    written = json.loads((tmp_path / "found" / "findings.json").read_text())
    assert len(written) == len(results[0].scores) > 0


def test_where_one_detector_is_read_an_ensemble_is_refused(ran):
    member = model.load_one(folder_of(ran, "real")).detector
    for read in (model.load_one, lambda folder: from_weights(folder, {}, member, "detector")):
        with refused("ensemble", "members", where=folder_of(ran)):
            read(folder_of(ran))


# ---- Promises --------------------------------------------------------------------------------------------------------


PHASE = Phase(sampling_rate=1.0, noise_multiplier=2.0, steps=1)
ALONE, TOGETHER = (epsilon_of([PHASE] * count, 1e-5) for count in (1, 2))
PRIVATE = Training(3, ("a",), "", (), Statement(True, ALONE, 1e-5, "pld", Ledger((PHASE,), "patient")))
OPEN = Training(3, ("b",), "", ("hash",))


def test_private_members_protect_by_their_composition_and_others_not_at_all():
    assert promised([OPEN, None]) == ""
    both = promised([PRIVATE, PRIVATE])
    assert f"epsilon {TOGETHER:.3g}" in both and "not protected" not in both
    assert TOGETHER > ALONE
    mixed = promised([OPEN, PRIVATE, None])
    assert mixed.startswith("1 of 3 members were trained privately; patients of the others are not protected.")
    assert f"epsilon {ALONE:.3g}" in mixed and "\n" not in mixed
    assert model_folder.of_members([OPEN, PRIVATE]).patients == ("hash",)


# ---- Refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, where, words",
    [
        ({"members": ("real", "nowhere")}, "nowhere", ["no model"]),
        ({"members": ("evaluate", "real")}, "config.stages.ensemble.members[0]", ["before 'ensemble'"]),
        ({"members": ()}, "config.stages.ensemble.members", ["at least one"]),
        ({"weights": (1.0,)}, "config.stages.ensemble.weights", [1, 2]),
        ({"weights": (1.0, 0.0)}, "config.stages.ensemble.weights", ["above 0"]),
        ({"scales": ()}, "config.stages.ensemble.scales", ["at least one"]),
        ({"scales": (1.0, 5.0)}, "config.stages.ensemble.scales", ["from 0.25 to 4"]),
        ({"same": (0.0,)}, "config.stages.ensemble.same", ["above 0"]),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(tmp_path, change, where, words):
    config = config_of()
    config.stages.ensemble.update(change)
    with refused(*words, where=where):
        run_experiment(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_ensemble_is_no_member_of_another(ran, tmp_path):
    config = config_of()
    config.stages.ensemble.members = ("real", str(folder_of(ran)))
    with refused("itself an ensemble", "members", where="config.stages.ensemble.members[1]"):
        run_experiment(config, tmp_path / "run")
    nested = config_of()
    with nested.unlocked():
        evaluate = nested.stages.evaluate.to_dict()
        del nested.stages.evaluate
        nested.stages.both = ConfigDict(nested.stages.ensemble.to_dict())
        nested.stages.both.members = ("ensemble", "real")
        nested.stages.evaluate = evaluate
    with refused("itself an ensemble", where="config.stages.both.members[0]"):
        run_experiment(nested, tmp_path / "run")


def test_members_that_are_no_detectors_or_know_other_classes_are_refused(ran, tmp_path):
    config = config_of()
    model_folder.save_params(tmp_path / "other", {"a": np.zeros(1)}, {"architecture": "translator"})
    config.stages.ensemble.members = ("real", str(tmp_path / "other"))
    with refused("not a detector", where="config.stages.ensemble.members[1]"):
        run_experiment(config, tmp_path / "run")
    params, content = model_folder.load_params(folder_of(ran, "real"))
    model_folder.save_params(tmp_path / "classes", params, {**content.entries, "classes": ["mass"]})
    config.stages.ensemble.members = (str(folder_of(ran, "real_1")), str(tmp_path / "classes"))
    with refused("mass", "lesion", where=tmp_path / "classes"):
        run_experiment(config, tmp_path / "run")


def test_the_folds_of_a_member_that_does_not_detect_found_nothing(ran, tmp_path):
    member = model.load_one(folder_of(ran, "real"))
    member = member._replace(description=replace(member.description, learned_maps="backbone"))
    with refused("not trained", "detection_weight", where=tmp_path):
        found_by_folds([tmp_path / "10"], member, (), 0.0)


def test_an_input_that_would_be_too_large_is_refused(ran, tmp_path):
    params, content = model_folder.load_params(folder_of(ran, "real"))
    large = {**content.entries["input"], "buckets": [[4096, 4096]]}
    model_folder.save_params(tmp_path / "large", params, {**content.entries, "input": large})
    config = config_of()
    config.stages.ensemble.update(members=("real", str(tmp_path / "large")), scales=(1.0, 2.5))
    with refused(10240, 2.5, where="config.stages.ensemble.scales"):
        run_experiment(config, tmp_path / "run")


def test_a_folder_whose_parts_do_not_fit_is_refused(ran, tmp_path):
    params, content = model_folder.load_params(folder_of(ran))
    first = {"members": {"0": params["members"]["0"]}}
    swapped = {"members": {"0": params["members"]["1"], "1": params["members"]["0"]}}
    members = [dict(one) for one in content.entries["members"]]
    for broken, entries, words in (
        (first, content.entries, ["2 members"]),
        (swapped, content.entries, ["describes another model"]),
        (params, {**content.entries, "weights": [1.0]}, ["1 weights for 2"]),
        (params, {**content.entries, "classes": ["mass"]}, ["mass"]),
        (params, {**content.entries, "members": [members[0], {**members[1], "architecture": "x"}]}, ["not a trained"]),
    ):
        model_folder.save_params(tmp_path, broken, entries)
        with refused(*words):
            model.load(tmp_path)


# ---- Scales ----------------------------------------------------------------------------------------------------------


def test_an_input_at_another_scale():
    fixed = model.Input(True, Resize(short_sides=(100,), max_long_side=150, stretch=(50, 60)), ((64, 96),), ())
    found = model.at_scale(fixed, 1.5)
    assert (found.resize.short_sides, found.resize.max_long_side, found.resize.stretch) == ((150,), 225, (75, 90))
    assert found.buckets == ((96, 160),)  # 144 is not a multiple of 32
    assert model.at_scale(fixed, 1.0) == fixed
    fitted = model.Input(True, Resize(jitter=(1.0, 1.0)), ((64, 32), (32, 32)), ("horizontal",))
    assert model.at_scale(fitted, 0.5) == replace(fitted, buckets=((32, 16), (16, 16)))
    with refused(16384, where="scales"):
        model.at_scale(replace(fixed, resize=Resize(jitter=(1.0, 1.0), stretch=(4096, 64))), 4.0)
