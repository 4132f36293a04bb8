"""From aligned pairs to a translator to its evaluation and report, through the real stages at a tiny size."""

from __future__ import annotations

import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

from configs import bridge_le_to_cem
from elk_jax import files
from elk_jax.data.batches import pairs
from elk_jax.errors import UserError
from elk_jax.experiments import experiment
from elk_jax.tasks.translation import model as translation_model
from elk_jax.tasks.translation import settings as translation
from elk_jax.training.writer import read_metrics
from elk_jax.weights import model_folder as store


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bridge")
    experiment.run(bridge_le_to_cem.get_config("tiny"), folder)
    return folder


def test_training_leaves_curves_pictures_and_a_model(run):
    lines = read_metrics(run / "translator" / "metrics.jsonl")
    assert {"train/loss", "train/clean_error", "eval/loss"} <= {key for line in lines for key in line}
    picture = cv2.imread(str(run / "translator" / "pictures" / "translated-000004.png"))
    assert picture.shape[:2] == (3 * 32, 6 * 32)
    parts, params, description = translation_model.load(run / "translator" / "model")
    assert parts.model.size == 32 and parts.model.condition == "source" and parts.model.unet.in_channels == 32
    assert set(params) == {"unet"} and description["trained"]["step"] == 4
    assert 0 < parts.greys.subtracted_mean < 1 and parts.greys.low_energy_std > 0
    assert translation_model.find(run) == run / "translator" / "model"


def test_the_evaluation_counts_every_tile_once(run):
    config = bridge_le_to_cem.get_config("tiny")
    settings = translation.pair_config(config.bridge.pairs, 32)
    held_out = translation.open_pairs(config.data, ("pairs",), "test", config.seed, settings, 32)
    evaluation = files.read_json(run / "evaluate" / "evaluation.json")
    counts = evaluation["counts"]
    assert counts["tiles"] == len(held_out) and counts["patients"] == len({i.patient_id for i in held_out.infos})
    assert list(evaluation["measures"]) == ["translator", "low energy, matched", "mean grey", "real images"]
    for name, found in evaluation["measures"].items():
        for key, estimate in found.items():
            assert estimate["low"] <= estimate["value"] <= estimate["high"], (name, key)
    # the mean everywhere has no lesions, and its error is what the greys of the training say
    mean, real = evaluation["measures"]["mean grey"], evaluation["measures"]["real images"]
    assert mean["lesion_contrast"]["value"] == 0 and real["lesion_contrast"]["value"] > 0
    level = translation_model.load(run / "translator" / "model")[0].greys.subtracted_mean
    errors = [
        np.abs(contrast[mask] - np.float32(level)).mean()
        for low, contrast in (held_out[i] for i in range(len(held_out)))
        for mask in [translation.breast_mask(low)]
    ]
    assert mean["mae"]["value"] == pytest.approx(np.mean(errors), abs=1e-6)
    difference = evaluation["differences"]["translator"]["mean grey"]["mae"]
    values = [evaluation["measures"][name]["mae"]["value"] for name in ("translator", "mean grey")]
    assert difference["difference"] == pytest.approx(values[0] - values[1], abs=1e-9)


def test_the_report_shows_measures_gallery_and_progress(run):
    page = (run / "report.html").read_text()
    for text in ("Translated images", "low energy, matched", "Progress of the translator", "Translator training"):
        assert text in page
    pictures = files.read_json(run / "evaluate" / "evaluation.json")["pictures"]
    assert 0 < len(pictures) <= 12
    assert cv2.imread(str(run / "evaluate" / "pictures" / pictures[0]["file"]), 0).shape == (32, 3 * 32)


def test_an_interrupted_training_goes_on_to_the_same_model(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    stage = copy / "translator"
    shutil.rmtree(stage / "checkpoints" / "4")
    shutil.rmtree(stage / "model")
    (stage / "finished.json").unlink()
    experiment.run(bridge_le_to_cem.get_config("tiny"), copy, stages=["translator"])
    whole, again = (store.flatten(store.load_params(f / "translator" / "model")[0]) for f in (run, copy))
    for name, leaf in whole.items():
        np.testing.assert_array_equal(again[name], leaf, err_msg=name)


def test_a_training_does_not_go_on_with_other_validation_pairs(run, tmp_path, monkeypatch):
    copy, open_pairs = shutil.copytree(run, tmp_path / "run"), translation.open_pairs
    (copy / "translator" / "finished.json").unlink()

    def others(data, names, split, *rest):
        found = open_pairs(data, names, split, *rest)
        infos = (replace(found.infos[0], patient_id="P"), *found.infos[1:])
        return replace(found, infos=infos) if split == "val" else found

    monkeypatch.setattr(translation, "open_pairs", others)
    with pytest.raises(UserError, match="made with another validation split"):
        experiment.run(bridge_le_to_cem.get_config("tiny"), copy, stages=["translator"])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model.condition", "text", "condition is 'text'"),
        ("model.answer", "noise", "answer is 'noise'"),
        ("model.size", 30, "tiles of 30 px"),
        ("model.bridge.steps", 1, "a bridge of 1 steps"),
        ("sampler.steps", 5000, "5000 sampling steps"),
        ("loss", "l3", "loss is 'l3'"),
        ("choose", "first", "choose is 'first'"),
        ("pairs.max_black", 2.0, "pairs.max_black"),
        ("pairs.stride", 64, "pairs.stride"),
        ("validation_pairs", -1, "validation_pairs is -1"),
    ],
)
def test_values_that_cannot_be_are_named_before_anything_is_opened(key, value, words):
    config = bridge_le_to_cem.get_config("tiny")
    with config.unlocked():
        config.bridge.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=r"config\.bridge") as caught:
        experiment.check(config)
    assert words in str(caught.value)


def test_published_and_other_sizes_are_valid():
    for variant in (None, "small", "paper"):
        experiment.check(bridge_le_to_cem.get_config(variant))
    with pytest.raises(ValueError, match="no variant 'fewshot'"):
        bridge_le_to_cem.get_config("tiny,fewshot")


def test_data_without_pairs_and_another_model_are_refused(run, tmp_path):
    config = bridge_le_to_cem.get_config("tiny")
    config.data.pairs.spec = "phantom:size=64,count=24,modality=low_energy"
    with pytest.raises(UserError, match="pairs of phantoms of one modality"):
        translation.open_pairs(config.data, ("pairs",), "val", 0, pairs.PairConfig(), 32)
    folder = shutil.copytree(run / "translator" / "model", tmp_path / "model")
    files.write_json(folder / "model.json", files.read_json(folder / "model.json") | {"architecture": "inpainter"})
    with pytest.raises(UserError, match="a model of 'inpainter', not a translator"):
        translation_model.load(folder)


def test_weights_of_another_bridge_are_refused(run, tmp_path):
    config = bridge_le_to_cem.get_config("tiny")
    config.stages.translator.init_from = str(run / "translator" / "model")
    config.bridge.model.bridge.max_variance = 0.5
    words = r"with bridge\.max_variance 1\.0, the recipe has 0\.5 .*--config\.bridge\.model\.bridge\.max_variance=1\.0"
    with pytest.raises(UserError, match=words):
        experiment.run(config, tmp_path, stages=["translator"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"low_energy": None}, "the field 'low_energy' is missing"),
        ({"low_energy": "low/gone.png"}, "gone.png of image 0 is missing"),
        ({"width": 16, "height": 16}, "tiles of 32 px in an image of 16 x 16 px"),
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
    with pytest.raises(UserError, match=words):
        experiment.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
