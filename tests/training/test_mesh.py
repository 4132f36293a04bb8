"""Layouts by rule here; what needs several devices or processes runs in `devices.py`, once for all tests."""

import json
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from elk_jax.training import mesh as meshes
from elk_jax.training.checkpoint import load_state
from tests import processes
from tests.refusals import refused
from tests.training import hlo, one_of_two

DEVICES = ("-m", "tests.training.devices")
JOINED = ("-m", "tests.training.joined")
ONE_OF_TWO = ("-m", "tests.training.one_of_two")


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eight")
    return processes.seen(folder, [processes.start([*DEVICES, folder], folder / "log", JAX_NUM_CPU_DEVICES="8")])


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder, port = tmp_path_factory.mktemp("two"), processes.free_port()
    started = [
        processes.start([*DEVICES, folder, i, port], folder / f"log{i}", JAX_NUM_CPU_DEVICES="2") for i in range(2)
    ]
    return processes.seen(folder, started)


# ---- 8 devices ----


@pytest.mark.parametrize("layout, tolerance", [("float64-data", 1e-7), ("float64-fsdp", 1e-7), ("float32-data", 1e-3)])
def test_eight_devices_follow_one(eight, layout, tolerance):
    wanted = eight["losses"][f"{layout.split('-')[0]}-one"]
    assert len(wanted) == 5 and len(set(wanted)) == 5
    assert eight["losses"][layout] == pytest.approx(wanted, rel=tolerance)
    assert eight["difference"][layout] < tolerance


@pytest.mark.parametrize("layout", ["data", "fsdp"])
def test_a_private_run_on_eight_devices_follows_one(eight, layout):
    wanted, found = eight["private"]["one"], eight["private"][layout]
    assert len(wanted["published"]) == 5
    np.testing.assert_allclose(found["published"], wanted["published"], rtol=1e-7)
    assert found["difference"] < 1e-7


def test_a_private_game_on_eight_devices_follows_one(eight):
    wanted, found = eight["game"]["one"], eight["game"]["data"]
    assert len(wanted["published"]) == 6 and len(set(map(tuple, wanted["published"]))) == 6
    np.testing.assert_allclose(found["published"], wanted["published"], rtol=1e-7)
    assert found["difference"] < 1e-7


def test_a_run_of_eight_devices_is_finished_by_one(eight):
    assert eight["difference"]["moved"] < 1e-7


def test_fsdp_splits_large_parameters_with_their_averages_and_momentum(eight):
    split = {name for name, share in eight["share"]["fsdp"].items() if share == 1 / 8}
    assert {"params/stem/kernel", "ema_params/stem/kernel"} < split
    assert any("trace/stem/kernel" in name for name in split)
    assert all(share == 1 for name, share in eight["share"]["fsdp"].items() if "stem/kernel" not in name)
    assert all(share == 1 for share in eight["share"]["data"].values())


def test_per_image_stages_move_nothing_between_devices(eight):
    by_shard, by_compiler = eight["collectives"]["shard"], eight["collectives"]["vmap"]
    assert by_shard["gathers"] == []
    assert by_compiler["gathers"] != []  # else this test could not fail: see shard_map_images
    assert {k: v for k, v in by_shard.items() if k != "gathers"} == {
        k: v for k, v in by_compiler.items() if k != "gathers"
    }


# ---- 2 processes ----


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-7), ("float32", 1e-3)])
def test_two_processes_follow_one(eight, two, dtype, tolerance):
    assert two["losses"][dtype] == pytest.approx(eight["losses"][f"{dtype}-one"], rel=tolerance)


def test_a_private_run_of_two_processes_follows_one(eight, two):
    np.testing.assert_allclose(two["private"], eight["private"]["one"]["published"], rtol=1e-7)


def test_a_private_game_of_two_processes_follows_one(eight, two):
    np.testing.assert_allclose(two["game"], eight["game"]["one"]["published"], rtol=1e-7)


def test_parameters_split_over_processes_come_back_whole(two):
    assert two["whole"] == {"split": True, "same": True}


def test_sigterm_to_one_of_two_processes_stops_both_at_a_checkpoint(two):
    step = int(two["stopped"].removeprefix("stopped at step "))
    assert 4 <= step < 400 and two["stop_steps"] == [step]
    assert two["saved_leaves"] == 5


def test_a_batch_that_all_hold_is_filled_up_and_keeps_its_order_even_on_a_mesh_that_mixes_processes(eight, two):
    for found, rows in ((eight["spread"], 16), (two["spread"], 12)):
        assert found["number"] == [*range(11), *[10] * (rows - 11)]
        assert found["valid"] == [True] * 10 + [False] * (rows - 10)
    assert eight["spread"]["on_one"] == 2 and two["spread"]["on_one"] == 3


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_of_two_processes_is_killed_the_other_ends_and_the_run_goes_on(tmp_path, victim):
    port = processes.free_port()
    started = [
        processes.start([*ONE_OF_TWO, tmp_path / "run", i, port, victim], tmp_path / f"log{i}", JAX_NUM_CPU_DEVICES="1")
        for i in range(2)
    ]
    codes = processes.finish(started, 300)  # None for one that would have waited for ever
    assert codes[victim] == -signal.SIGKILL, processes.said(tmp_path)
    if victim == 1:
        assert codes[0] == 2, processes.said(tmp_path)
        assert "error: another process of this run has ended" in (tmp_path / "log0").read_text()
    else:  # JAX ends a process whose coordinator is gone
        assert codes[1] not in (0, None), processes.said(tmp_path)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == [str(one_of_two.SAVED)]
    assert len(jax.tree.leaves(load_state(checkpoints, one_of_two.SAVED).params)) == 5
    assert int(one_of_two.run(tmp_path / "run").state.step) == one_of_two.STEPS


# ---- rules, on one device ----


@pytest.mark.parametrize(
    "shape, fsdp, spec",
    [
        ((3, 3, 256, 512), 8, P(None, None, None, "fsdp")),
        ((1024, 12544), 8, P(None, "fsdp")),
        ((12544, 1024), 8, P("fsdp")),
        ((512, 512), 8, P(None, "fsdp")),
        ((513, 512), 8, P(None, "fsdp")),  # the largest axis is not divisible
        ((513, 511), 8, P()),
        ((64,), 8, P()),  # small
        ((), 8, P()),
        ((0, 1 << 20), 8, P()),
        ((1024, 1024), 1, P()),
    ],
)
def test_rule_for_splitting(shape, fsdp, spec):
    assert meshes.leaf_spec(shape, fsdp) == spec


def test_mesh_axes_and_wrong_sizes():
    mesh = meshes.make_mesh()
    assert dict(mesh.shape) == {"data": jax.device_count(), "fsdp": 1}
    count = jax.device_count()
    with refused(count + 1, count, where="mesh.fsdp"):
        meshes.make_mesh(fsdp=count + 1)
    with refused(3 * count, count, where="mesh"):
        meshes.make_mesh(data=3 * count)


def test_put_batch_keeps_types_and_names_what_does_not_divide():
    mesh = meshes.make_mesh()
    batch = {"image": np.ones((2, 3), np.float32), "valid": np.array([True, False])}
    placed = meshes.put_batch(batch, mesh)
    assert {k: (v.dtype, v.shape) for k, v in placed.items()} == {
        "image": (jnp.float32, (2, 3)),
        "valid": (jnp.bool_, (2,)),
    }
    with refused("nested/scale", where="batch"):
        meshes.put_batch({"nested": {"scale": np.float32(1.0)}}, mesh)


def test_map_images_is_a_drop_in_for_vmap():
    def one(image, boxes, rng):
        return {"mean": image.mean() + boxes["a"].sum(), "draw": jax.random.uniform(rng)}, boxes["b"]

    images, keys = jnp.arange(12.0).reshape(4, 3), jax.random.split(jax.random.key(0), 4)
    boxes = {"a": jnp.ones((4, 2)), "b": jnp.arange(4)}
    wanted = jax.vmap(one)(images, boxes, keys)
    got = jax.jit(meshes.shard_map_images(meshes.make_mesh())(one))(images, boxes, keys)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_map_images_takes_loops_that_start_from_constants():
    def one(row):
        return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] + row), (0, jnp.zeros(3)))[1]

    rows = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(meshes.shard_map_images(meshes.make_mesh())(one)(rows), 3 * rows)


def test_placed_tree_owns_its_buffers():
    sources = [np.ones((n, 64), np.float32) for n in range(1, 40)]  # some of them aligned, so that JAX could share
    placed = meshes.place(sources, meshes.make_mesh())
    for source in sources:
        source[:] = 7
    assert all((np.asarray(x) == 1).all() for x in placed)


def test_constants_that_lie_as_they_should_are_not_copied():
    mesh, host = meshes.make_mesh(), np.ones(4, np.float32)
    first = meshes.place_constants({"teacher": host}, mesh)
    host[:] = 7
    assert (np.asarray(first["teacher"]) == 1).all()
    again = meshes.place_constants({"teacher": first["teacher"], "other": jnp.ones(3)}, mesh)
    assert again["teacher"] is first["teacher"]
    assert again["other"].sharding == first["teacher"].sharding


def under_slurm(index: int, port: int) -> dict[str, str]:
    """Of one of two tasks that `srun` starts on this machine; JAX makes a port of the job's number."""
    task = {"SLURM_NTASKS": "2", "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)}
    return task | {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": str(port)}


def by_hand(index: int, port: int) -> dict[str, str]:
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    return pod | {"ELK_COORDINATOR": f"localhost:{port}", "ELK_NUM_PROCESSES": "2", "ELK_PROCESS_ID": str(index)}


def on_a_tpu_slice(index: int, port: int) -> dict[str, str]:
    """Of one of two workers, as Kubernetes describes them. JAX is told to believe in chips; it would ask a metadata
    server for several slices if the environment did not say that there is one."""
    worker = {"TPU_WORKER_HOSTNAMES": "localhost,localhost", "TPU_WORKER_ID": str(index)}
    one_slice = {"MEGASCALE_COORDINATOR_ADDRESS": "", "MEGASCALE_NUM_SLICES": "", "MEGASCALE_SLICE_ID": ""}
    return worker | one_slice | {"JAX_FORCE_TPU_INIT": "1", "JAX_COORDINATOR_PORT": str(port)}


@pytest.mark.parametrize(
    "environment, gpus",
    [(under_slurm, ["0", "1"]), (by_hand, ["all", "all"]), (on_a_tpu_slice, ["all", "all"])],
)
def test_processes_join_and_jax_understands_which_gpus_are_meant(tmp_path, environment, gpus):
    port = processes.free_port()
    started = [
        processes.start([*JOINED, tmp_path / str(i)], tmp_path / f"log{i}", **environment(i, port)) for i in range(2)
    ]
    assert processes.finish(started, 120) == [0, 0], processes.said(tmp_path)
    found = [json.loads((tmp_path / str(i)).read_text()) for i in range(2)]
    assert found == [{"process": i, "processes": 2, "gpus": gpus[i]} for i in range(2)]


def test_collectives_are_found_in_program_text():
    text = """HloModule jit_f

ENTRY %main (p: f32[2,300], q: f32[8,4]) -> f32[8,4] {
  %p = f32[2,300]{1,0} parameter(0)
  %q = f32[8,4]{1,0} parameter(1)
  %x = f32[16,300]{1,0} all-gather(%p), channel_id=1, metadata={op_name="jit(f)/top_k"}
  %y = (f32[8,4]{1,0}, f32[8,4]{1,0}) all-reduce-start(%q), channel_id=2
  %z = f32[4]{0} fusion(%x), kind=kLoop, calls=%all-gather.3
  ROOT %d = f32[8,4]{1,0} all-reduce-done(%y)
}
"""
    assert hlo.collectives(text) == [("all-gather", 4800, "jit(f)/top_k"), ("all-reduce", 32, "")]
    assert [c.kind for c in hlo.gathers(text)] == ["all-gather"]


def test_every_device_gets_whole_examples_of_every_micro_batch():
    four = SimpleNamespace(size=4)
    meshes.check_micro_batches(16, 4, four)
    meshes.check_micro_batches(4, 1, four)
    for batch_size, accumulate in ((8, 4), (16, 3), (4, 2)):
        with refused(batch_size, accumulate, 4, accumulate * 4, where="accumulate"):
            meshes.check_micro_batches(batch_size, accumulate, four)
