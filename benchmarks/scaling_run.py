"""One run of the scaling benchmark: a training step on some of the devices, in one layout."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks import measure
from elk_jax.errors import UserError
from elk_jax.programs.account import account
from elk_jax.training import mesh as meshes
from elk_jax.training.step.step import Program


class Training(NamedTuple):
    """The subject of training. batches: (count, batch size) -> host batches, the same in every process."""

    settings: dict[str, Any]
    program: Callable[[Mesh], Program]
    params: Callable[[], Any]
    batches: Callable[[int, int], list[dict[str, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class Point:
    """One measured run: a layout, a number of devices and a global batch. layout: 'data' for one device."""

    layout: str
    devices: int
    batch: int

    def __str__(self) -> str:
        return f"{self.devices} device{'' if self.devices == 1 else 's'} ({self.layout})"


class Run:
    """A point with its compiled update. `losses` and `timed` start from the same parameters, and leave no state behind.

    A process without a device of the point has nothing to do; process 0 always has one.
    """

    def __init__(self, point: Point, training: Training, params: Any, batches: Sequence[dict[str, np.ndarray]]):
        self.point, self._params = point, params
        self.mesh = mesh_of(point)
        self.program = training.program(self.mesh)
        self.takes_part = any(device.process_index == jax.process_index() for device in self.mesh.devices.flat)
        if not self.takes_part:
            return
        rows = local_rows(self.mesh, point.batch)
        self._batches = [{name: x[: point.batch][rows] for name, x in batch.items()} for batch in batches]
        self._first = meshes.put_batch(self._batches[0], self.mesh)
        start = time.perf_counter()
        self._update = self.program.update.lower(self.program.state, {}, self._first).compile()
        self.compile_seconds = time.perf_counter() - start

    def _fresh(self) -> Any:
        return self.program.init(meshes.place(self._params, self.mesh))

    def losses(self) -> list[float]:
        """Of one update on each batch."""
        state, found = self._fresh(), []
        for batch in self._batches:
            state, metrics = self._update(state, {}, meshes.put_batch(batch, self.mesh))
            found.append(float(metrics["loss"]))
        return found

    def calls(self, least_seconds: float) -> int:
        """The number of updates in a row that take `least_seconds`. Every process runs two."""
        with self._steps() as step:
            measure.times_per_call(step, 1)
            seconds = measure.times_per_call(step, 1)["wall"]
        return max(1, min(200, round(least_seconds / max(seconds, 1e-6))))

    def timed(self, calls: int) -> dict[str, float]:
        """Seconds of an update by each of measure.CLOCKS, after one uncounted update."""
        with self._steps() as step:
            measure.times_per_call(step, 1)
            return measure.times_per_call(step, calls)

    @contextlib.contextmanager
    def _steps(self) -> Iterator[Callable[[], Any]]:
        """A function that runs an update of a fresh state."""
        state = jax.block_until_ready(self._fresh())

        def step() -> Any:
            nonlocal state
            state, metrics = self._update(state, {}, self._first)
            return state, metrics

        yield step

    def description(self) -> dict[str, Any]:
        """Of process 0."""
        return {
            **dataclasses.asdict(self.point),
            "compile_seconds": self.compile_seconds,
            "state_bytes_per_device": state_bytes(self.program.state),
            "program_bytes_per_device": measure.program_bytes(self._update),
            "collectives": collectives(self._update, self.point.devices),
        }


def mesh_of(point: Point) -> Mesh:
    """The mesh of a point: its devices are the first of all, process after process.

    UserError if they form no mesh (those of a TPU must be a box of its slice), or if processes have unequal parts of
    it.
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))[: point.devices]
    if len(set(Counter(device.process_index for device in devices).values())) > 1:
        raise UserError(
            f"{point.devices} devices are not divided equally among the processes",
            where="--devices",
            todo="choose at most the devices of one process, or multiples of that number",
        )
    try:
        return meshes.make_mesh(fsdp=point.devices if point.layout == "fsdp" else 1, devices=devices)
    except (AssertionError, NotImplementedError, ValueError) as error:
        raise UserError(
            f"{point.devices} of these devices form no mesh", where="--devices", todo="choose powers of two"
        ) from error


def local_rows(mesh: Mesh, batch: int) -> np.ndarray:
    """The rows of a global batch on the devices of this process; a mesh of a TPU slice interleaves processes."""
    rows = np.arange(batch).reshape(mesh.size, -1)
    mine = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
    return rows[mine].ravel()


def collectives(compiled: Any, devices: int) -> dict[str, dict[str, int]]:
    """kind -> bytes of the arrays that are reduced or gathered on a device in one update, and their number."""
    found: dict[str, dict[str, int]] = {}
    for (kind, _), moved in account(compiled, devices).collectives().items():
        before = found.get(kind, {"bytes": 0, "number": 0})
        found[kind] = {"bytes": before["bytes"] + moved.bytes, "number": before["number"] + moved.number}
    return found


def state_bytes(state: Any) -> dict[str, int]:
    """Bytes of a training state (shapes with layouts) that one device holds, by part, and of the whole."""

    def held(tree: Any) -> int:
        return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))

    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    return {"params": held(state.params), "opt_state": held(state.opt_state), "total": held(state), "whole": whole}
