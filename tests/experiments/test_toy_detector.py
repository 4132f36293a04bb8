"""A new detector is a file and a line in DETECTORS: a toy, tests/detection/toy_detector.py, in a whole experiment."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import cem_real
from elk_jax import files
from elk_jax.detection import detectors
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from elk_jax.tasks.detection.model import load
from elk_jax.training.loop import RECOMPILED
from tests.detection import toy_detector
from tests.refusals import refused


@pytest.fixture
def config(monkeypatch):
    """cem_real:tiny with the toy in place of a Faster R-CNN."""
    monkeypatch.setitem(detectors.DETECTORS, "toy", toy_detector.KIND)
    config = cem_real.get_config("tiny")
    with config.unlocked():
        config.detector.model = ConfigDict(asdict(toy_detector.ToyConfig(width=4)))
    config.detector.test_flips = ()
    return config


def test_it_is_chosen_by_its_name(config, tmp_path: Path):
    summaries = run_experiment(config, tmp_path / "run")
    assert summaries["evaluate"]["models"] == ["real"]
    trained = load(tmp_path / "run" / "real" / "model")
    assert trained.detector.name == trained.description.architecture == "toy"
    assert trained.detector.config.score_floor == config.detector.score_floor
    assert all(np.isfinite(leaf).all() for leaf in trained.params["classes"].values())
    lines = (tmp_path / "run" / "real" / "metrics.jsonl").read_text()
    assert "train/loss_class" in lines and "train/loss_rpn" not in lines
    assert files.read_json(tmp_path / "run" / "evaluate" / "real" / "evaluation.json")["counts"]["lesions"] > 0
    assert (tmp_path / "run" / "report.html").is_file()


def test_nothing_is_measured_where_validation_has_no_lesion(config, coco, tmp_path: Path, capsys):
    """A metric of 0 would look like one of a detector that finds nothing."""
    config.data.real.spec = coco("real", lesions=("train", "test"))
    config.detector.update(test_flips=("horizontal",), test_same=(0.5, 0.3), score_floor=0.0)
    found = run_experiment(config, tmp_path / "run", ["real"])["real"]
    assert found["best"] == {} and found["best_step"] == config.detector.steps
    assert list(found["views"].values()) == [None, None] and found["way"].endswith("IoU 0.5")
    printed = capsys.readouterr().out
    assert "mean_sensitivity not measured" in printed and "mean_sensitivity 0" not in printed


def test_a_one_stage_detector_takes_the_place_of_a_faster_rcnn(tmp_path: Path, capsys):
    """The variant of every experiment that trains detectors: mirrored views, evaluation and report come with it."""
    config = cem_real.get_config("tiny,efficientdet")
    assert config.detector.test_flips
    run_experiment(config, tmp_path / "run")
    assert RECOMPILED not in capsys.readouterr().err  # one for the only canvas
    trained = load(tmp_path / "run" / "real" / "model")
    assert trained.detector.name == "efficientdet" and trained.description.operating_points
    assert trained.detector.config.anchor_sizes == config.detector.model.anchor_sizes
    assert "train/loss_box" in (tmp_path / "run" / "real" / "metrics.jsonl").read_text()
    assert (tmp_path / "run" / "report.html").is_file()


def test_its_settings_are_checked(config):
    config.detector.model.width = 0
    with refused(0, where="config.detector.model.width"):
        parse(config)
    config.detector.model.name = "unknown"
    with refused("faster_rcnn", "toy", where="config.detector.model.name"):
        parse(config)
