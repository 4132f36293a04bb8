"""From aligned pairs to a translator, through the real stage at a tiny size."""

from __future__ import annotations

import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

from configs import bridge_le_to_cem
from elk_jax import files
from elk_jax.data.batches.pairs import PairConfig
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from elk_jax.tasks import TASKS, find_model
from elk_jax.tasks.run import Run
from elk_jax.tasks.translation import model as translators
from elk_jax.tasks.translation import train
from elk_jax.training.writer import read_metrics
from tests.refusals import refused
from tests.tasks.checks import assert_same_weights, resumed


def test_training_leaves_curves_pictures_and_a_model(run):
    lines = read_metrics(run / "translator" / "metrics.jsonl")
    assert {"train/loss", "train/clean_error", "eval/loss"} <= {key for line in lines for key in line}
    picture = cv2.imread(str(run / "translator" / "pictures" / "translated-000004.png"))
    assert picture.shape[:2] == (3 * 32, 6 * 32)
    parts, params, description = translators.load(run / "translator" / "model")
    assert parts.model.size == 32 and parts.model.condition == "source" and parts.model.unet.in_channels == 32
    assert set(params) == {"unet"} and description.trained.step == 4
    assert 0 < parts.greys.subtracted_mean < 1 and parts.greys.low_energy_std > 0
    assert find_model(run, None, lambda task: True) == (run / "translator" / "model", TASKS["translation"])


def test_an_interrupted_training_is_resumed_to_the_same_model(run, tmp_path):
    copy = resumed(run, bridge_le_to_cem.get_config("tiny"), "translator", 4, tmp_path / "run")
    assert_same_weights(run / "translator", copy / "translator")


def test_a_training_is_not_resumed_with_other_validation_pairs(run, tmp_path, monkeypatch):
    copy, open_pairs = shutil.copytree(run, tmp_path / "run"), train.open_pairs
    (copy / "translator" / "finished.json").unlink()

    def others(run, sources, split, *rest):
        found = open_pairs(run, sources, split, *rest)
        infos = (replace(found.infos[0], patient_id="P"), *found.infos[1:])
        return replace(found, infos=infos) if split == "val" else found

    monkeypatch.setattr(train, "open_pairs", others)
    with refused("validation split", where=copy / "translator" / "checkpoints"):
        run_experiment(bridge_le_to_cem.get_config("tiny"), copy, stages=["translator"])


def test_data_without_pairs_are_refused(tmp_path):
    config = bridge_le_to_cem.get_config("tiny")
    config.data.pairs.spec = "phantom:size=64,count=24,modality=low_energy"
    with refused("pairs", "modality", where=config.data.pairs.spec):
        train.open_pairs(Run(parse(config), tmp_path, mesh=None), ("pairs",), "val", PairConfig(), 32)


def test_weights_of_another_bridge_are_refused(run, tmp_path):
    config = bridge_le_to_cem.get_config("tiny")
    config.stages.translator.init_from = str(run / "translator" / "model")
    config.bridge.model.bridge.max_variance = 0.5
    flag = "--config.bridge.model.bridge.max_variance=1.0"
    with refused("bridge.max_variance", 0.5, flag, where=run / "translator" / "model"):
        run_experiment(config, tmp_path, stages=["translator"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"low_energy": None}, ["'low_energy'", "missing"]),
        ({"low_energy": "low/gone.png"}, ["gone.png", "image 0", "missing"]),
        ({"width": 16, "height": 16}, [32, "16 x 16 px"]),
    ],
)
def test_pairs_are_looked_at_before_the_first_stage(tmp_path, change, words):
    for name in ("low", "subtracted"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(3):
            cv2.imwrite(str(tmp_path / "images" / name / f"{i}.png"), np.full((32, 32), 90, np.uint8))
    images = [
        {"id": i, "file_name": f"subtracted/{i}.png", "low_energy": f"low/{i}.png", "width": 32, "height": 32,
         "patient_id": f"P{i}", "split": split} | (change if split == "train" else {})
        for i, split in enumerate(("train", "val", "test"))
    ]  # fmt: skip
    categories = [{"id": 1, "name": "lesion"}]
    files.write_json(tmp_path / "tiles.json", {"images": images, "annotations": [], "categories": categories})
    config = bridge_le_to_cem.get_config("tiny")
    config.data.pairs.spec = f"coco:{tmp_path / 'tiles.json'}"
    with refused(*words):
        run_experiment(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
