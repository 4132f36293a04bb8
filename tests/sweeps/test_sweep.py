"""A whole sweep of a toy task by its launch script: killed and resumed, with a stage in common; runs that fail."""

from __future__ import annotations

import csv
import signal
import sys
import time

import pytest

from elk_jax import files
from elk_jax.sweeps import plan as plans
from elk_jax.sweeps.plan import plan
from elk_jax.sweeps.settings import Row
from elk_jax.sweeps.sweep import run_one, run_sweep
from elk_jax.tasks import TASKS
from tests import processes
from tests.experiments import toy_task
from tests.refusals import refused

KEY = "stages.evaluate.threshold"
ROWS = (Row("threshold=0.4", {KEY: 0.4}), Row("threshold=0.6", {KEY: 0.6}))


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(TASKS, "toy", toy_task.TASK)


def command(folder) -> list[str]:
    flags = [f"--over={KEY}=0.4,0.6", "--seeds=1", f"--workdir={folder}"]
    return ["-m", "tests.experiments.toy_task", "sweep", "--config=tests/experiments/toy_task.py:slow", *flags]


def test_a_killed_sweep_resumes_and_ends_in_a_table(tmp_path):
    folder = tmp_path / "sweep"
    first, second = (folder / "runs" / row.name / "seed-42" for row in ROWS)
    killed, until = processes.start(command(folder), tmp_path / "log"), time.monotonic() + 300
    while killed.poll() is None and time.monotonic() < until and not (first / "train/checkpoints/5").is_dir():
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (first / "train" / "finished.json").exists(), processes.said(tmp_path)
    again = plan(toy_task.get_config("slow"), ROWS, 1, folder)
    run_sweep(again, {}, jobs=2, resamples=100, command=(sys.executable, *command(folder)))
    assert "resum" in (first.parent / "seed-42.log").read_text()
    assert "another run of the sweep: stage train" in (second.parent / "seed-42.log").read_text()
    weights = [run / "train" / "model" / "params.safetensors" for run in (first, second)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    with open(folder / "table.csv") as file:
        rows = {row["setting"]: row for row in csv.DictReader(file) if row["metric"] == "train/accuracy"}
    for name, run in (("threshold=0.4", first), ("threshold=0.6", second)):
        measured = files.read_json(run / "evaluate" / "evaluation.json")["train"]["accuracy"]
        assert float(rows[name]["mean"]) == measured == float(rows[name]["seed_42"])
    assert "<h2>evaluate: train/accuracy</h2>" in (folder / "report.html").read_text()
    before = (folder / "report.html").read_text()
    run_sweep(again, {}, jobs=2, resamples=100, command=("no program is started",))
    assert (folder / "report.html").read_text() == before


def test_a_copied_evaluation_is_not_repeated_where_stages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("elk_jax.sweeps.sweep.end_with_starter", lambda: None)
    rows = (Row("one", {}), Row("two", {}))
    both = plan(toy_task.get_config(), rows, 1, tmp_path, stages=["train", "evaluate"])
    ends = {}
    for row in rows:
        run_one(both, f"{row.name}/seed-42")
        ends[row.name] = (tmp_path / "runs" / row.name / "seed-42/evaluate/finished.json").read_text()
    assert ends["one"] == ends["two"], "with the time that it took"


def test_a_second_sweep_in_the_folder_of_a_running_one_changes_nothing(tmp_path):
    """Not even the list of settings, with which the first could not be resumed."""
    found = plan(toy_task.get_config(), ROWS[:1], 1, tmp_path)
    plans.start(found)
    more = plan(toy_task.get_config(), ROWS, 1, tmp_path)
    with files.locked(tmp_path), refused("process", where=tmp_path):
        run_sweep(more, {}, jobs=1, resamples=10, command=("no program is started",))
    plans.start(found)


def test_runs_that_fail_are_listed_and_the_others_counted(tmp_path, capsys):
    found = plan(toy_task.get_config(), ROWS, 2, tmp_path)
    failing = (sys.executable, "-c", "import sys; sys.exit('error: no such image (a.png)')")
    with refused("4 of 4", where=tmp_path):
        run_sweep(found, {}, jobs=2, resamples=10, command=failing)
    said = capsys.readouterr().out
    assert said.count("failed: threshold=") == 4 and "no such image (a.png)" in said
    assert (tmp_path / "report.html").read_text().count("no such image (a.png)") == 4
    with refused(0, where="--jobs"):
        run_sweep(found, {}, jobs=0, resamples=10, command=failing)
    with refused("threshold=0.4/seed-42", where="--run=threshold=0.5/seed-42"):
        run_one(found, "threshold=0.5/seed-42")
