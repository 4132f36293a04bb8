"""Teacher, student, evaluation through the real loop at a tiny size; resume of both streams; refusals."""

from __future__ import annotations

from dataclasses import asdict, replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import unified
from elk_jax import files
from elk_jax.backbones.resnet import ResNetConfig
from elk_jax.data.sources.patients import patient_hash
from elk_jax.detection import detectors
from elk_jax.detection.retinanet_config import RetinaNetConfig, plain
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from elk_jax.tasks import folds, training
from elk_jax.tasks.detection.model import load, trainable
from elk_jax.tasks.detection.recipe import DetectionRecipe, TrainDetectorStage
from elk_jax.tasks.distillation import train
from elk_jax.tasks.distillation.recipe import TrainDistilledStage
from elk_jax.tasks.distillation.train import TwoStreams, check_start, check_teacher, size_warning, workload
from elk_jax.tasks.run import Run
from elk_jax.training import schedules
from elk_jax.training.schedules import WarmupMultistep
from elk_jax.training.writer import read_metrics
from elk_jax.weights import model_folder
from tests.detection import toy_detector
from tests.refusals import refused
from tests.tasks.checks import assert_same_weights, resumed
from tests.tasks.distillation.conftest import small_config


def leaves(folder):
    return model_folder.flatten(model_folder.load_params(folder / "model")[0])


def test_teacher_and_student_are_ordinary_detectors(finished):
    for stage, on in (("teacher", ("mammo",)), ("student", ("dbt", "mammo"))):
        trained = load(finished / stage / "model")
        assert trained.description.architecture == "toy" and trained.description.trained.on == on
        assert not any("distillation" in name for name in leaves(finished / stage)), "the learned map is not kept"
    assert load(finished / "student" / "model").description.trained.init_from == "teacher"
    seen = [set(load(finished / stage / "model").description.trained.patients) for stage in ("teacher", "student")]
    assert seen[0] < seen[1], "the student has seen the patients of its teacher"
    page = (finished / "report.html").read_text()
    assert "What the student learned from the teacher" in page and "student, lesion" in page


def test_the_run_ends_with_the_metric_of_whole_volumes(finished):
    found = files.read_json(finished / "volumes" / "student" / "evaluation.json")
    slices = files.read_json(finished / "volumes" / "finished.json")["summary"]["data"]["images"]
    assert slices == 5 * found["volumes"] > 5 and found["lesions"] > 0
    assert "DBTex metric: test split of dbt" in (finished / "report.html").read_text()


def test_the_terms_of_both_trainings_are_logged(finished):
    lines = {stage: read_metrics(finished / stage / "metrics.jsonl") for stage in ("teacher", "student")}
    keys = {stage: {key for line in found for key in line} for stage, found in lines.items()}
    assert {"train/align_pull", "train/align_push", "train/distinct_cells"} <= keys["teacher"]
    assert {"train/loss_distillation", "train/kl_identity", "train/distinct_cells"} <= keys["student"]
    last = lines["student"][-1] if "train/loss" in lines["student"][-1] else lines["student"][-2]
    total = last["train/loss_detection"] + 2 * last["train/loss_distillation"]
    assert last["train/loss"] == pytest.approx(total, rel=1e-4) and last["train/loss_distillation"] > 0


def test_the_folds_of_a_student_are_an_ensemble_judged_by_who_has_not_seen_a_patient(finished, tmp_path):
    """The teacher and the images beside are of other patients, and those of the student are dealt out."""
    config = small_config()
    config.data.dbt.train_share, config.stages.student.teacher = 1.0, str(finished / "teacher" / "model")
    config.distill.update(folds=2, refit=False, steps=2, eval_every=0, checkpoint_every=0)
    found = run_experiment(config, tmp_path, ["student", "evaluate"])["student"]
    run = Run(parse(config), tmp_path, mesh=None)
    pool = {patient_hash(i.patient_id) for split in ("train", "val") for i in run.list("dbt", split).infos}
    of_teacher = set(load(finished / "teacher" / "model").description.trained.patients)
    ensemble = load(tmp_path / "student" / "model")
    seen = [set(member.description.trained.patients) - of_teacher for member in ensemble.members]
    assert len(seen) == 2 and seen[0] | seen[1] == pool and not seen[0] & seen[1]
    assert ensemble.description.chosen_on.data == f"2 folds, {folds.UNSEEN}"
    assert (found["role"], found["mode"], found["folds"]["step"]) == ("student", "lesion", 2)
    assert (tmp_path / "evaluate" / "student" / "evaluation.json").is_file()
    assert "members of the ensemble" in (tmp_path / "report.html").read_text()


def test_a_student_that_does_not_learn_to_detect_is_no_ensemble(tmp_path):
    config = unified.get_config("tiny")
    config.borrow.update(folds=2, refit=False)
    with refused("borrowed", "detect", where="config.borrow.refit"):
        run_experiment(config, tmp_path / "run")


def test_a_student_is_resumed_to_the_bit_with_both_streams(finished, tmp_path):
    copy = resumed(finished, small_config(), "student", 4, tmp_path / "run")
    assert_same_weights(finished / "student", copy / "student")


def test_a_step_of_no_learning_keeps_the_weights_of_the_teacher(finished, tmp_path):
    """The same teacher for another student, from its folder: the mode that has its weights alone."""
    config = small_config("pretraining")
    config.stages.student.teacher = str(finished / "teacher" / "model")
    config.distill.schedule.base = 0.0
    run_experiment(config, tmp_path / "run", stages=["student"])
    for name, leaf in leaves(tmp_path / "run" / "student").items():
        np.testing.assert_array_equal(leaf, leaves(finished / "teacher")[name], err_msg=name)


def test_two_streams_have_their_own_epochs():
    def batches(count):
        return lambda n: {"valid": np.ones(2, bool), "index": np.arange(2 * n, 2 * n + 2) % count}

    own, beside = batches(4), batches(6)
    stream = TwoStreams(own, beside, distill_from=2)
    found = [stream(n) for n in range(4)]
    assert [batch["index"].tolist() for batch in found] == [[0, 1], [2, 3], [0, 1], [2, 3]]
    assert [batch["beside"]["index"].tolist() for batch in found] == [[0, 1], [2, 3], [4, 5], [0, 1]]
    assert [batch["distilled"].tolist() for batch in found] == [[False] * 2] * 2 + [[True] * 2] * 2
    assert "beside" not in TwoStreams(own, None, 0)(0)
    assert train.second_seed(1) not in (1, train.second_seed(2))


# ---- Refusals --------------------------------------------------------------------------------------------------------


def check(config: ConfigDict, stage: str = "student", names=("teacher", "student")) -> None:
    experiment = parse(config)
    found = experiment.stages[stage]
    check_start(Run(experiment, None, mesh=None), found, experiment.recipe_of(found), names)


@pytest.mark.parametrize(
    "changes, where, words",
    [
        ({"stages.student.teacher": ""}, "config.stages.student.teacher", ("lesion",)),
        ({"stages.student.beside": ()}, "config.stages.student.beside", ("lesion", "images")),
        ({"stages.student.init_from": "teacher"}, "config.stages.student.init_from", ("lesion",)),
        ({"distill.optimizer.frozen": ("^(?!classes/)",)}, "config.distill.optimizer.frozen", ("distillation",)),
        ({"distill.stride": 16}, "config.distill.stride", ("16", "8")),
        ({"distill.mode": "classwise"}, "config.distill.mode", ("toy", "anchors")),
        ({"distill.mode": "image", "distill.loader.buckets": ((64, 64), (64, 96))}, "config.distill.loader.buckets",
         ("image", "2")),
        ({"distill.mode": "contrastive", "distill.loader.batch_size": 1}, "config.distill.loader.batch_size",
         ("contrastive", "2")),
        ({"distill.mode": "contrastive", "distill.loader.batch_size": 4, "distill.accumulate": 4},
         "config.distill.loader.batch_size", ("contrastive", "8")),
        *(({"distill.mode": mode, f"distill.{name}": value}, f"config.distill.{name}", (mode, "lesion"))
          for mode in ("pretraining", "none")
          for name, value in (("weight", 5.0), ("detection_weight", 2.0))),
    ],
)  # fmt: skip
def test_what_a_mode_lacks_is_named(toy, changes, where, words):
    config = small_config()
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        part = config
        for one in section.split("."):
            part = part[one]
        part[name] = value
    with refused(*words, where=where):
        check(config)


def test_one_point_is_enough_to_align_a_teacher(toy):
    """Its lesions are drawn together by the vector of that point; a student of another mode reads none."""
    config = small_config("pkd")
    config.distill.points = 1
    check(config, "teacher")
    check(config)


def test_a_teacher_of_other_classes_is_refused_before_anything_is_trained(finished, tmp_path):
    image = {"id": 1, "file_name": "a.png", "width": 9, "height": 9, "patient_id": "P", "split": "train"}
    categories = [{"id": 1, "name": "lesion"}, {"id": 2, "name": "mass"}]
    files.write_json(tmp_path / "two.json", {"images": [image], "annotations": [], "categories": categories})
    config = small_config()
    config.stages.student.teacher = str(finished / "teacher" / "model")
    config.data.dbt.spec = f"coco:{tmp_path / 'two.json'}"
    with refused("mass", where="teacher/model"):
        check(config)
    files.write_json(tmp_path / "one.json", {"images": [image], "annotations": [], "categories": categories[:1]})
    config.stages.student.teacher, config.data.mammo.spec = "teacher", f"coco:{tmp_path / 'one.json'}"
    with refused("mass", where="config.stages.student.teacher"):  # before the teacher is trained
        check(config)
    config.data.mammo.spec = config.data.dbt.spec
    check(config)


def test_a_written_teacher_saw_the_breast_alone_where_the_student_does(finished):
    config = small_config()
    config.stages.student.teacher = str(finished / "teacher" / "model")
    check(config)
    config.distill.crop_to_breast = not config.distill.crop_to_breast
    with refused("teacher", where="config.distill.crop_to_breast"):
        check(config)


def test_a_teacher_of_other_sizes_is_warned_of(finished):
    config = small_config()
    recipe = parse(config).recipes["distill"]
    taught = load(finished / "teacher" / "model").description.input
    assert size_warning(taught, recipe) == ""
    warning = size_warning(replace(taught, buckets=((96, 64), (64, 96))), recipe)
    assert "96 x 64, 64 x 96" in warning and " x ".join(map(str, recipe.loader.buckets[0])) in warning
    assert "resize" in size_warning(replace(taught, resize=replace(taught.resize, max_long_side=77)), recipe)


def test_modes_that_need_less_ask_for_less(toy):
    config = small_config("pkd")
    config.stages.student.beside = ()
    config.distill.stride = 16  # of one level; this mode reads all
    check(config)
    config.distill.mode = "none"
    config.stages.student.teacher = ""
    check(config)


@pytest.mark.parametrize("settings, where", [
    ({"role": "teacher", "teacher": "other"}, "teacher"),
    ({"role": "teacher", "beside": ("a",)}, "beside"),
    ({"role": "student", "public": ("a",)}, "public"),
])  # fmt: skip
def test_a_stage_that_contradicts_itself(settings, where):
    with refused(where=where):
        TrainDistilledStage(train_on=("a",), validate_on="a", **settings)


SMALL = {"fpn_channels": 8, "head_convs": 1}
NETWORK = ResNetConfig(num_classes=0, depth=18, width=8, norm="none")


@pytest.mark.parametrize("teacher, words", [
    (toy_detector.ToyConfig(), ("toy", "retinanet on a resnet")),
    (plain(backbone=NETWORK), ("32", "8, 16, 32, 64, 128")),
    (RetinaNetConfig(backbone=replace(NETWORK, width=16), **SMALL), ("backbone/", "same model")),
    (RetinaNetConfig(backbone=NETWORK, **SMALL | {"fpn_channels": 16}), ("(", "16")),
])  # fmt: skip
def test_a_teacher_of_another_architecture_or_other_levels(toy, tmp_path, teacher, words):
    student = detectors.build(RetinaNetConfig(backbone=NETWORK, **SMALL))
    with refused(*words, where=tmp_path):
        check_teacher(detectors.build(teacher), student, tmp_path)
    more_classes = detectors.build(replace(student.config, num_classes=3))
    check_teacher(more_classes, student, tmp_path)  # the classes are compared with the data


def test_another_teacher_is_refused_before_anything_runs(finished, tmp_path):
    config = small_config()
    config.stages.student.teacher = str(finished / "teacher" / "model")
    with config.unlocked():
        config.distill.model = ConfigDict(asdict(toy_detector.ToyConfig(width=6)))
    with refused("(4,)", "(6,)", where=finished / "teacher" / "model"):
        run_experiment(config, tmp_path / "run", stages=["student", "evaluate"])
    assert not (tmp_path / "run").exists()


def test_a_student_may_have_a_rate_of_its_own(finished, toy, tmp_path):
    config = small_config("pretraining")
    config.stages.student.teacher, config.distill.student_rate = str(finished / "teacher" / "model"), 0.25
    run_experiment(config, tmp_path, stages=["student"])
    rates = [
        [
            line["train/learning_rate"]
            for line in read_metrics(folder / "student" / "metrics.jsonl")
            if "train/loss" in line
        ]
        for folder in (tmp_path, finished)
    ]
    assert rates[0] and rates[0] == pytest.approx([0.25 * rate for rate in rates[1]])
    experiment = parse(config)
    recipe, stages = experiment.recipes["distill"], experiment.stages
    assert stages["teacher"].paced(recipe) == recipe
    assert stages["teacher"].relevant(recipe) == stages["teacher"].relevant(replace(recipe, student_rate=1.0))


def test_a_student_may_have_fewer_steps_and_looks_as_often(toy):
    experiment = parse(small_config())
    schedule = WarmupMultistep(base=1.0, warmup_steps=0, milestones=(0.5,))
    recipe = replace(
        experiment.recipes["distill"], steps=60, eval_every=20, checkpoint_every=0, log_every=4, schedule=schedule,
        student_length=0.1,
    )  # fmt: skip
    teacher, student = (experiment.stages[name] for name in ("teacher", "student"))
    assert teacher.paced(recipe) == recipe
    assert teacher.relevant(recipe) == teacher.relevant(replace(recipe, student_length=1.0))
    assert student.relevant(recipe) != student.relevant(replace(recipe, student_length=1.0))
    paced = student.paced(recipe)
    assert (paced.steps, paced.eval_every, paced.checkpoint_every, paced.log_every) == (6, 2, 0, 1)
    assert student.paced(paced) == paced
    rate = schedules.build(paced.schedule, paced.steps)
    assert [float(rate(step)) for step in (2, 3)] == pytest.approx([1.0, 0.1])
    assert replace(recipe, distill_from=5).distill_from == 5
    with refused("step 6 of 6", where="distill_from"):
        replace(recipe, distill_from=6)
    late = replace(schedule, milestones=(12, 0.5))  # in order for the teacher's 60 steps, not for 6
    with refused("(12, 3)", where="schedule.milestones"):
        replace(recipe, schedule=late)
    (warning,) = student.paced(replace(recipe, schedule=replace(schedule, milestones=(12,)))).warnings()
    assert "12" in warning and "6" in warning


def test_statistics_of_a_batch_are_refused_where_privacy_is_wanted():
    network = ResNetConfig(depth=18, width=2, norm="batch_bn", num_classes=0)
    recipe = DetectionRecipe(model=RetinaNetConfig(backbone=network))
    live = trainable(detectors.build(recipe.model), per_image=True)
    stage = TrainDetectorStage(name="a", train_on=("a",), validate_on="a")
    training.check_model(stage, recipe, live)
    with refused("statistics of the batch", where="config.detector.privacy"):
        training.check_model(stage, SimpleNamespace(privacy=True), live)


def test_mammograms_without_a_lesion_are_refused(finished, tmp_path):
    config = small_config()
    config.stages.student.teacher = str(finished / "teacher" / "model")
    config.data.mammo.spec += ",healthy_fraction=1.0"
    with refused("lesion", where="mammo"):
        run_experiment(config, tmp_path / "run", stages=["student"])


@pytest.mark.parametrize("mode", ["lesion", "pkd", "pretraining"])
def test_a_training_is_planned_as_it_runs(toy, mode):
    experiment = parse(small_config(mode))
    for name in ("teacher", "student"):
        stage = experiment.stages[name]
        work = workload(stage, experiment.recipe_of(stage), 2)
        (batch,) = work.training.values()
        params = jax.eval_shape(work.model.init, jax.random.key(0))
        call = lambda params, constants, batch, model=work.model: model.loss(
            params, constants, batch, jax.random.key(0), jax.vmap
        )[0]
        assert jax.eval_shape(call, params, work.model.constants, batch).shape == ()
        assert ("beside" in batch) == (name == "student" and mode == "lesion")
