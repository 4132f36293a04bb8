"""The detector's training step on 8 devices is the single-device program: same numbers, nothing gathered.

Two processes are compared in the same way, by hand, since their compilation would double the time of this module:
start `tests/training/detector_devices.py` with its third form of arguments.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# most of the time goes into compilation: no optimisation beyond what the partitioner needs
FLAGS = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true"
)
LOSSES = ("loss", "loss_rpn_objectness", "loss_rpn_box", "loss_class", "loss_box")


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    out = tmp_path_factory.mktemp("detector")
    command = [sys.executable, "-m", "tests.training.detector_devices", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": FLAGS}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "seen.json").read_text())


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-7), ("float32", 1e-3)])
def test_eight_devices_follow_one(seen, dtype, tolerance):
    one, eight = seen[f"{dtype}-one"]["metrics"], seen[f"{dtype}-eight"]["metrics"]
    assert len(one) == 5 and len({step["loss"] for step in one}) == 5
    for wanted, got in zip(one, eight, strict=True):
        assert got == pytest.approx(wanted, rel=tolerance, abs=tolerance)
        assert all(wanted[name] > 0 for name in LOSSES)  # every part of the detector took part


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_no_collective_gathers_activations_anchors_or_proposals(seen, dtype):
    assert seen[f"{dtype}-one"]["collectives"] == 0
    assert seen[f"{dtype}-eight"]["collectives"] > 0  # the gradients' sum: else this test saw nothing
    assert seen[f"{dtype}-eight"]["gathers"] == []
