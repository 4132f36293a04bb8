"""The step of a denoiser on two devices."""

import pytest

from tests import processes


def test_two_devices_follow_one(tmp_path):
    program = ["-m", "tests.tasks.denoising.devices", tmp_path]
    started = [processes.start(program, tmp_path / "log", JAX_NUM_CPU_DEVICES="2")]
    seen = processes.seen(tmp_path, started)
    assert len(set(seen["1"])) == 6
    assert seen["2"] == pytest.approx(seen["1"], rel=1e-4)
