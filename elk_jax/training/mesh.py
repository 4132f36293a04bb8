"""Devices as a mesh ("data", "fsdp"): placement of parameters and batches, and per-image steps that stay on a shard.

The batch is split over both axes; parameters are split over "fsdp" only (ZeRO-3 style: the compiler gathers a layer's
parameters where they are used). With fsdp=1 this is plain data parallelism.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from elk_jax.errors import UserError
from elk_jax.training import cluster
from elk_jax.training.model import MapImages

BATCH_AXES = ("data", "fsdp")
SMALL = 2**16
"""Parameters with fewer elements are replicated: gathering them would cost more than it saves."""


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices of all processes (or the given ones); `data=-1` uses what `fsdp` leaves."""
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if fsdp < 1 or count % fsdp:
        raise UserError(f"fsdp={fsdp} does not divide the {count} devices", where="mesh.fsdp", todo="choose a divisor")
    data = count // fsdp if data == -1 else data
    if data * fsdp != count:
        raise UserError(
            f"data={data} times fsdp={fsdp} does not equal {count} devices", where="mesh", todo="set mesh.data=-1"
        )
    return jax.make_mesh((data, fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over all devices."""
    return NamedSharding(mesh, P(BATCH_AXES))


def leaf_spec(shape: tuple[int, ...], fsdp: int, small: int = SMALL) -> P:
    """Split the largest axis divisible by `fsdp` (the last of equals); replicate small and indivisible leaves."""
    divisible = [axis for axis, size in enumerate(shape) if size and size % fsdp == 0]
    if fsdp == 1 or not divisible or int(np.prod(shape)) < small:
        return P()
    axis = max(divisible, key=lambda axis: (shape[axis], axis))
    return P(*(["fsdp" if i == axis else None for i in range(axis + 1)]))


def tree_shardings(tree: Any, mesh: Mesh, small: int = SMALL) -> Any:
    """A NamedSharding for every leaf (array or abstract shape) by `leaf_spec`, for example of parameters."""
    return jax.tree.map(lambda x: NamedSharding(mesh, leaf_spec(x.shape, mesh.shape["fsdp"], small)), tree)


def init_sharded(init: Callable[..., Any], *args: Any, mesh: Mesh, small: int = SMALL) -> Any:
    """`init(*args)` laid out by `tree_shardings`.

    With fsdp > 1 the tree is created sharded (shapes -> rules -> jit with out_shardings), so it never has to fit on one
    device. Otherwise `init` runs eagerly, which avoids compiling one large program, and the result is replicated.
    """
    if mesh.shape["fsdp"] > 1:
        shardings = tree_shardings(jax.eval_shape(init, *args), mesh, small)
        return jax.jit(init, out_shardings=shardings)(*args)
    return place(init(*args), mesh, small)


def place(tree: Any, mesh: Mesh, small: int = SMALL) -> Any:
    """Place a tree that every process holds in full (arrays of any kind). The result owns its buffers."""
    return jax.tree.map(_put, tree, tree_shardings(tree, mesh, small))


def place_constants(tree: Any, mesh: Mesh) -> Any:
    """`place` for arrays that are never donated: those already in place are not copied."""

    def put(x, sharding):
        return x if isinstance(x, jax.Array) and x.sharding == sharding else _put(x, sharding)

    return jax.tree.map(put, tree, tree_shardings(tree, mesh))


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
    host = np.array(x)  # a copy: on a CPU the device array may share its memory
    if jax.process_count() == 1:
        return jax.device_put(host, sharding)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def on_host(tree: Any, mesh: Mesh) -> Any:
    """The complete arrays of a tree on the devices, as NumPy, on every process; all processes must call this."""
    if not all(x.is_fully_replicated for x in jax.tree.leaves(tree)):
        tree = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)
    return jax.device_get(tree)


def put_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Move a host batch onto the devices, split along its leading axis.

    Every process passes its own part: the rows of the global batch on its devices, in the order of the mesh. The parts
    are in process order, except on a TPU slice, whose mesh interleaves the processes.
    """
    sharding = batch_sharding(mesh)
    local_devices = mesh.local_mesh.devices.size

    def put(path, x):
        x = np.asarray(x)
        if x.ndim == 0 or x.shape[0] % local_devices:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(
                f"{name} of shape {x.shape} cannot be divided among {local_devices} devices",
                where="batch",
                todo=f"choose a batch size that is a multiple of {mesh.size}, or fewer devices (CUDA_VISIBLE_DEVICES)",
            )
        if jax.process_count() == 1:
            return jax.device_put(x, sharding)
        return jax.make_array_from_process_local_data(sharding, x)

    return jax.tree_util.tree_map_with_path(put, dict(batch))


def spread_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Lay out a batch that every process holds in full over the devices. Its rows stay in their order on any mesh.

    A number of rows that the devices do not divide is filled up with copies of the last row, whose `valid` is False.
    """
    count = len(jax.tree.leaves(batch)[0])
    rows = np.minimum(np.arange(count + -count % mesh.size), count - 1)
    filled = jax.tree.map(lambda x: np.asarray(x)[rows], dict(batch))
    if "valid" in filled:
        filled["valid"][count:] = False
    return jax.tree.map(lambda x: _put(x, batch_sharding(mesh)), filled)


def check_micro_batches(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raise UserError if a global batch in `accumulate` parts does not give every device whole examples."""
    if batch_size % (accumulate * mesh.size):
        raise UserError(
            f"a batch of {batch_size} in {accumulate} micro-batches cannot be divided among {mesh.size} devices",
            where="accumulate",
            todo=f"choose a batch size that is a multiple of {accumulate * mesh.size}, or a smaller accumulate",
        )


def shard_map_images(mesh: Mesh) -> MapImages:
    """A drop-in for `jax.vmap` of per-image functions that never moves data between devices.

    `shard_map_images(mesh)(fn)(*args)`: every leaf of args and of the result has the batch as leading axis, a multiple
    of the number of devices. Each device maps `fn` over its own images. Under plain jit, a batch-sharded `lax.top_k`
    (JAX 0.10) first gathers the whole batch on every device. `fn` may close over constants, not over sharded arrays.
    """

    def map_images(fn: Callable[..., Any]) -> Callable[..., Any]:
        # Loop carries inside fn start from constants, which the check of varying axes would refuse; fn has no
        # collective that the check could protect.
        return jax.shard_map(jax.vmap(fn), mesh=mesh, in_specs=P(BATCH_AXES), out_specs=P(BATCH_AXES), check_vma=False)

    return map_images


def traced_on(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, traced with `mesh` as JAX's ambient mesh.

    Kernels that the compiler cannot split read from it how a batch is split over devices (`diffusion/attention.py`).
    """

    @functools.wraps(function)
    def on_mesh(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return on_mesh


def initialize_distributed(environment: Mapping[str, str] = os.environ) -> None:
    """Join the other processes of this run, as described by `cluster.find`; does nothing for a single-process run.

    Call this before any other use of JAX. Raises UserError if the others cannot be joined, or if their description is
    incomplete.
    """
    described = cluster.find(environment)
    if described is None:
        return
    try:
        jax.distributed.initialize(**described)
        # Gloo gives the first collective 30 s to find the others, later ones any time: meet while all are present
        if jax.distributed.is_initialized():
            multihost_utils.sync_global_devices("joined")
    except (RuntimeError, ValueError) as error:
        by_slurm = described["cluster_detection_method"] == "slurm"
        where = described.get("coordinator_address", "SLURM" if by_slurm else "TPU slice")
        raise UserError(f"could not join the other processes: {error}", where=where) from error


def gathered(text: str) -> list[str]:
    """The texts of all processes, on every process; all of them must call this."""
    if jax.process_count() == 1:
        return [text]
    raw = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.asarray(raw.size, np.int32)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: raw.size] = raw
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes)]
