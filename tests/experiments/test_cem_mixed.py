"""The whole system through its real entry points, in its smallest size: every stage, file and second start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from configs import cem_mixed, cem_real, cem_synthetic, mammo_pretrain
from elk_jax import files
from elk_jax.data.sources import coco
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.evaluation import operating
from elk_jax.evaluation.evaluate import evaluate_detections, scalars
from elk_jax.experiments.experiment import run_experiment
from elk_jax.tasks import find_model
from elk_jax.tasks.detection.evaluate import EvaluateSettings, evaluate_source
from elk_jax.tasks.detection.model import load, with_views
from elk_jax.tasks.detection.predict import PredictSettings, detect_with, predict_files
from elk_jax.training.mesh import make_mesh
from tests.refusals import refused


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """A finished run of cem_mixed:tiny."""
    folder = tmp_path_factory.mktemp("runs") / "mixed"
    run_experiment(cem_mixed.get_config("tiny"), folder)
    return folder


def test_a_run_leaves_everything_behind(mixed):
    assert {"config.json", "versions.json", "report.html"} <= {p.name for p in mixed.iterdir()}
    for stage in ("real", "synthetic", "mixed"):
        lines = [json.loads(line) for line in (mixed / stage / "metrics.jsonl").read_text().splitlines()]
        losses = [line["train/loss"] for line in lines if "train/loss" in line]
        assert len(losses) == 2 and np.isfinite(losses).all()
        assert any("eval/mean_sensitivity" in line for line in lines)
        assert list((mixed / stage / "tensorboard").iterdir()) and (mixed / stage / "checkpoints").is_dir()
        evaluation = files.read_json(mixed / "evaluate" / stage / "evaluation.json")
        assert {"mean_sensitivity", "sensitivity_at", "aufroc_1", "aufroc_3", "ap50"} <= evaluation.keys()
        assert isinstance(files.read_json(mixed / "evaluate" / stage / "predictions.json"), list)
    html = (mixed / "report.html").read_text()
    assert "mixed" in html and "data:image/jpeg" in html


def test_a_detector_of_painted_lesions_alone(mixed, tmp_path):
    """With a set that was painted before: the stages of the inpainter are those of cem_mixed."""
    config = cem_synthetic.get_config("tiny")
    config.data.synthetic.spec = f"coco:{mixed / 'lesions' / 'synthetic.json'}"
    summaries = run_experiment(config, tmp_path / "run", stages=["synthetic", "evaluate"])
    assert summaries.keys() == {"synthetic", "evaluate"}
    again, before = (files.read_json(folder / "evaluate" / "synthetic" / "evaluation.json") for folder in
                     (tmp_path / "run", mixed))  # fmt: skip
    assert scalars(again) == pytest.approx(scalars(before)), "the same data, recipe and seed as in cem_mixed"


def test_a_detector_of_low_energy_images_starts_one_of_enhanced_ones(tmp_path):
    summaries = run_experiment(mammo_pretrain.get_config("tiny"), tmp_path / "mammo")
    assert summaries["mammo"]["data"]["train"]["images"] > 0 and (tmp_path / "mammo" / "report.html").is_file()
    evaluation = files.read_json(tmp_path / "mammo" / "evaluate" / "mammo" / "evaluation.json")
    assert np.isfinite(list(scalars(evaluation).values())).all() and evaluation["counts"]["lesions"] > 0


def find(workdir: Path, stage: str | None = None) -> Path:
    """The model folder that launch/predict.py takes."""
    folder, task = find_model(workdir, stage, lambda task: task.predict)
    assert task.name == "detection"
    return folder


def test_the_model_says_what_it_is(mixed):
    detector, params, description = load(find(mixed))
    assert find(mixed) == mixed / "mixed" / "model"
    assert find(mixed, "real") == find(mixed / "real") == mixed / "real" / "model"
    assert detector.config.num_classes == 1 and description.trained.on == ("real", "synthetic")
    assert all(np.isfinite(leaf).all() for leaf in _leaves(params))
    with refused("'other'", "real, synthetic, mixed", where=mixed):
        find(mixed, "other")
    with refused(where=mixed / "evaluate"):
        find(mixed / "evaluate")


def test_a_finished_run_is_not_repeated_and_other_settings_are_refused(mixed):
    before = (mixed / "real" / "finished.json").read_text(), (mixed / "real" / "metrics.jsonl").stat().st_mtime_ns
    run_experiment(cem_mixed.get_config("tiny"), mixed)
    assert before == (
        (mixed / "real" / "finished.json").read_text(),
        (mixed / "real" / "metrics.jsonl").stat().st_mtime_ns,
    )
    other = cem_mixed.get_config("tiny")
    other.detector.steps = 6
    with refused("stage real", "recipe.steps", 4, 6, where=mixed):
        run_experiment(other, mixed)
    assert files.read_json(mixed / "config.json")["detector"]["steps"] == 4, "a refused start leaves no trace"


def test_training_validates_as_testing_tests(mixed):
    """Breasts are cut out without a look at the truth: the model's own detections give what chose the checkpoint."""
    config = cem_mixed.get_config("tiny")
    recipe, folder = config.detector, mixed / "real" / "model"
    assert recipe.crop_to_breast
    validation, trained = open_source(SourceSpec(config.data.real.spec), "val"), load(folder)
    results = detect_with(with_views(trained, flips=()), validation, make_mesh(), recipe.score_floor)
    evaluation = evaluate_detections(results, score_floor=recipe.choose_score_floor, resamples=0)
    chosen = files.read_json(mixed / "real" / "finished.json")["summary"]["best"]
    assert any(chosen.values()) and scalars(evaluation) == pytest.approx(chosen, abs=1e-6)
    # operating points are of the detector as it will be used: with the mirrored views
    results = detect_with(trained, validation, make_mesh(), recipe.score_floor)
    choice = operating.choose(results, score_floor=recipe.score_floor, resamples=0)
    thresholds = lambda points: {point.false_positives_per_image: point.threshold for point in points}
    assert thresholds(trained.description.operating_points) == pytest.approx(thresholds(choice.points))


def test_predictions_evaluated_from_their_file_give_the_same_numbers(mixed, tmp_path):
    config = files.read_json(mixed / "config.json")
    own = files.read_json(mixed / "evaluate" / "real" / "evaluation.json")
    predictions = str(mixed / "evaluate" / "real" / "predictions.json")
    again = evaluate_source(
        data=SourceSpec(config["data"]["real"]["spec"]),
        split="test",
        on_error="stop",
        model=None,
        output=tmp_path / "again",
        settings=EvaluateSettings(predictions, against=str(mixed), bootstrap=50),  # its last stage
    )
    compared = files.read_json(tmp_path / "again" / "comparisons.json")["predictions"]["mean_sensitivity"]
    theirs = files.read_json(mixed / "evaluate" / "mixed" / "evaluation.json")["mean_sensitivity"]["value"]
    assert compared["first"] == pytest.approx(theirs, abs=1e-3)
    assert compared["second"] == pytest.approx(own["mean_sensitivity"]["value"], abs=1e-3)
    for name in ("mean_sensitivity", "aufroc_3", "ap50", "ap10"):
        assert again[name]["value"] == pytest.approx(own[name]["value"], abs=1e-3)
    assert (tmp_path / "again" / "report.html").exists()


def test_prediction_on_files_of_any_kind(mixed, tmp_path, capsys):
    import cv2

    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), rng.integers(0, 65535, (150, 90), dtype=np.uint16))
    cv2.imwrite(str(tmp_path / "in" / "b.jpg"), rng.integers(0, 255, (64, 200), dtype=np.uint8))
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "in" / "notes.txt").write_text("none")
    common = {"model": find(mixed), "inputs": [str(tmp_path / "in")], "output": tmp_path / "out"}
    common["decoding"] = SourceSpec()
    with refused(where="broken.png"):
        predict_files(**common, on_error="stop", settings=PredictSettings())
    assert not (tmp_path / "out").exists()
    results = predict_files(**common, on_error="skip", settings=PredictSettings(threshold=0.0))
    assert [Path(r.image_id).name for r in results] == ["a.png", "b.jpg"]
    assert "skipped 1 files" in capsys.readouterr().out
    entries = files.read_json(tmp_path / "out" / "findings.json")
    assert len(entries) == sum(len(r.scores) for r in results) and all(e["finding"] for e in entries)
    for result, (height, width) in zip(results, [(150, 90), (64, 200)]):
        assert (result.boxes >= 0).all() and (result.boxes <= [width, height, width, height]).all()
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 2
    assert (tmp_path / "out" / "findings.csv").read_text().startswith("file,class,x0")


def test_an_unreadable_image_is_skipped_counted_and_listed(mixed, tmp_path, capsys):
    """The phantoms of the other run, which compiled the same detector, as files; one of them is cut short."""
    import cv2

    config = cem_real.get_config("tiny")
    phantoms = open_source(SourceSpec(config.data.real.spec))
    images, broken = files.make_folder(tmp_path / "images"), phantoms.infos[0]
    for i, info in enumerate(phantoms.infos):
        cv2.imwrite(str(images / info.file_name), np.round(phantoms[i].image * 255).astype(np.uint8))
    (images / broken.file_name).write_bytes((images / broken.file_name).read_bytes()[:200])
    coco.write_coco(tmp_path / "data.json", phantoms.infos, phantoms.classes)

    config.data.real.spec = f"coco:{tmp_path / 'data.json'}"
    config.data.on_error = "skip"
    summaries = run_experiment(config, tmp_path / "run")
    said = capsys.readouterr().out
    of_split = sum(info.split == "train" for info in phantoms.infos)
    assert f"train: {of_split - 1} images" in said and said.count("skipped image ") == 1
    ((_, reason),) = summaries["real"]["skipped"]
    assert summaries["evaluate"]["skipped"] == [] and broken.file_name in reason
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Skipped images (1)" in page and page.count(broken.file_name) == 1


def test_weights_of_another_modality_start_a_detector(mixed, tmp_path):
    """The transfer: the first evaluation of a run of no learning equals the weights that it started from."""
    config = cem_real.get_config("tiny")
    config.stages.real.init_from = str(mixed / "mixed" / "model")
    config.detector.schedule.base = 0.0
    run_experiment(config, tmp_path / "run", stages=["real"])
    folders = mixed / "mixed" / "model", tmp_path / "run" / "real" / "model"
    started, ended = (load(folder).params for folder in folders)
    for a, b in zip(_leaves(started), _leaves(ended), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_fine_tuning_notices_that_its_initial_weights_were_trained_again(mixed, tmp_path, capsys):
    first = shutil.copytree(mixed / "mixed" / "model", tmp_path / "first")
    config = cem_real.get_config("tiny")
    config.stages.real.init_from = str(first)
    run_experiment(config, tmp_path / "run", stages=["real"])
    description = files.read_json(first / "model.json")
    files.write_json(first / "model.json", description | {"trained": {"step": 9}})
    with refused("first", "stage real", where="run/real"):
        run_experiment(config, tmp_path / "run", stages=["real"])
    shutil.rmtree(first)  # a finished stage needs them no more
    capsys.readouterr()
    run_experiment(config, tmp_path / "run", stages=["real"])
    assert "stage real: finished before" in capsys.readouterr().out


def _leaves(tree):
    import jax

    return jax.tree.leaves(tree)
