"""The inpainter's training step with parameters, gradients and optimiser state split over eight devices."""

import pytest

from elk_jax.training.mesh import SMALL
from tests import processes


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp")
    program = ["-m", "tests.tasks.inpainting.devices", folder]
    started = [processes.start(program, folder / "log", JAX_NUM_CPU_DEVICES="8")]
    return processes.seen(folder, started, 900)


def test_eight_devices_follow_one(seen):
    assert len(set(seen["one"]["losses"])) == 4
    assert seen["eight"]["losses"] == pytest.approx(seen["one"]["losses"], rel=1e-4)


@pytest.mark.parametrize("part, copies", [("params", 1), ("opt_state", 2), ("ema_params", 1)])
def test_a_device_holds_an_eighth_of_every_large_array(seen, part, copies):
    large = {(size, share) for size, share in seen["eight"]["state"][part] if size >= SMALL}
    assert {share for _, share in large} == {1 / 8}
    sizes = [sum(size for size, _ in seen["one"]["state"][name]) for name in (part, "params")]
    assert sizes[0] == pytest.approx(copies * sizes[1], rel=1e-5)
    held = [sum(size * share for size, share in seen[name]["state"][part]) for name in ("eight", "one")]
    assert held[0] < 0.3 * held[1]  # small arrays, which are many in a network of this size, are on every device


def test_gradients_are_summed_and_then_used_in_parts(seen):
    """No clipping, moment or average of a kernel is computed as a whole on a device."""
    split = {size for size, share in seen["eight"]["state"]["params"] if share < 1}
    assert sum(size in split for size in seen["eight"]["reduced"]) > 10 and seen["one"]["reduced"] == []
    assert seen["one"]["arithmetic"] > 50 and seen["eight"]["arithmetic"] == 0


def test_what_is_gathered_is_no_more_than_the_parameters(seen):
    """Forward and backward. Where a batch is smaller than the kernel that it meets, the compiler gathers the batch."""
    sizes = [size for size, share in seen["eight"]["state"]["params"] if share < 1]
    gathers = seen["eight"]["gathers"]
    assert {size for size in gathers if size >= SMALL} <= set(sizes)
    assert 0 < sum(gathers) <= 2 * sum(sizes)
