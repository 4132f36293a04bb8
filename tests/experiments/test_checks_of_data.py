"""Images, classes, lesions and weights are looked at before the first stage; nothing is trained here."""

from __future__ import annotations

import numpy as np
import pytest

from configs import cem_mixed, cem_real, inpaint_cem
from elk_jax.errors import UserError
from elk_jax.experiments import experiment
from elk_jax.tasks.detection import settings as detection
from elk_jax.weights import model_folder as store
from tests.experiments.checks import assert_refused, on_files


def test_data_of_every_stage_is_looked_at_first(ran, coco, tmp_path):
    good = coco("real")
    for changes, words in {
        ("stages.evaluate.split", "tset"): r"no image in split 'tset'.*test \(1\)",
        ("data.real.where", "is_mass=true"): r"no image has the field 'is_mass'",
        ("data.real.spec", "coco:/nowhere.json"): r"/nowhere\.json",
        ("data.real.spec", ""): r"data source 'real' is not set",
        ("data.on_error", "ignore"): r"on_error is 'ignore'",
        ("stages.real.init_from", "/nowhere"): r"no model here \(/nowhere\)",
    }.items():
        config = on_files(cem_real, real=good)
        config.update_from_flattened_dict(dict([changes]))
        assert_refused(config, tmp_path / "run", words)
    words = r"no model here \(.*run/real/model\)"
    assert_refused(on_files(cem_real, real=good), tmp_path / "run", words, ["evaluate"])
    config = cem_real.get_config("tiny")
    config.stages.evaluate.split = "tset"
    assert_refused(config, tmp_path / "run", r"a phantom has no split 'tset'")
    assert not ran


def test_a_source_that_is_given_is_read(coco, tmp_path):
    config = inpaint_cem.get_config("tiny")
    config.data.canvases.spec = coco("healthy")
    words = r"no stage reads the data source 'canvases'.*config.data.canvases.spec.*lesions.canvases=canvases"
    assert_refused(config, tmp_path / "run", words)
    config.stages.lesions.canvases = "canvases"
    experiment.check(config)


def test_classes_are_those_of_the_training(coco, tmp_path):
    config = on_files(real=coco("real"), synthetic=coco("painted", {"train": ("E",)}, category="cyst"))
    assert_refused(config, tmp_path / "run", r"'synthetic' has the classes cyst, 'real' has mass.*stage synthetic")


def test_without_lesions_nothing_is_trained(ran, coco, tmp_path):
    config = on_files(cem_real, real=coco("healthy", lesions=("val", "test")))
    assert_refused(config, tmp_path / "run", r"no lesion in the images of the split 'train' \(stage real, data real\)")
    experiment.run(on_files(cem_real, real=coco("unknown", lesions=("train",))), tmp_path / "run")
    assert ran == ["real", "evaluate"]
    config = on_files(inpaint_cem, real=coco("unknown", lesions=("train",)))
    assert_refused(config, tmp_path / "painting", r"no lesion in the images of the split 'val'")


def test_what_only_the_stage_can_see_is_refused_there(coco, monkeypatch, tmp_path, capsys):
    healthy = on_files(cem_real, real="phantom:size=64,count=12,healthy_fraction=1.0")
    with pytest.raises(UserError, match=r"no lesion in the images of the split 'train' \(real\)"):
        experiment.run(healthy, tmp_path / "healthy")
    config = on_files(inpaint_cem, real=coco("real"))  # boxes of 16 px
    config.inpainter.closeups.window = 12  # with a margin of 0.15 on each side
    with pytest.raises(UserError, match=r"none of the 2 lesions has sides below 9 px"):
        experiment.run(config, tmp_path / "painting")

    def enough(*arguments):
        raise UserError("enough")

    monkeypatch.setattr(detection, "compile_predictor", enough)
    with pytest.raises(UserError, match="enough"):
        experiment.run(on_files(cem_real, real=coco("unknown", lesions=("train",))), tmp_path / "unknown")
    assert "warning: no lesion in validation" in capsys.readouterr().out


def test_weights_and_layers_are_looked_at_first(ran, coco, tmp_path):
    """Before the inpainter of cem_mixed learns for hours, that is."""
    config = cem_mixed.get_config("tiny")
    config.data.real.spec = coco("real")
    config.stages.mixed.init_from = str(tmp_path / "theirs")
    model = dict(detection.model_config(config.detector.model, pixel_scale=1.0).__dict__)
    kernel = np.zeros((7, 7, 1, 8), np.float32)
    said = {"model": model, "absent": [r"^(rpn|fpn|box_head|backbone/res|backbone/stem/conv/norm)"]}
    store.save_params(tmp_path / "theirs", {"backbone": {"stem": {"conv": {"kernel": kernel}}}}, said)
    words = r"trained with pixel_scale 1\.0, the recipe has 255\.0 .*--config\.detector\.model\.pixel_scale=1\.0"
    assert_refused(config, tmp_path / "run", words)
    store.save_params(tmp_path / "theirs", {"backbone": {"stem": {"conv": {"kernel": kernel[..., :4]}}}}, said)
    assert_refused(config, tmp_path / "run", r"stem/conv/kernel is \(7, 7, 1, 4\) in the weights and \(7, 7, 1, 8\)")

    config.stages.mixed.init_from = ""
    config.detector.optimizer.frozen = ("backbone/stem",)
    words = r"real starts from random weights, and backbone/stem would keep them .*optimizer\.frozen.*init_from=DIR"
    assert_refused(config, tmp_path / "run", words)
    for stage in ("real", "synthetic", "mixed"):
        config.stages[stage].init_from = str(tmp_path / "theirs")
    store.save_params(tmp_path / "theirs", {}, {"absent": [".*"]})
    for key, value in (("frozen", ("backbone/stm",)), ("multipliers", (("backbone/stm", 0.1),))):
        config.detector.optimizer[key] = value
        words = rf"config\.detector: the expression 'backbone/stm' matches no parameter \(optimizer\.{key}\)"
        assert_refused(config, tmp_path / "run", words)
        config.detector.optimizer[key] = ()
    assert ran == []


def test_what_is_trained_anew_or_follows_from_the_data_is_not_looked_at_before(ran, coco, tmp_path):
    config = on_files(cem_mixed, real=coco("real"), synthetic=coco("painted", {"train": ("E",)}))
    config.stages.mixed.init_from = "real"
    folder, stem = tmp_path / "run", {"backbone": {"stem": {"conv": {"kernel": np.zeros((7, 7, 1, 4), np.float32)}}}}
    store.save_params(folder / "real" / "model", stem, {})  # of a training with other settings, which starts again
    experiment.run(config, folder)
    assert ran == ["real", "synthetic", "mixed", "evaluate"]

    theirs = detection.model_config(config.detector.model, background="first").__dict__
    logits = {"box_head": {"class_logits": {"kernel": np.zeros((32, 2), np.float32)}}}  # one class, as the recipe says
    said = {"model": theirs, "absent": [r"^(backbone|rpn|fpn|box_head/fc)"]}
    store.save_params(tmp_path / "theirs", logits, said)
    config.stages.mixed.init_from = str(tmp_path / "theirs")
    experiment.run(config, tmp_path / "other")
