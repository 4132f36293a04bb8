"""Which stages an experiment runs, repeats and refuses; the stages themselves are stand-ins that only leave files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from configs import cem_mixed, cem_real, inpaint_cem
from elk_jax import files
from elk_jax.experiments import report
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from tests.experiments.checks import on_files, stand_in
from tests.refusals import refused


def two_detectors():
    """cem_mixed without the painting: a detector on one source, another on two."""
    config = cem_mixed.get_config("tiny")
    config.data.synthetic.spec = "phantom:size=128,count=24,lesions=blobs,seed=2"
    for name in ("inpainter", "lesions", "lesion_quality", "synthetic"):
        del config.stages[name]
    config.stages.evaluate.models = ("real", "mixed")
    return config


@pytest.fixture
def done(monkeypatch) -> list[str]:
    """The names of the stages that ran, in order."""
    ran: list[str] = []

    def train(run, stage, recipe):
        ran.append(stage.name)
        folder = files.make_folder(run.folder / stage.name / "model")
        files.write_json(folder / "model.json", {"trained": {"step": ran.count(stage.name)}})
        return {"kind": "train", "seconds_before": 100.0}

    def evaluate(run, stage, recipe):
        ran.append(stage.name)
        folder = files.make_folder(run.folder / stage.name / "real")
        files.write_json(folder / "evaluation.json", {"ap50": 0.5})
        return {"kind": "evaluate"}

    def paint(run, stage, recipe):
        files.write_json(run.folder / stage.name / "synthetic.json", {"painted": len(ran)})
        ran.append(stage.name)
        return {"kind": "synthesize"}

    for task, kind, work in (
        ("detection", "train", train),
        ("detection", "evaluate", evaluate),
        ("inpainting", "train", train),
        ("inpainting", "synthesize", paint),
        ("lesion_quality", "evaluate", evaluate),
    ):
        stand_in(monkeypatch, task, kind, work)
    monkeypatch.setattr(report, "write", lambda run, summaries: "nowhere")
    return ran


def again(ran: list[str], config, folder: Path) -> list[str]:
    """The stages that one more start runs."""
    ran.clear()
    run_experiment(config, folder)
    return list(ran)


def test_an_evaluation_is_repeated_when_a_model_was_trained_again(done, tmp_path):
    config = two_detectors()
    assert again(done, config, tmp_path) == ["real", "mixed", "evaluate"]
    assert again(done, config, tmp_path) == []
    (tmp_path / "mixed" / "finished.json").unlink()
    assert again(done, config, tmp_path) == ["mixed"], "the same weights again"
    files.write_json(tmp_path / "mixed" / "model" / "model.json", {"trained": {"step": 9}})
    assert again(done, config, tmp_path) == ["evaluate"]
    (tmp_path / "real" / "model" / "params.safetensors").write_bytes(b"other weights")
    assert again(done, config, tmp_path) == ["evaluate"]


def test_a_stage_follows_from_its_own_data_alone(done, tmp_path):
    config = two_detectors()
    again(done, config, tmp_path)
    config.data.on_error = "skip"
    assert again(done, config, tmp_path) == []
    shutil.rmtree(tmp_path / "mixed")  # train it anew
    config.data.synthetic.patients = 3
    assert again(done, config, tmp_path) == ["mixed"], "the other stages do not use the synthetic images"
    config.data.real.clean_boxes = True
    with refused("stage real", "data.real.clean_boxes", "False", "True", where=tmp_path):
        again(done, config, tmp_path)


def test_a_detector_notices_that_its_lesions_were_painted_again(done, tmp_path):
    config = cem_mixed.get_config("tiny")
    assert again(done, config, tmp_path) == list(config.stages)
    assert again(done, config, tmp_path) == []
    shutil.rmtree(tmp_path / "lesions")
    done.extend(["once", "more"])
    with refused("lesions", "stage synthetic", where=tmp_path / "synthetic"):
        run_experiment(config, tmp_path)
    assert "real" not in done, "it uses no painted lesions"


def test_a_result_that_was_changed_is_not_reported(done, tmp_path):
    config = two_detectors()
    again(done, config, tmp_path)
    changed = tmp_path / "evaluate" / "real" / "evaluation.json"
    files.write_json(changed, {"ap50": 0.9})
    with refused("changed", tmp_path / "evaluate", where=changed):
        run_experiment(config, tmp_path)
    run_experiment(config, tmp_path, stages=["evaluate"])
    assert files.read_json(changed) == {"ap50": 0.5}, "written again"
    assert again(done, config, tmp_path) == []


def test_stages_whose_annotations_have_changed_are_repeated_or_refused(done, coco, tmp_path):
    config, run = on_files(cem_real, real=coco("real")), tmp_path / "run"
    file = tmp_path / "real.json"

    def correct(split: str) -> None:
        content = files.read_json(file)
        (image,) = [one["id"] for one in content["images"] if one["split"] == split][:1]
        next(one for one in content["annotations"] if one["image_id"] == image)["bbox"][2] += 1
        files.write_json(file, content)

    assert again(done, config, run) == ["real", "evaluate"] and again(done, config, run) == []
    correct("test")
    assert again(done, config, run) == ["evaluate"] and again(done, config, run) == []
    before = file.read_bytes()
    for split in ("train", "val"):
        correct(split)
        with refused("annotations", "stage real", run / "real", where=run / "real"):
            run_experiment(config, run)
        file.write_bytes(before)
    assert again(done, config, run) == []
    file.rename(tmp_path / "elsewhere.json")
    assert again(done, config, run) == [], "a finished stage needs its data no longer"


def test_a_painted_set_whose_canvases_have_changed_is_refused_before_anything_is_lost(done, coco, tmp_path):
    config, run = on_files(cem_mixed, real=coco("real"), canvases=coco("canvases", lesions=())), tmp_path / "run"
    config.stages.lesions.canvases, stages = "canvases", ["inpainter", "lesions"]
    run_experiment(config, run, stages=stages)
    assert done == stages
    file = tmp_path / "canvases.json"
    content = files.read_json(file)
    next(one for one in content["images"] if one["split"] == "train")["patient_id"] = "another"
    files.write_json(file, content)
    with refused("annotations", "stage lesions", run / "lesions", where=run / "lesions"):
        run_experiment(config, run, stages=stages)
    assert (run / "lesions" / "finished.json").exists()


def test_the_seconds_of_a_stage_hold_those_of_interrupted_attempts(done, tmp_path):
    again(done, cem_real.get_config("tiny"), tmp_path)
    assert 100 <= files.read_json(tmp_path / "real" / "finished.json")["seconds"] < 160
    assert files.read_json(tmp_path / "evaluate" / "finished.json")["seconds"] < 60


def test_models_must_be_trained_before_they_are_evaluated(tmp_path):
    config = two_detectors()
    for models, words in {
        (): "at least one",
        ("evaluate",): "'evaluate'",
        ("real", "older"): "'older'",
        ("../older",): "'../older'",
    }.items():
        config.stages.evaluate.models = models
        with refused(words, where="config.stages.evaluate.models"):
            parse(config, folder=tmp_path)
    files.make_folder(tmp_path / "older" / "model")
    files.write_json(tmp_path / "older" / "model" / "model.json", {})
    config.stages.evaluate.models = ("real", "older")
    parse(config, folder=tmp_path)


def test_initial_weights_come_from_an_earlier_stage_or_a_folder():
    config = two_detectors()
    config.stages.mixed.init_from = "real"
    parse(config)
    config.stages.mixed.init_from = "weights/imported"
    parse(config)
    for stage, initial in (("mixed", "mixed"), ("real", "mixed"), ("mixed", "evaluate")):
        config = two_detectors()
        config.stages[stage].init_from = initial
        with refused(f"'{initial}'", f"'{stage}'", where=f"config.stages.{stage}.init_from"):
            parse(config)


def test_painted_lesions_are_painted_before_they_are_compared():
    config = inpaint_cem.get_config("tiny")
    parse(config)
    config.stages.lesion_quality.features = "lesion_quality"
    with refused("'lesion_quality'", where="config.stages.lesion_quality.features"):
        parse(config)
    config.stages.lesion_quality.features = "weights/detector"
    parse(config)
    del config.stages["lesions"]
    with refused("'lesions'", "'lesion_quality'", where="config.data.synthetic.spec"):
        parse(config)
