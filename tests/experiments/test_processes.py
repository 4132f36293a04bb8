"""An experiment of two processes, started as a user starts it, against the same experiment of one."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import cem_real
from elk_jax import files
from elk_jax.experiments.experiment import run_experiment
from tests import processes

PRIVATE = 0o077  # the second process' umask: what it writes shows


def start_two(folder: Path, name: str, *changes: tuple[str, ...]):
    """Both processes of a run in `folder`/run; `changes`: the flags of each beyond the common ones."""
    port = processes.free_port()
    return [
        processes.start(
            ["launch/train.py", "--config=configs/cem_real.py:tiny", f"--workdir={folder / 'run'}", *flags],
            folder / f"log-{name}-{i}",
            umask=(0o022, PRIVATE)[i],
            JAX_NUM_CPU_DEVICES="1",
            ELK_COORDINATOR=f"localhost:{port}",
            ELK_NUM_PROCESSES="2",
            ELK_PROCESS_ID=str(i),
        )
        for i, flags in enumerate(changes or ((), ()))
    ]


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "run"
    run_experiment(cem_real.get_config("tiny"), folder)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    codes = processes.finish(start_two(folder, "first"), 600)
    assert codes == [0, 0], processes.said(folder)
    return folder / "run"


def steps(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "real" / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def detections(run: Path) -> list[np.ndarray]:
    """Of each test image: the scores and boxes [K, 5]."""
    images: dict[int, list] = {}
    for entry in files.read_json(run / "evaluate" / "real" / "predictions.json"):
        images.setdefault(entry["image_id"], []).append([entry["score"], *entry["bbox"]])
    return [np.array(images[image]) for image in sorted(images)]


def test_two_processes_train_and_evaluate_as_one(one, two):
    assert files.read_json(two / "versions.json")["processes"] == 2
    for wanted, got in zip(steps(one), steps(two), strict=True):
        assert got == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    a, b = (load_file(run / "real" / "model" / "params.safetensors") for run in (one, two))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(b[name], a[name], atol=1e-4, err_msg=name)
    summaries = [files.read_json(run / "real" / "finished.json")["summary"] for run in (one, two)]
    for key in ("best_step", "data", "draws_per_epoch", "parameters"):
        assert summaries[0][key] == summaries[1][key]
    for wanted, got in zip(detections(one), detections(two), strict=True):
        # of equal scores either may come first
        same = (np.abs(wanted[:, None] - got[None]) <= [1e-4, 0.05, 0.05, 0.05, 0.05]).all(axis=-1)
        assert len(wanted) == len(got) and same.any(axis=0).all() and same.any(axis=1).all()
    wanted, got = (files.read_json(run / "evaluate" / "real" / "evaluation.json") for run in (one, two))
    for key in ("mean_sensitivity", "aufroc_3", "ap10", "ap50"):
        assert got[key]["value"] == pytest.approx(wanted[key]["value"], abs=1e-3)
    assert "data:image/jpeg" in (two / "report.html").read_text()


def test_the_main_process_alone_writes(two):
    """But for checkpoints, to which each adds what lies on its devices."""
    written = {path.relative_to(two): path for path in two.rglob("*") if "checkpoints" not in path.parts}
    private = [str(name) for name, path in written.items() if not stat.S_IMODE(path.stat().st_mode) & PRIVATE]
    assert Path("report.html") in written and private == []
    assert len(list((two / "real" / "tensorboard").iterdir())) == 1


def test_a_finished_run_is_not_repeated_and_an_error_of_one_process_ends_both(two):
    before = left_by_stages(two)
    codes = processes.finish(start_two(two.parent, "again"), 300)
    assert codes == [0, 0], processes.said(two.parent)
    assert left_by_stages(two) == before

    codes = processes.finish(start_two(two.parent, "other", (), ("--config.detector.steps=6",)), 200)
    mine, theirs = ((two.parent / f"log-other-{i}").read_text() for i in range(2))
    assert codes == [2, 2], mine + theirs
    assert "error: stage real was started here with other settings" in theirs
    assert "error: another process of this run has ended" in mine
    assert left_by_stages(two) == before


def test_processes_with_different_settings_end_before_a_stage_begins(tmp_path):
    codes = processes.finish(start_two(tmp_path, "differ", (), ("--config.detector.steps=6",)), 200)
    said = [(tmp_path / f"log-differ-{i}").read_text() for i in range(2)]
    assert codes == [2, 2], said
    for text in said:
        assert "error: the processes of this run differ: recipe.steps is 4 in process 0, but 6 in process 1" in text
    assert not (tmp_path / "run" / "real").exists()


def left_by_stages(run: Path) -> dict[str, int]:
    """Every file of a stage and when it was written."""
    return {str(p): p.stat().st_mtime_ns for stage in ("real", "evaluate") for p in (run / stage).rglob("*")}
