"""The scaling benchmark: what is measured in which order, and losses that agree. No test asserts a time."""

from __future__ import annotations

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from benchmarks import painter, scaling, scaling_run
from benchmarks.scaling_run import Point
from elk_jax.training import mesh as meshes
from tests import processes
from tests.benchmarks.toy_scaling import HIDDEN
from tests.refusals import refused
from tests.training.toy import FEATURES

TOY = ("-m", "tests.benchmarks.toy_scaling", "--updates=3", "--repetitions=2", "--least_seconds=0.01")


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    """The output of the first of two processes with two devices each, in float64."""
    folder, port = tmp_path_factory.mktemp("scaling"), processes.free_port()
    started = [
        processes.start(
            [*TOY, "--simulated=2", "--scaling=strong", "--dtype=float64"],
            folder / f"log{i}",
            ELK_COORDINATOR=f"localhost:{port}",
            ELK_NUM_PROCESSES="2",
            ELK_PROCESS_ID=str(i),
        )
        for i in range(2)
    ]
    assert processes.finish(started, 200) == [0, 0], processes.said(folder)
    assert "{" not in (folder / "log1").read_text(), "only the first process reports"
    return (folder / "log0").read_text().splitlines()


def test_every_layout_on_devices_of_one_and_of_two_processes(of_two_processes):
    found = json.loads(of_two_processes[-1])
    assert (found["devices"], found["processes"], found["simulated"]) == (4, 2, True)
    runs = {(run["devices"], run["layout"]): run for run in found["runs"]}
    assert list(runs) == [(1, "data"), (2, "data"), (2, "fsdp"), (4, "data"), (4, "fsdp")]
    split = FEATURES * HIDDEN  # of the toy's parameters; its vectors are on every device
    for (devices, layout), run in runs.items():
        share = 1 / devices if layout == "fsdp" else 1
        assert run["state_bytes_per_device"]["params"] == 8 * (split * share + 3 * HIDDEN + 1)
        # the gradient and the metrics are summed, and split parameters gathered
        assert (run["collectives"].get("all-reduce", {"bytes": 0})["bytes"] >= 8 * split) == (devices > 1)
        assert ("all-gather" in run["collectives"]) == (layout == "fsdp")
        assert run["batch"] == 4 and len(set(run["losses"])) == 3
        assert run["seconds"]["min"] > 0 and run["cpu_seconds"]["min"] > 0
    assert [row["devices"] for row in found["strong"]["fsdp"]] == [1, 2, 4]


def test_losses_of_one_to_four_devices_agree(of_two_processes):
    found = json.loads(of_two_processes[-1])["losses"]
    assert found["agree"] and found["compared"] == 4
    assert 0 < found["largest_relative_difference"] < 1e-9  # float64; summed in another order


def test_a_table_says_that_devices_are_simulated(of_two_processes):
    table = "\n".join(of_two_processes[:-1])
    assert "4 x simulated" in table and "say nothing about scaling" in table
    rows = [[cell.strip() for cell in line.split("│")[1:5]] for line in of_two_processes if line.startswith("│")]
    assert rows == [["strong", layout, str(count), "4"] for layout in ("data", "fsdp") for count in (1, 2, 4)]


@pytest.mark.parametrize("arguments", [["--workload=inpainter", "--size=32"], ["--workload=detector", "--size=64x64"]])
def test_both_workloads_train(arguments, capsys):
    scaling.main([*arguments, "--model=tiny", "--batch=2", "--updates=2", "--repetitions=1", "--least_seconds=0.01"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    (run,) = found["runs"]
    assert run["batch"] == 2 and len(set(run["losses"])) == 2 and min(run["losses"]) > 0
    assert found["strong"]["data"][0]["work"]["median"] == 1 and found["losses"]["compared"] == 0


def test_what_is_relative_to_the_fewest_devices():
    one, four = Point("data", 1, 4), Point("data", 4, 4)
    times = {
        one: {"wall": np.array([8.0, 8.0]), "cpu": np.array([8.0, 8.0])},
        four: {"wall": np.array([2.5, 4.0]), "cpu": np.array([10.0, 12.0])},
    }
    found = scaling.relative(four, one, times, "efficiency")
    assert found["work"] is None
    assert (found["efficiency"]["min"], found["efficiency"]["max"]) == pytest.approx((0.5, 0.8))
    weak = scaling.relative(Point("data", 4, 16), one, times | {Point("data", 4, 16): times[four]}, "efficiency")
    assert weak["efficiency"]["max"] == pytest.approx(8 / 2.5)
    found = scaling.relative(four, one, times, "work")
    assert found["efficiency"] is None and found["work"]["median"] == pytest.approx(1.375)
    assert scaling.relative(four, one, times, None) == {"efficiency": None, "work": None}


def test_losses_of_the_same_batch_only_are_compared():
    losses = {
        Point("data", 1, 8): [1.0, 2.0],
        Point("data", 1, 2): [5.0, 5.0],
        Point("fsdp", 4, 8): [1.0, 2.02],
        Point("data", 4, 8): [1.001, 2.0],
    }
    found = scaling.compare_losses(losses, tolerance=1e-3)
    assert found["compared"] == 2 and not found["agree"]
    assert found["largest_relative_difference"] == pytest.approx(0.01)
    assert found["between"] == ["1 device (data)", "4 devices (fsdp)"]
    with refused("4 devices (fsdp)", "1.0e-02", "float64", where="losses"):
        scaling.check_losses(found)
    scaling.check_losses(scaling.compare_losses(losses, tolerance=0.1))
    scaling.check_losses(scaling.compare_losses({Point("data", 1, 8): [1.0]}, tolerance=0.0))


def test_a_loss_that_is_not_finite_is_an_error():
    found = scaling.compare_losses({Point("data", 1, 8): [1.0], Point("data", 2, 8): [float("nan")]}, tolerance=1.0)
    json.dumps(found, allow_nan=False)
    with refused("2 devices (data)", "finite", where="losses"):
        scaling.check_losses(found)


def test_a_device_holds_its_part_of_a_split_state():
    one = meshes.make_mesh(devices=jax.devices()[:1])
    held = scaling_run.state_bytes(painter.training(painter.Workload(model="tiny", size=32), one).state)
    assert held["total"] == held["whole"] > held["opt_state"] > 2 * held["params"] > 0  # two moments and two counts
    # parameters, two moments, and the counts of updates: bytes of 859,535,364 + 123,060,480 numbers three times
    full = painter.training(painter.Workload(model="sd15", with_text=True), one).state
    assert scaling_run.state_bytes(full)["whole"] == pytest.approx(12 * 982_595_844, rel=1e-6)


def slice_of(*processes):
    devices = [SimpleNamespace(process_index=process, id=i) for i, process in enumerate(processes)]
    return SimpleNamespace(devices=np.array(devices).reshape(-1, 1), size=len(devices))


@pytest.mark.parametrize(
    ("processes", "rows"),
    [((0,), range(8)), ((0, 1), [0, 1, 2, 3]), ((0, 1, 1, 0), [0, 1, 6, 7]), ((1, 0, 2, 0), [2, 3, 6, 7])],
)
def test_a_process_has_the_rows_of_its_devices(processes, rows):
    assert scaling_run.local_rows(slice_of(*processes), 8).tolist() == list(rows)


def test_devices_of_unequal_parts_of_processes_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: list(slice_of(0, 0, 1, 1).devices.flat))
    with refused(3, "process", where="--devices"):
        scaling_run.mesh_of(Point("data", 3, 3))


@pytest.mark.parametrize(("text", "available", "counts"), [("", 1, [1]), ("", 6, [1, 2, 4, 6]), ("4,2", 8, [2, 4])])
def test_numbers_of_devices(text, available, counts):
    assert scaling.device_counts(text, available) == counts


@pytest.mark.parametrize(
    "arguments, word, where",
    [
        (["--devices=2"], "--simulated=2", "--devices"),
        (["--devices=1,x"], "'1,x'", "--devices"),
        (["--devices=0"], "'0'", "--devices"),
        (["--scaling=strong,fast"], "'fast'", "--scaling"),
        (["--layouts="], "data", "--layouts"),
        (["--repetitions=0"], 0, "--repetitions"),
        (["--simulated=-1"], -1, "--simulated"),
        (["--workload=inpainter", "--size=64x64"], "'64x64'", "--size"),
        (["--size=64"], "'64'", "--size"),
    ],
)
def test_bad_arguments(arguments, word, where):
    with refused(word, where=where):
        scaling.main(arguments)


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_compiled():
    with refused(3, 2, where="--batch, --devices"):
        scaling.plan([1, 2, 3], ["strong", "weak"], ["data"], 1)
    assert scaling.plan([1, 2, 3], ["weak"], ["fsdp"], 2) == {
        "weak": {"fsdp": [Point("data", 1, 2), Point("fsdp", 2, 4), Point("fsdp", 3, 6)]}
    }
