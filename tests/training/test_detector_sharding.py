"""The detector's training step on 8 devices, or of 2 processes, is the single-device program: same numbers, also of
batch norms with the statistics of the whole batch; nothing gathered."""

import pytest

from tests import processes
from tests.training.detector_devices import ONE_STAGE

DEVICES = ("-m", "tests.training.detector_devices")
LOSSES = ("statistics", "loss", "loss_rpn_objectness", "loss_rpn_box", "loss_class", "loss_box")


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """By one device and by eight."""
    folder = tmp_path_factory.mktemp("eight")
    return processes.seen(folder, [processes.start([*DEVICES, folder], folder / "log", JAX_NUM_CPU_DEVICES="8")])


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """By two processes with a device each."""
    folder, port = tmp_path_factory.mktemp("two"), processes.free_port()
    started = [
        processes.start([*DEVICES, folder, i, port], folder / f"log{i}", JAX_NUM_CPU_DEVICES="1") for i in range(2)
    ]
    return processes.seen(folder, started)


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-7), ("float32", 1e-3)])
def test_eight_devices_follow_one(seen, dtype, tolerance):
    same_steps(seen[f"{dtype}-one"]["metrics"], seen[f"{dtype}-eight"]["metrics"], tolerance)


def test_two_processes_follow_one(seen, two):
    same_steps(seen["float64-one"]["metrics"], two["float64-two"]["metrics"], 1e-7)


def same_steps(one, many, tolerance):
    assert len(one) == 5 and len({step["loss"] for step in one}) == 5
    for wanted, got in zip(one, many, strict=True):
        assert got == pytest.approx(wanted, rel=tolerance, abs=0)
        assert all(wanted[name] > 0 for name in LOSSES)  # every part of the detector took part


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_no_collective_gathers_activations_anchors_or_proposals(seen, dtype):
    assert seen[f"{dtype}-one"]["collectives"] == 0
    assert seen[f"{dtype}-eight"]["collectives"] > 0  # the gradients' sum: else this test saw nothing
    assert seen[f"{dtype}-eight"]["gathers"] == []


def test_nothing_is_gathered_from_another_process(two):
    assert two["float64-two"]["collectives"] > 0 and two["float64-two"]["gathers"] == []


@pytest.mark.parametrize("name", ONE_STAGE)
def test_the_loss_of_a_batch_is_that_of_one_device(seen, name):
    """Its normaliser is of the whole batch, also where devices have one lesion, none or a filler."""
    one, eight = seen[name]["one"], seen[name]["eight"]
    assert eight == pytest.approx(one, rel=1e-9, abs=0) and all(value > 0 for value in one.values())


@pytest.mark.parametrize("name", ONE_STAGE)
def test_heads_of_all_levels_exchange_their_gradient_once(seen, name):
    """Not once a level: what eight devices exchange has the size of the parameters, and a few numbers of the loss."""
    one, eight = seen[f"{name}-exchange"]["one"], seen[f"{name}-exchange"]["eight"]
    assert one["exchanged"] == {} and set(eight["exchanged"]) == {"all-reduce"}
    assert 0 <= eight["exchanged"]["all-reduce"] - eight["bytes"] <= 64
    assert set(one["norms"]) == {"fpn", "class_head", "box_head"} and all(norm > 0 for norm in one["norms"].values())
    assert eight["norms"] == pytest.approx(one["norms"], rel=1e-9, abs=0)
