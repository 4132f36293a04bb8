"""Which stages an experiment runs, repeats and refuses; the stages themselves are stand-ins that only leave files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from configs import cem_mixed, cem_real, inpaint_cem
from elk_jax import files
from elk_jax.errors import UserError
from elk_jax.experiments import experiment


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

    def train(run, name):
        ran.append(name)
        files.make_folder(run.folder / name / "model")
        files.write_json(run.folder / name / "model" / "model.json", {"trained": ran.count(name)})
        return {"kind": "train", "seconds_before": 100.0}

    def evaluate(run, name):
        ran.append(name)
        return {"kind": "evaluate"}

    monkeypatch.setitem(experiment.STAGES, ("train", "detection"), train)
    monkeypatch.setitem(experiment.STAGES, ("evaluate", "detection"), evaluate)
    monkeypatch.setattr(experiment.report, "write", lambda run, summaries: "nowhere")
    return ran


def again(ran: list[str], config, folder: Path) -> list[str]:
    """The stages that one more start runs."""
    ran.clear()
    experiment.run(config, folder)
    return list(ran)


def test_an_evaluation_is_repeated_when_a_model_was_trained_again(done, tmp_path):
    config = two_detectors()
    assert again(done, config, tmp_path) == ["real", "mixed", "evaluate"]
    assert again(done, config, tmp_path) == []
    (tmp_path / "mixed" / "finished.json").unlink()
    assert again(done, config, tmp_path) == ["mixed"], "the same weights again"
    files.write_json(tmp_path / "mixed" / "model" / "model.json", {"trained": "otherwise"})
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
    with pytest.raises(UserError, match=r"stage real .*data\.real\.clean_boxes was False and is True"):
        again(done, config, tmp_path)


def test_a_detector_notices_that_its_lesions_were_painted_again(done, monkeypatch, tmp_path):
    def paint(run, name):
        files.write_json(run.folder / name / "synthetic.json", {"painted": len(done)})
        done.append(name)
        return {"kind": "synthesize", "task": "inpainting"}

    for kind in ("train", "evaluate"):
        monkeypatch.setitem(experiment.STAGES, (kind, "inpainting"), experiment.STAGES[kind, "detection"])
    monkeypatch.setitem(experiment.STAGES, ("synthesize", "inpainting"), paint)
    config = cem_mixed.get_config("tiny")
    assert again(done, config, tmp_path) == list(config.stages)
    assert again(done, config, tmp_path) == []
    shutil.rmtree(tmp_path / "lesions")
    done.extend(["once", "more"])
    with pytest.raises(UserError, match=r"lesions has changed since stage synthetic started from it.*remove"):
        experiment.run(config, tmp_path)
    assert "real" not in done, "it uses no painted lesions"


def test_the_seconds_of_a_stage_hold_those_of_interrupted_attempts(done, tmp_path):
    again(done, cem_real.get_config("tiny"), tmp_path)
    assert 100 <= files.read_json(tmp_path / "real" / "finished.json")["seconds"] < 160
    assert files.read_json(tmp_path / "evaluate" / "finished.json")["seconds"] < 60


def test_models_must_be_trained_before_they_are_evaluated(tmp_path):
    config = two_detectors()
    for models, words in {
        (): r"no model to evaluate \(config\.stages\.evaluate\.models\).* real, mixed",
        ("evaluate",): "'evaluate' is no train stage before 'evaluate'",
        ("real", "older"): "'older' is no train stage",
        ("../older",): "'../older' is no train stage",
    }.items():
        config.stages.evaluate.models = models
        with pytest.raises(UserError, match=words):
            experiment.check(config, folder=tmp_path)
    files.make_folder(tmp_path / "older" / "model")
    files.write_json(tmp_path / "older" / "model" / "model.json", {})
    config.stages.evaluate.models = ("real", "older")
    experiment.check(config, folder=tmp_path)


def test_initial_weights_come_from_an_earlier_stage_or_a_folder():
    config = two_detectors()
    config.stages.mixed.init_from = "real"
    experiment.check(config)
    config.stages.mixed.init_from = "weights/imported"
    experiment.check(config)
    for stage, initial in (("mixed", "mixed"), ("real", "mixed"), ("mixed", "evaluate")):
        config = two_detectors()
        config.stages[stage].init_from = initial
        with pytest.raises(UserError, match=rf"'{initial}' is no train stage before '{stage}'.*init_from"):
            experiment.check(config)


def test_painted_lesions_are_painted_before_they_are_compared():
    config = inpaint_cem.get_config("tiny")
    experiment.check(config)
    config.stages.lesion_quality.features = "lesion_quality"
    with pytest.raises(UserError, match=r"'lesion_quality' is no train stage before 'lesion_quality'.*features"):
        experiment.check(config)
    config.stages.lesion_quality.features = "weights/detector"
    experiment.check(config)
    del config.stages["lesions"]
    with pytest.raises(UserError, match="'lesions' is no synthesis stage before 'lesion_quality'"):
        experiment.check(config)
