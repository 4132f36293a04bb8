"""A real training, killed by SIGKILL and resumed by the same command, is bit-identical to an uninterrupted one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parent.parent.parent
STEPS = 12


def command(workdir: Path) -> list[str]:
    return [
        sys.executable,
        "launch/train.py",
        "--config=configs/cem_real.py:tiny",
        f"--workdir={workdir}",
        "--stages=real",
        f"--config.detector.steps={STEPS}",
        "--config.detector.log_every=1",
        "--config.detector.checkpoint_every=3",
        "--config.detector.eval_every=6",
        "--config.detector.ema_decay=0.9",
    ]


def numbers(workdir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "real" / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_resumed_training_equals_uninterrupted(tmp_path):
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = subprocess.run(command(whole), timeout=600, **quiet)
    assert done.returncode == 0, done.stderr

    victim = subprocess.Popen(command(broken), **quiet)
    try:
        wait_for_checkpoint(broken / "real" / "checkpoints", victim)
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert not (broken / "real" / "finished.json").exists()
    done = subprocess.run(command(broken), timeout=600, **quiet)
    assert done.returncode == 0, done.stderr
    assert re.search(r"checkpoint.* \d+", done.stderr)

    assert numbers(broken) == numbers(whole)
    a, b = (load_file(folder / "real" / "model" / "params.safetensors") for folder in (whole, broken))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def wait_for_checkpoint(folder: Path, process: subprocess.Popen) -> None:
    """Wait until the first checkpoint is complete, in the middle of the training."""
    until = time.monotonic() + 500
    while not (folder.is_dir() and any(p.name.isdigit() for p in folder.iterdir())):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < until, "no checkpoint"
        time.sleep(0.01)
