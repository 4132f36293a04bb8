"""A new task is a package and a line in TASKS: a toy, whole in toy_task.py, goes through everything that tasks do."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from elk_jax import files
from elk_jax.experiments import checks
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from elk_jax.tasks import TASKS, find_model
from tests import processes
from tests.experiments import toy_task
from tests.refusals import refused

CONFIG = "tests/experiments/toy_task.py"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing interrupted, and its report, by the real entry point."""
    folder = tmp_path_factory.mktemp("toys") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "toy", toy_task.TASK)
        run_experiment(toy_task.get_config(), folder)
    return folder


def launch(script: str, log: Path, *flags: str):
    return processes.start(["-m", "tests.experiments.toy_task", script, *flags], log)


def test_a_run_trains_evaluates_and_reports(whole):
    evaluation = files.read_json(whole / "evaluate" / "evaluation.json")
    page = (whole / "report.html").read_text()
    assert evaluation["train"]["images"] == 4 and "Lesion or not" in page and "Toys" in page
    losses = [line for line in (whole / "train" / "metrics.jsonl").read_text().splitlines() if "train/loss" in line]
    assert len(losses) == 4


def test_a_training_of_an_earlier_version_or_of_other_settings_is_not_continued(whole, toy, tmp_path):
    """Settings that came later are told from settings that were changed: nobody can give these as they were."""
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "train" / "finished.json").unlink()
    begun = files.read_object(run / "train" / "config.json")
    steps = begun["recipe"].pop("steps")
    files.write_json(run / "train" / "config.json", begun)
    with refused("earlier version", "recipe.steps", steps, "versions.json", where=run):
        run_experiment(toy_task.get_config(), run)
    begun["recipe"]["steps"] = steps + 1
    files.write_json(run / "train" / "config.json", begun)
    with refused("other settings", "recipe.steps", steps, steps + 1, "same settings", where=run):
        run_experiment(toy_task.get_config(), run)


@pytest.mark.parametrize("other", ["experiment", "steps"])
def test_a_run_that_another_one_overtook_while_it_checked_its_data_is_refused(whole, toy, tmp_path, monkeypatch, other):
    """The other one began in the same folder and was killed before this one had the folder's lock."""

    def overtaken(run, stages):
        shutil.copytree(whole, run.folder)
        (run.folder / "train" / "finished.json").unlink()
        files.write_json(run.folder / "config.json", {"name": "another" if other == "experiment" else config.name})

    config = toy_task.get_config()
    if other == "steps":
        config.toy.steps += 1
    monkeypatch.setattr(checks, "check_inputs", overtaken)
    with refused("another" if other == "experiment" else "recipe.steps", where=tmp_path / "run"):
        run_experiment(config, tmp_path / "run")


def test_a_killed_run_resumes_to_the_bit(whole, tmp_path):
    flags = (f"--config={CONFIG}:slow", f"--workdir={tmp_path / 'run'}")
    killed = launch("train", tmp_path / "log-1", *flags)
    until = time.monotonic() + 300
    while killed.poll() is None and time.monotonic() < until and not (tmp_path / "run/train/checkpoints/5").is_dir():
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "run" / "train" / "finished.json").exists(), processes.said(tmp_path)
    again = launch("train", tmp_path / "log-2", *flags)
    assert processes.finish([again], 300) == [0], processes.said(tmp_path)
    assert "5" in (tmp_path / "log-2").read_text()
    for name in ("train/model/params.safetensors", "evaluate/evaluation.json"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()
    resumed, uninterrupted = (steps(folder / "train" / "metrics.jsonl") for folder in (tmp_path / "run", whole))
    assert resumed == uninterrupted


def steps(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def test_evaluate_finds_the_task_by_the_architecture(whole, tmp_path, toy):
    assert find_model(whole, None, lambda task: task.evaluate)[1] is toy_task.TASK
    spec = toy_task.get_config().data.real.spec
    flags = (f"--workdir={whole}", f"--data={spec}", "--split=test", f"--output={tmp_path / 'out'}")
    started = launch("evaluate", tmp_path / "log", *flags)
    assert processes.finish([started], 300) == [0], processes.said(tmp_path)
    found = files.read_json(tmp_path / "out" / "evaluation.json")
    assert found == files.read_json(whole / "evaluate" / "evaluation.json")["train"] | {"threshold": 0.5}
    wrong = launch("evaluate", tmp_path / "log-wrong", *flags, "--criterion=iou:0.5")
    assert processes.finish([wrong], 300) == [2]
    assert "--criterion" in (tmp_path / "log-wrong").read_text()


def test_models_of_the_toy_are_not_for_other_scripts(whole, toy):
    with refused("toy", where="train/model"):
        find_model(whole / "train", None, lambda task: task.predict)


def test_its_values_are_checked_like_those_of_any_task(toy):
    for key, value in (("toy.images.side", 0), ("toy.steps", 0), ("stages.evaluate.threshold", 1.5)):
        config = toy_task.get_config()
        config.update_from_flattened_dict({key: value})
        with refused(where=f"config.{key}"):
            parse(config)
