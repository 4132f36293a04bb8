"""Every mode through the real training loop, points and alignment as settings, and on eight devices."""

from __future__ import annotations

from dataclasses import asdict

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from elk_jax.backbones.resnet import ResNetConfig
from elk_jax.detection import detectors
from elk_jax.detection.retinanet_config import plain
from elk_jax.evaluation.operating import Choice
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from elk_jax.tasks.detection import train as detection
from elk_jax.tasks.detection.model import describe, load
from elk_jax.tasks.distillation.model import MODES
from elk_jax.training.loop import RECOMPILED
from elk_jax.training.writer import read_metrics
from elk_jax.weights.model_folder import save_params
from tests import processes
from tests.tasks.distillation.conftest import small_config
from tests.tasks.distillation.test_train import leaves

DEVICES = ("-m", "tests.tasks.distillation.mode_devices")


def taught(finished, folder, mode, **changes):
    """(the student of the finished teacher, what its training logged)."""
    config = small_config(mode)
    config.stages.student.teacher = "" if mode == "none" else str(finished / "teacher" / "model")
    for name, value in changes.items():
        config.distill[name] = value
    run_experiment(config, folder, stages=["student"])
    return leaves(folder / "student"), read_metrics(folder / "student" / "metrics.jsonl")


@pytest.fixture(scope="module")
def alone(finished, tmp_path_factory):
    """A student with the weights of its teacher, which learns nothing else of it."""
    return taught(finished, tmp_path_factory.mktemp("pretraining"), "pretraining")[0]


def differ(one, other):
    assert one.keys() == other.keys() and all(np.isfinite(leaf).all() for leaf in one.values())
    return any(not np.array_equal(one[name], other[name]) for name in one)


def last(lines, key):
    return [line[f"train/{key}"] for line in lines if f"train/{key}" in line][-1]


@pytest.mark.parametrize("mode", ["image", "pkd", "fgd", "cwd", "hints"])
def test_a_mode_changes_what_the_student_becomes(finished, alone, tmp_path, mode, capsys):
    own, lines = taught(finished, tmp_path, mode)
    assert RECOMPILED not in capsys.readouterr().err
    assert differ(own, alone)
    total = last(lines, "loss_detection") + MODES[mode].weight * last(lines, "loss_distillation")
    assert last(lines, "loss") == pytest.approx(total, rel=1e-4) and last(lines, "loss_distillation") > 0


def test_without_a_teacher_a_student_starts_elsewhere_and_has_the_loss_of_detection_alone(finished, alone, tmp_path):
    own, lines = taught(finished, tmp_path, "none")
    assert differ(own, alone) and not any("train/loss_distillation" in line for line in lines)


@pytest.mark.parametrize("points", [1, 4, 5])
def test_the_points_of_a_lesion_are_a_setting_and_one_point_teaches_nothing(finished, alone, tmp_path, points, capsys):
    own, lines = taught(finished, tmp_path, "lesion", points=points)
    assert ("is 0 with one point" in capsys.readouterr().out) == (points == 1)
    assert differ(own, alone) == (points > 1) == (last(lines, "loss_distillation") > 0)
    if points > 1:
        assert differ(own, leaves(finished / "student"))


def test_a_teacher_without_alignment_is_a_plain_detector(finished, toy, tmp_path):
    config = small_config()
    config.distill.intra_align = False
    run_experiment(config, tmp_path, stages=["teacher"])
    assert differ(leaves(tmp_path / "teacher"), leaves(finished / "teacher"))
    assert not any("train/align_pull" in line for line in read_metrics(tmp_path / "teacher" / "metrics.jsonl"))


@pytest.mark.parametrize("mode", ["classwise", "outputs"])
def test_the_anchors_of_a_retinanet_with_live_norms_learn_of_those_of_the_teacher(toy, tmp_path, mode, capsys):
    config = small_config(mode)
    network = ResNetConfig(depth=18, width=2, norm="batch_bn", num_classes=0, pixel_mean=(0.4,), pixel_std=(0.3,))
    with config.unlocked():
        config.distill.model = ConfigDict(asdict(plain(backbone=network, head_convs=1, head_width=4)))
    config.distill.steps, config.distill.distill_from, config.distill.eval_every = 2, 0, 0
    recipe, teacher = parse(config).recipes["distill"], tmp_path / "teacher"
    own = detectors.build(detection.settings(recipe, 1))
    described = describe(own, ("lesion",), recipe.test_loader(), True, (), Choice())
    save_params(teacher, jax.device_get(jax.jit(own.init)(jax.random.key(0))), described)
    config.stages.student.teacher = str(teacher)
    run_experiment(config, tmp_path / "run", stages=["student"])
    assert RECOMPILED not in capsys.readouterr().err
    student = load(tmp_path / "run" / "student" / "model")
    assert student.detector.name == "retinanet"
    followed = np.asarray(student.params["backbone"]["stem"]["conv"]["norm"]["var"])
    assert np.all(followed != 1) and np.all(followed > 0)
    lines = read_metrics(tmp_path / "run" / "student" / "metrics.jsonl")
    assert last(lines, "loss_distillation") > 0 and last(lines, "loss_box") > 0


def test_on_eight_devices_every_mode_is_the_program_of_one(tmp_path):
    quickly = {"JAX_NUM_CPU_DEVICES": "8", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    started = processes.start([*DEVICES, tmp_path], tmp_path / "log", **quickly)
    seen = processes.seen(tmp_path, [started])
    one, eight = seen["one"]["metrics"], seen["eight"]["metrics"]
    assert len({step["loss"] for step in one}) == len(one) > 1
    for wanted, got in zip(one, eight, strict=True):
        assert got == pytest.approx(wanted, rel=1e-7, abs=0) and all(value > 0 for value in wanted.values())
    assert not seen["one"]["gathers"]
    vectors = {elements for _, elements, _ in seen["eight"]["gathers"]}
    assert max(vectors) <= 8 * 4 * 4 < 8 * (32 // 8) ** 2 * 4, "points of lesions alone are sent, no map"
