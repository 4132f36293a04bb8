"""Images, classes, lesions and weights are looked at before the first stage; nothing is trained here."""

from __future__ import annotations

import numpy as np
import pytest

from configs import cem_mixed, cem_real, comoto, inpaint_cem
from elk_jax.detection.faster_rcnn_config import FasterRCNNConfig
from elk_jax.errors import UserError
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from elk_jax.fields import build
from elk_jax.tasks.detection import predict
from elk_jax.weights import model_folder
from tests.experiments.checks import assert_refused, on_files
from tests.models import save_imported
from tests.refusals import refused


def test_data_of_every_stage_is_looked_at_first(ran, coco, tmp_path):
    good = coco("real")
    for key, value, words, where in (
        ("stages.evaluate.split", "tset", ("'tset'", "test (1)"), ""),
        ("data.real.where", "is_mass=true", ("'is_mass'",), ""),
        ("data.real.spec", "coco:/nowhere.json", (), "/nowhere.json"),
        ("data.real.spec", "", ("'real'",), "config.data.real.spec"),
        ("data.on_error", "ignore", ("'ignore'",), "config.data.on_error"),
        ("stages.real.init_from", "/nowhere", ("model",), "/nowhere"),
    ):
        config = on_files(cem_real, real=good)
        config.update_from_flattened_dict({key: value})
        assert_refused(config, tmp_path / "run", *words, where=where)
    config = on_files(cem_real, real=good)
    assert_refused(config, tmp_path / "run", "model", where="run/real/model", stages=["evaluate"])
    config = cem_real.get_config("tiny")
    config.stages.evaluate.split = "tset"
    assert_refused(config, tmp_path / "run", "phantom", "'tset'")
    config = comoto.get_config("tiny")  # its second stage reads them
    config.data.dbt.patients, config.data.dbt.train_share = 999, 1.0
    assert_refused(config, tmp_path / "run", 999, 4, where="config.data.dbt.patients")
    assert not ran


def test_image_files_of_every_stage_are_there(ran, coco, tmp_path):
    spec = coco("real")
    lost = tmp_path / "images" / "4.png"  # of the test patient
    lost.unlink()
    config = on_files(cem_real, real=spec)
    assert_refused(config, tmp_path / "run", lost.name, where="real")
    assert ran == []
    config.data.on_error = "skip"  # the stage that reads it says what it skips
    run_experiment(config, tmp_path / "run")
    assert ran == ["real", "evaluate"]


@pytest.mark.parametrize("experiment, variant", [(cem_mixed, "quick"), (inpaint_cem, "private")])
def test_lesions_in_files_are_not_painted_into_phantoms(ran, coco, tmp_path, experiment, variant):
    config = experiment.get_config(variant)
    config.data.real.spec, config.data.real.patients = coco("real"), 0
    assert_refused(config, tmp_path / "run", "'real'", "phantom", where="config.data.canvases.spec")
    assert ran == []


def test_lesions_are_compared_by_a_detector(ran, coco, tmp_path):
    model_folder.save_params(tmp_path / "theirs", {}, {"architecture": "resnet", "model": {}})
    config = cem_mixed.get_config("tiny")
    config.stages.lesion_quality.features = str(tmp_path / "theirs")
    assert_refused(config, tmp_path / "run", "detector", where="theirs")
    assert ran == []


def test_a_source_that_is_given_is_read(coco, tmp_path):
    config = inpaint_cem.get_config("tiny")
    config.data.canvases.spec = coco("healthy")
    assert_refused(config, tmp_path / "run", "'canvases'", where="config.data.canvases.spec")
    config.stages.lesions.canvases = "canvases"
    parse(config)


def test_classes_are_those_of_the_training(coco, tmp_path):
    config = on_files(real=coco("real"), synthetic=coco("painted", {"train": ("E",)}, category="cyst"))
    assert_refused(config, tmp_path / "run", "'synthetic'", "cyst", "'real'", "mass", where="stage synthetic")


def test_without_lesions_nothing_is_trained(ran, coco, tmp_path):
    config = on_files(cem_real, real=coco("healthy", lesions=("val", "test")))
    assert_refused(config, tmp_path / "run", "lesion", "'train'", where="stage real, data real")
    run_experiment(on_files(cem_real, real=coco("unknown", lesions=("train",))), tmp_path / "run")
    assert ran == ["real", "evaluate"]
    config = on_files(inpaint_cem, real=coco("unknown", lesions=("train",)))
    assert_refused(config, tmp_path / "painting", "lesion", "'val'")


def test_what_only_the_stage_can_see_is_refused_there(coco, monkeypatch, tmp_path, capsys):
    healthy = on_files(cem_real, real="phantom:size=64,count=12,healthy_fraction=1.0")
    with refused("lesion", "'train'", where="real"):
        run_experiment(healthy, tmp_path / "healthy")
    config = on_files(inpaint_cem, real=coco("real"))  # boxes of 16 px
    config.inpainter.closeups.window = 12  # with a margin of 0.15 on each side
    with refused(2, 9):
        run_experiment(config, tmp_path / "painting")

    def enough(*arguments):
        raise UserError("enough")

    monkeypatch.setattr(predict, "compile_predictor", enough)
    with refused("enough"):
        run_experiment(on_files(cem_real, real=coco("unknown", lesions=("train",))), tmp_path / "unknown")
    assert "warning: no lesion in validation" in capsys.readouterr().out


def test_weights_and_layers_are_checked_first(ran, coco, tmp_path):
    """Before the inpainter of cem_mixed learns for hours, that is."""
    config = cem_mixed.get_config("tiny")
    config.data.real.spec = coco("real")
    config.stages.mixed.init_from = str(tmp_path / "theirs")
    model = config.detector.model.to_dict()
    model["backbone"]["pixel_scale"] = 1.0
    kernel = np.zeros((7, 7, 1, 8), np.float32)
    said = build(FasterRCNNConfig, model), [r"^(rpn|fpn|box_head|backbone/res|backbone/stem/conv/norm)"]
    save_imported(tmp_path / "theirs", {"backbone": {"stem": {"conv": {"kernel": kernel}}}}, *said)
    words = "pixel_scale", 1.0, 255.0, "--config.detector.model.backbone.pixel_scale=1.0"
    assert_refused(config, tmp_path / "run", *words, where="theirs")
    save_imported(tmp_path / "theirs", {"backbone": {"stem": {"conv": {"kernel": kernel[..., :4]}}}}, *said)
    assert_refused(config, tmp_path / "run", "stem/conv/kernel", "(7, 7, 1, 4)", "(7, 7, 1, 8)", where="theirs")

    config.stages.mixed.init_from = ""
    config.detector.optimizer.frozen = ("backbone/stem",)
    words = "real", "backbone/stem", "init_from"
    assert_refused(config, tmp_path / "run", *words, where="config.detector.optimizer.frozen")
    for stage in ("real", "synthetic", "mixed"):
        config.stages[stage].init_from = str(tmp_path / "theirs")
    save_imported(tmp_path / "theirs", {}, said[0], absent=[".*"])
    for key, value in (("frozen", ("backbone/stm",)), ("multipliers", (("backbone/stm", 0.1),))):
        config.detector.optimizer[key] = value
        assert_refused(config, tmp_path / "run", "'backbone/stm'", where=f"config.detector.optimizer.{key}")
        config.detector.optimizer[key] = ()
    assert ran == []


def test_stages_of_a_backbone_are_not_frozen_without_weights(ran, coco, tmp_path):
    config = cem_real.get_config("tiny,lite0")
    config.data.real.spec = coco("real")
    assert_refused(config, tmp_path / "run", "backbone/stage1_0", "init_from", where="config.detector.model")
    assert ran == []


def test_what_is_trained_anew_or_follows_from_the_data_is_not_looked_at_before(ran, coco, tmp_path):
    config = on_files(cem_mixed, real=coco("real"), synthetic=coco("painted", {"train": ("E",)}))
    config.stages.mixed.init_from = "real"
    folder, stem = tmp_path / "run", {"backbone": {"stem": {"conv": {"kernel": np.zeros((7, 7, 1, 4), np.float32)}}}}
    model_folder.save_params(folder / "real" / "model", stem, {})  # of a training that starts again
    run_experiment(config, folder)
    assert ran == ["real", "synthetic", "mixed", "evaluate"]

    theirs = config.detector.model.to_dict() | {"background": "first"}
    logits = {"box_head": {"class_logits": {"kernel": np.zeros((32, 2), np.float32)}}}  # one class, as the recipe says
    absent = [r"^(backbone|rpn|fpn|box_head/fc)"]
    save_imported(tmp_path / "theirs", logits, build(FasterRCNNConfig, theirs), absent)
    config.stages.mixed.init_from = str(tmp_path / "theirs")
    run_experiment(config, tmp_path / "other")
