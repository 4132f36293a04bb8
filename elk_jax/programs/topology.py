"""Slices of chips to compile for: those present, or absent TPUs. The TPU's compiler runs on any machine."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from elk_jax.errors import UserError
from elk_jax.programs import chips, libtpu
from elk_jax.programs.chips import Chip, measured_chip

HERE = "here"
"""The name for the devices of this machine."""
TPUS = {chip.name: chip for chip in chips.CHIPS if chip.kind.startswith("TPU")}


class Slice(NamedTuple):
    """Devices for which a program is compiled."""

    name: str
    devices: tuple[Any, ...]
    chip: Chip

    @property
    def is_here(self) -> bool:
        return self.name == HERE


def find(name: str) -> Slice:
    """`here`, or a slice of TPUs such as v5e:4x4 or v5p:2x2x4. UserError for any other name.

    TPUs need libtpu (`pip install elk_jax[tpu]`), but no TPU.
    """
    if name == HERE:
        devices = jax.devices()
        chip = chips.of_device(devices[0].device_kind) or measured_chip(devices[0], len(devices))
        limit = (devices[0].memory_stats() or {}).get("bytes_limit", chip.memory)  # JAX uses only a part of a GPU
        return Slice(HERE, tuple(devices), chip._replace(memory=float(limit)))
    generation, _, shape = name.partition(":")
    sides = [int(side) for side in shape.split("x")] if re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4}){0,2}", shape) else []
    if generation not in TPUS or not sides:
        todo = f"give '{HERE}', or a generation ({', '.join(TPUS)}) with its shape, such as v5e:4x4 or v5p:2x2x4"
        raise UserError(f"'{name}' is not a slice of TPUs", where="--topology", todo=todo)
    if not libtpu.is_installed():
        raise UserError(
            "the TPU compiler is not installed", where=f"--topology={name}", todo="run: pip install 'elk_jax[tpu]'"
        )
    libtpu.only_compile()
    try:
        devices = topologies.get_topology_desc(f"{generation}:{shape}", platform="tpu", **_layout(name, sides)).devices
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        todo = "give a shape that exists: 1x1, 2x2, 2x4, 4x4, ... (v5e, v6e), 2x2x1, 2x2x2, 2x2x4, ... (v4, v5p)"
        raise UserError(f"libtpu knows no such slice: {reason}", where=f"--topology={name}", todo=todo) from error
    return Slice(name, tuple(devices), TPUS[generation])


def _layout(name: str, sides: list[int]) -> dict[str, Any]:
    """Settings beyond libtpu's assumptions: a host with a single chip, and the two cores of a v4 chip as one device."""
    one_chip = {"chips_per_host_bounds": (1, 1, 1)} if set(sides) == {1} else {}
    return one_chip | ({"chip_config_name": "megacore"} if name.startswith("v4") else {})


def compile_for(lowered: Any, target: Slice, quick: bool = False) -> Any:
    """The executable of a program lowered for the devices of a slice.

    quick: with minimum effort of the TPU's compiler, for tests (a convolution takes 1 s instead of 6). Programs for
    absent TPUs are not cached, since JAX could not read them back.
    """
    if target.is_here:
        return lowered.compile()
    with _without_cache():
        return lowered.compile({"exec_time_optimization_effort": -1.0} if quick else None)


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    longest = jax.config.jax_persistent_cache_min_compile_time_secs  # type: ignore[attr-defined]
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
    try:
        yield
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", longest)
