"""What a user sees on the command line: help that teaches, and one line with exit code 2 for every mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def start(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, f"launch/{script}.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )


def assert_one_line(done: subprocess.CompletedProcess, *words: str) -> None:
    error = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert error[-1].startswith("error: ") and "Traceback" not in done.stderr, done.stderr
    assert sum(line.startswith("error: ") for line in error) == 1
    for word in words:
        assert word in error[-1], error[-1]


@pytest.mark.parametrize("script", ["train", "evaluate", "predict", "import_weights"])
def test_help_teaches(script):
    done = start(script, "--help")
    assert done.returncode == 0, done.stderr
    assert f"python launch/{script}.py" in done.stdout and "--" in done.stdout


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], ["no --config given"]),
        (["--config=configs/none.py"], ["configs/none.py"]),
        (["--config=configs/cem_real.py:enormous"], ["no variant 'enormous'", "tiny"]),
        (["--config=configs/cem_real.py:tiny", "--config.detector.stepps=3"], ["detector.stepps", "detector.steps"]),
        (["--config=configs/cem_real.py:tiny", "--config.detectr.steps=3"], ["detectr.steps", "detector.steps"]),
        (["--config=configs/cem_real.py:tiny", "--config.detector.optimizer.magic=1"], ["unknown config key", "magic"]),
        (["--config=configs/cem_real.py:tiny", "--config.detector.steps.more=1"], ["unknown config key", "steps.more"]),
        (["--config=configs/cem_real.py:tiny", "--config.detector.steps=many"], ["bad value", "detector.steps"]),
        (["--config=configs/cem_real.py:tiny", "--colour=red"], ["colour"]),
        (["--config=configs/cem_real.py:tiny", "stray"], ["stray"]),
    ],
)
def test_wrong_flags_end_in_one_line(arguments, words):
    assert_one_line(start("train", *arguments), *words)


def test_wrong_values_end_in_one_line_and_leave_nothing(tmp_path):
    folder = tmp_path / "run"
    cases = {
        "--config.data.real.spec=coco:/nowhere/cem.json": ["/nowhere/cem.json"],
        "--config.data.real.spec=ftp:images": ["unknown data source"],
        "--config.detector.model.depth=77": ["model.depth", "101"],
        "--config.detector.optimizer.name=magic": ["magic", "adamw"],
        "--config.detector.loader.buckets=()": ["loader.buckets", "canvas"],
        "--config.detector.best_metric=aufroc3": ["aufroc3", "aufroc_3"],
        "--config.stages.real.init_from=/nowhere": ["no model here", "/nowhere"],
    }
    for argument, words in cases.items():
        done = start("train", "--config=configs/cem_real.py:tiny", f"--workdir={folder}", argument)
        assert_one_line(done, *words)
        assert not (folder / "real" / "checkpoints").exists() and not (folder / "real" / "finished.json").exists()
        for file in folder.rglob("*.json"):
            file.unlink()  # the next case has other settings


@pytest.mark.skipif(os.name != "posix" or not Path("/dev/full").exists(), reason="needs /dev/full")
def test_workdirs_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    done = start("train", "--config=configs/cem_real.py:tiny", f"--workdir={tmp_path / 'file' / 'run'}")
    assert_one_line(done, "folder")
    done = start("train", "--config=configs/cem_real.py:tiny", "--workdir=/proc/elk")
    assert_one_line(done, "/proc/elk")


def test_evaluate_and_predict_say_what_is_missing(tmp_path):
    assert_one_line(start("evaluate", "--workdir=x"), "--data")
    done = start("evaluate", f"--workdir={tmp_path}", "--data=phantom:count=8,size=64")
    assert_one_line(done, "neither a run folder")
    assert_one_line(start("predict", f"--workdir={tmp_path}", "--input=x"), "--output")
