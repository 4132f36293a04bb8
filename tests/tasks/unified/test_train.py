"""The three stages through the real loop at a tiny size: what each starts from, what moves, and what is not read."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from configs import unified
from elk_jax import files
from elk_jax.data.sources import phantom_volumes
from elk_jax.data.sources.decode import encode_png
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.detection import fused
from elk_jax.experiments.checks import check_inputs
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.needs import check_needs
from elk_jax.experiments.parse import parse
from elk_jax.planning.plan import plan
from elk_jax.tasks import TASKS, folds
from elk_jax.tasks.detection.evaluate import check_start as check_evaluation
from elk_jax.tasks.detection.model import load
from elk_jax.tasks.detection.train import seed_of
from elk_jax.tasks.distillation.train import apart
from elk_jax.tasks.distillation.train import check_start as check_student
from elk_jax.tasks.run import Fold, Run
from elk_jax.tasks.unified.recipe import TrainFusedStage
from elk_jax.tasks.unified.train import check_start
from elk_jax.training.writer import read_metrics
from elk_jax.weights import model_folder
from tests.refusals import refused
from tests.tasks.unified.conftest import small_config


def leaves(folder, stage):
    return model_folder.flatten(model_folder.load_params(folder / stage / "model")[0])


def same(a, b, names):
    return [np.array_equal(a[name], b[other]) for name, other in names.items()]


def test_what_learns_to_resemble_starts_from_the_other_and_keeps_its_heads(finished):
    before, after = leaves(finished, "sm"), leaves(finished, "borrowed")
    heads = {name: name for name in before if name.split("/")[0] in ("class_head", "box_head")}
    trunk = {name: name for name in before if name.split("/")[0] in ("backbone", "fpn") and name.endswith("kernel")}
    assert all(same(before, after, heads)) and not any(same(before, after, trunk))
    trained = load(finished / "borrowed" / "model").description
    assert trained.architecture == "efficientdet" and trained.trained.init_from == "sm"


def test_what_it_learned_is_measured_beside_pairs_that_do_not_belong_together(finished):
    lines = read_metrics(finished / "borrowed" / "metrics.jsonl")
    measured = next(line for line in reversed(lines) if "eval/similarity" in line)
    assert "eval/similarity_gap" not in measured, "validation has one patient: no image of another to compare with"
    assert -1 <= measured["eval/similarity"] <= 1 and measured["eval/spread"] > 0
    assert 1 <= measured["eval/effective_rank"] <= 8 and "eval/similarity_level2" in measured
    assert "eval/mean_sensitivity" not in measured, "it does not learn to detect"
    before = files.read_json(finished / "borrowed" / "finished.json")["summary"]["before"]
    assert before["similarity"] != measured["eval/similarity"]


@pytest.mark.parametrize(("mode", "metric"), [("hints", "similarity"), ("outputs", "mean_sensitivity")])
def test_b_learns_by_hints_and_by_what_c_says(finished, tmp_path, mode, metric):
    config = small_config()
    config.borrow.mode, config.borrow.best_metric = mode, metric
    stage = config.stages.borrowed
    stage.teacher, stage.init_from = (str(finished / name / "model") for name in ("ffdm", "sm"))
    run_experiment(config, tmp_path, stages=["borrowed"])
    own, before = leaves(tmp_path, "borrowed"), leaves(finished, "sm")
    assert own.keys() == before.keys(), "no regressor is kept"
    moved = {name.split("/")[0] for name in own if not np.array_equal(own[name], before[name])}
    assert moved == {"backbone", "fpn"} | ({"class_head", "box_head"} if mode == "outputs" else set())
    lines = read_metrics(tmp_path / "borrowed" / "metrics.jsonl")
    logged = {key for line in lines for key in line}
    assert "eval/similarity" in logged and ("eval/mean_sensitivity" in logged) == (mode == "outputs")
    maps = load(tmp_path / "borrowed" / "model").description.learned_maps
    assert maps == ("" if mode == "outputs" else "pyramid"), "by outputs it learns to detect"


def test_neighbours_are_of_different_patients():
    infos = open_source(SourceSpec("phantom:size=64,count=48"), "train").infos
    order = apart(infos)
    people = [infos[position].patient_id for position in order]
    assert sorted(order) == list(range(len(infos))) and len(set(people)) > 4
    assert all(a != b for a, b in pairwise(people))
    assert len({(infos[position].meta["view"]) for position in order[:4]}) == 1


def test_trunks_are_those_of_their_members_and_stay(finished):
    for stage, other in (("unified", "borrowed"), ("base_ub", "ffdm")):
        found = leaves(finished, stage)
        for trunk, member in (("own", "sm"), ("other", other)):
            names = {name.removeprefix(f"{trunk}/"): name for name in found if name.startswith(f"{trunk}/")}
            assert names and all(same(leaves(finished, member), found, names))
        assert not np.array_equal(found["class_head/logits/pointwise/kernel"],
                                  leaves(finished, "sm")["class_head/logits/pointwise/kernel"])  # fmt: skip
    trained = load(finished / "unified" / "model").description.trained
    assert trained.on == ("sm",)
    seen = [set(load(finished / stage / "model").description.trained.patients) for stage in ("ffdm", "unified")]
    assert seen[0] <= seen[1], "the patients of the trunks are those of the detector"


def test_all_are_evaluated_on_the_same_images(finished):
    folder = finished / "evaluate"
    assert {path.parent.name for path in folder.glob("*/evaluation.json")} == {"sm", "unified", "base_ub", "sm+ffdm"}
    assert set(files.read_json(folder / "comparisons.json")) == {"unified", "base_ub", "sm+ffdm"}
    page = (finished / "report.html").read_text()
    for words in ("Fused trunks", "sm and borrowed", "the image and its partner", "Similarity of the maps", "sm+ffdm"):
        assert words in page


def test_the_folds_of_a_fused_detector_are_an_ensemble(finished, tmp_path):
    """Of two folds that found nothing: the same detector of pairs twice."""
    config = small_config("dropout")
    config.data.sm.spec = config.data.ffdm.spec = ""
    config.dropout.update(folds=2, refit=False)
    experiment = parse(config)
    stage, recipe = experiment.stages["dropout"], experiment.recipes["dropout"]
    run = Run(experiment, tmp_path, mesh=None)
    pool = {info.patient_id for split in ("train", "val") for info in run.list("pairs", split).infos}
    for number in (1, 2):
        place = tmp_path / "dropout" / f"fold_{number}" / folds.PREDICTED / "2"
        shutil.copytree(finished / "base_ub" / "model", place / folds.MEMBER)
        files.write_json(place / "view_0.json", [])
    last = replace(run, fold=Fold("pairs", 0, 2, frozenset(pool), steps=2))
    found = TASKS["unified"].stages["train"].join(last, stage, recipe)
    ensemble = load(tmp_path / "dropout" / "model")
    assert [member.description.architecture for member in ensemble.members] == ["fused"] * 2
    assert ensemble.tested_images == 2 and "had not seen" in ensemble.description.chosen_on.data
    assert (found["second"], found["drop"], found["best_step"]) == (recipe.model.second, recipe.model.drop, 2)
    assert found["shares_of_other"] == {} and found["members"] == {}, "every member has its own shares"


def test_the_third_stage_reads_no_partner(finished, tmp_path, monkeypatch):
    """NaN in every FFDM, and it trains as before."""
    copy = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(copy / "unified")
    draw = phantom_volumes._mammogram

    def blinded(*arguments):
        info, grey = draw(*arguments)
        return info, np.full(grey.shape, np.nan, np.float32)

    monkeypatch.setattr(phantom_volumes, "_mammogram", blinded)
    config = small_config("sm", "ffdm", "borrowed", "unified")
    run_experiment(config, copy, stages=["unified"])
    again = leaves(copy, "unified")
    assert all(np.array_equal(leaf, again[name]) for name, leaf in leaves(finished, "unified").items())
    shutil.rmtree(copy / "borrowed")
    with refused("finite"):
        run_experiment(config, copy, stages=["borrowed"])


def test_files_of_partners_are_asked_for_where_they_are_read(tmp_path):
    """The same COCO file of pairs, of which one has no file, is of single images for `sm`."""
    config = small_config("sm", "ffdm", "borrowed")
    spec, images = f"coco:{tmp_path / 'pairs.json'}", tmp_path / "images"
    images.mkdir()
    entries, boxes = [], []
    for number, split in enumerate(("train", "train", "val"), 1):
        for name in (f"{number}.png", f"{number}_ffdm.png"):
            (images / name).write_bytes(encode_png(np.full((40, 24), 90, np.uint8)))
        entry = {"id": number, "file_name": f"{number}.png", "partner": f"{number}_ffdm.png", "split": split}
        entries.append({**entry, "width": 24, "height": 40, "patient_id": f"P{number}"})
        boxes.append({"id": number, "image_id": number, "category_id": 1, "bbox": [4, 10, 8, 8]})
    content = {"images": entries, "annotations": boxes, "categories": [{"id": 1, "name": "lesion"}]}
    files.write_json(tmp_path / "pairs.json", content)
    for name, partner in (("sm", "partner"), ("ffdm", ""), ("pairs", "partner")):
        config.data[name].spec, config.data[name].partner = spec, partner
    run = Run(parse(config), tmp_path / "run", mesh=None)
    check_inputs(run, ["sm", "ffdm", "borrowed"])
    (images / "2_ffdm.png").unlink()
    run = Run(parse(config), tmp_path / "run", mesh=None)
    check_inputs(run, ["sm", "ffdm"])
    assert len(run.open("sm", "train")) == 2 and run.open("sm", "train").images == 1
    with refused("2_ffdm.png", where="pairs"):
        check_inputs(run, ["sm", "ffdm", "borrowed"])
    config.data.on_error = "skip"
    skipping = Run(parse(config), tmp_path / "run", mesh=None)
    assert skipping.open("pairs", "train").skipped == ()
    assert [name for name, _ in skipping.open("pairs", "train", 2).skipped] == ["2"]


def test_a_plan_is_made_of_pairs_where_the_network_reads_them():
    config = small_config()
    config.data.pairs.partner = ""
    with refused("pairs", where="config.data.pairs.partner"):
        plan(config, "base_ub", ["here"])
    with refused("pairs", where="config.data.pairs.partner"):
        plan(config, "borrowed", ["here"])


def test_a_repetition_has_a_seed_of_its_own():
    seeds = []
    for seed, repetition in ((0, 0), (0, 1), (0, 2), (1, 1), (0, 1)):
        config = small_config()
        config.seed, config.stages.sm.repetition = seed, repetition
        experiment = parse(config)
        seeds.append(seed_of(Run(experiment, None, mesh=None), experiment.stages["sm"]))
    assert seeds[0] == 0 and len(set(seeds)) == 4 and seeds[1] == seeds[4]


def test_the_share_of_the_second_trunk():
    kernel = np.concatenate([3 * np.eye(4), np.eye(4)])
    assert fused.shares_of_other({"join": {"level0": {"kernel": kernel}}}) == {"level0": pytest.approx(0.25)}
    assert fused.shares_of_other({"class_head": {}}) == {}


# ---- Refusals --------------------------------------------------------------------------------------------------------


def check(config, stage, function, names=("sm", "ffdm", "borrowed", "unified")):
    experiment = parse(config)
    found = experiment.stages[stage]
    check_needs(experiment, [found])
    function(Run(experiment, None, mesh=None), found, experiment.recipe_of(found), names)


@pytest.mark.parametrize(
    "stage, changes, where, words",
    [
        ("borrowed", {"data.pairs.partner": ""}, "config.data.pairs.partner", ("partner", "pairs")),
        ("borrowed", {"data.pairs.partner": "other"}, "partner", ("other", "mammogram")),
        ("base_ub", {"data.pairs.partner": ""}, "config.data.pairs.partner", ("pairs",)),
        ("base_ub", {"stages.base_ub.validate_on": "sm"}, "config.data.sm.partner", ("pairs",)),
        ("evaluate", {"stages.evaluate.on": "sm"}, "config.data.sm.partner", ("base_ub",)),
        ("evaluate", {"stages.evaluate.late": (("base_ub", "ffdm"),)}, "config.stages.evaluate.late", ("base_ub",)),
        (
            "borrowed",
            {"borrow.mode": "lesion", "borrow.detection_weight": 1.0},
            "config.borrow.mode",
            ("lesion", "mse"),
        ),
        ("borrowed", {"stages.borrowed.partner": False}, "config.borrow.detection_weight", ("partner",)),
        ("unified", {"borrow.tap": "backbone"}, "config.fused.model.tap", ("backbone", "pyramid", "borrowed")),
        ("borrowed", {"detector.crop_to_breast": False}, "config.borrow.crop_to_breast", ("ffdm",)),
        ("unified", {"detector.model.channels": 16}, "config.detector.model", ("sm", 16)),
        ("unified", {"detector.model.activation": "relu6"}, "config.detector.model", ("activation", "relu6")),
        ("borrowed", {"detector.model.channels": 16}, "config.detector.model", (16, "student")),
        ("unified", {"stages.unified.recipe": "detector"}, "config.detector.model.name", ("one trunk", "fused")),
        (
            "unified",
            {"fused.privacy": {"epsilon": 8.0, "delta": 1e-5}, "fused.loader.lesion_share": None},
            "config.fused.privacy",
            ("fused",),
        ),
        (
            "base_ub",
            {"data.pairs.shuffled_partners": True},
            "config.data.pairs.shuffled_partners",
            ("'train'", "one patient"),
        ),
        (
            "base_ub",
            {
                "data.pairs.spec": "phantom_volumes:size=64,count=40,seed=7,modality=synthetic_2d",
                "data.pairs.shuffled_partners": True,
                "data.pairs.patients": 1,
            },
            "config.data.pairs.shuffled_partners",
            ("'train'", "one patient"),
        ),
    ],
)
def test_what_is_missing_is_named(stage, changes, where, words):
    config = small_config()
    for key, value in changes.items():
        *sections, name = key.split(".")
        part = config
        for section in sections:
            part = part[section]
        part[name] = value
    function = {"evaluate": check_evaluation, "borrowed": check_student}.get(stage, check_start)
    with refused(*words, where=where):
        check(config, stage, function)


def test_frozen_trunks_drop_no_branch():
    """What follows them would learn from maps that no prediction sees. Trunks that learn, drop some."""
    config = unified.get_config("tiny,lite0")
    assert config.detector.model.backbone.drop_path == config.dropout.model.backbone.drop_path == 0.2
    check(config, "unified", check_start)
    config.fused.model.backbone.drop_path = 0.2
    with refused("backbone/", "0.2", where="config.fused.model.backbone.drop_path"):
        check(config, "unified", check_start)
    config.fused.optimizer.frozen = ("^own/fpn/",)
    check(config, "unified", check_start)


def test_a_folder_says_which_maps_its_model_has_learned(finished, tmp_path):
    """As B does, which does not detect; A learned to detect, and any of its maps may be joined. A folder that was
    written before folders said so is taken as it is."""
    said = {name: load(finished / name / "model").description.learned_maps for name in ("sm", "ffdm", "borrowed")}
    assert said == {"sm": "", "ffdm": "", "borrowed": "pyramid"}
    config = small_config()
    config.stages.unified.other = str(finished / "borrowed" / "model")
    check(config, "unified", check_start)
    config.fused.model.tap = "backbone"
    with refused("other", "borrowed", "pyramid", "backbone", where="config.fused.model.tap"):
        check(config, "unified", check_start)
    config.stages.unified.own = config.stages.unified.other = str(finished / "sm" / "model")
    check(config, "unified", check_start)
    silent = shutil.copytree(finished / "borrowed" / "model", tmp_path / "silent")
    entries = files.read_json(silent / "model.json")
    files.write_json(silent / "model.json", {key: one for key, one in entries.items() if key != "learned_maps"})
    config.stages.unified.other = str(silent)
    check(config, "unified", check_start)
    assert load(silent).description.learned_maps == ""


def test_a_member_of_other_settings_is_refused(finished):
    config = small_config()
    config.stages.unified.other = str(finished / "borrowed" / "model")
    config.fused.model.channels = 16
    with refused(where="borrowed/model"):
        check(config, "unified", check_start)
    config.fused.model.channels, config.fused.model.activation = 8, "relu6"
    with refused("activation", where="borrowed/model"):
        check(config, "unified", check_start)


@pytest.mark.parametrize(
    "changes, where",
    [({"own": "a"}, "other"), ({"other": "a"}, "own"), ({"own": "a", "other": "b", "init_from": "c"}, "init_from")],
)
def test_a_start_that_says_two_things_is_refused(changes, where):
    with refused(where=where):
        TrainFusedStage(train_on=("sm",), validate_on="sm", **changes)


@pytest.mark.parametrize(
    "changes, where",
    [
        ({"borrow.mode": "none"}, "config.borrow.detection_weight"),
        ({"borrow.mode": "pkd", "borrow.tolerance": 1}, "config.borrow.tolerance"),
        ({"borrow.confidence": 0.0}, "config.borrow.confidence"),
        ({"borrow.temperature": 2.0}, "config.borrow.temperature"),
        ({"borrow.best_metric": "ap50"}, "config.borrow.best_metric"),
        ({"fused.model.second": "own", "fused.model.drop": 0.5}, "config.fused.model.drop"),
    ],
)
def test_settings_that_contradict_are_refused(changes, where):
    config = small_config()
    for key, value in changes.items():
        section, *rest, name = key.split(".")
        part = config[section]
        for one in rest:
            part = part[one]
        part[name] = value
    with refused(where=where):
        parse(config)
