"""Published figures of chips: arithmetic, memory, and the links between chips."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_jax import host_memory


class Chip(NamedTuple):
    """One chip. flops: dense bfloat16 per second, with sums in float32. memory: bytes. bandwidth: of memory, bytes per
    second. links: bytes per second that a chip sends over all its links (half of the bidirectional figure; for GPUs
    over NVLink, or PCIe without NVLink).

    kind: part of JAX's name for the device.
    """

    name: str
    kind: str
    flops: float
    memory: float
    bandwidth: float
    links: float
    source: str


GIB = float(1 << 30)
_TPU = "cloud.google.com/tpu/docs/"
_NVIDIA = "nvidia.com, data sheet of the "

CHIPS = (
    Chip("v4", "TPU v4", 275e12, 32 * GIB, 1228e9, 300e9, _TPU + "v4"),
    Chip("v5e", "TPU v5 lite", 197e12, 16 * GIB, 819e9, 200e9, _TPU + "v5e"),
    Chip("v5p", "TPU v5", 459e12, 95 * GIB, 2765e9, 600e9, _TPU + "v5p"),
    Chip("v6e", "TPU v6", 918e12, 32 * GIB, 1638e9, 400e9, _TPU + "v6e"),
    Chip("GH200", "GH200", 989e12, 96e9, 4000e9, 450e9, _NVIDIA + "GH200"),
    Chip("H200", "H200", 989e12, 141e9, 4800e9, 450e9, _NVIDIA + "H200 SXM"),
    Chip("H100 PCIe", "H100 PCIe", 756e12, 80e9, 2000e9, 300e9, _NVIDIA + "H100 PCIe"),
    Chip("H100 NVL", "H100 NVL", 835e12, 94e9, 3938e9, 300e9, _NVIDIA + "H100 NVL"),
    Chip("H100", "H100", 989e12, 80e9, 3350e9, 450e9, _NVIDIA + "H100 SXM"),
    Chip("A100 80GB", "A100-SXM4-80GB", 312e12, 80e9, 2039e9, 300e9, _NVIDIA + "A100 SXM"),
    Chip("A100", "A100", 312e12, 40e9, 1555e9, 300e9, _NVIDIA + "A100 SXM"),
    Chip("L40S", "L40S", 362e12, 48e9, 864e9, 32e9, _NVIDIA + "L40S"),
    Chip("L4", "L4", 121e12, 24e9, 300e9, 32e9, _NVIDIA + "L4"),
)
"""The chip of a device is the first one whose `kind` is in its name."""


SIDE = 2048
"""Side of the matrices that measure arithmetic: large enough to hide the start-up of a product."""
COPIED = 1 << 26
"""Size of the array that measures memory bandwidth: larger than the caches."""
TRIES = 5


def of_device(kind: str) -> Chip | None:
    """The chip of JAX's `device_kind`; None for one that is not in the table, such as a CPU."""
    return next((chip for chip in CHIPS if chip.kind in kind), None)


def measured_chip(device: Any, devices: int) -> Chip:
    """The speed of a device that is not in the table, measured by a product of float32 matrices and a copy.

    devices: number that share the machine, such as simulated ones; each gets its part. Links are not measured
    (infinite).
    """
    with jax.default_device(device):
        matrix, array = jnp.ones((SIDE, SIDE)), jnp.ones(COPIED)
        product, copy = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1)
        flops = 2 * SIDE**3 / _best(lambda: product(matrix))
        bandwidth = 2 * 4 * COPIED / _best(lambda: copy(array))
    memory = float(host_memory.installed())
    shared = devices if device.platform == "cpu" else 1
    name = device.device_kind
    return Chip(name, name, flops / shared, memory / shared, bandwidth / shared, math.inf, "measured on this machine")


def _best(call: Callable[[], jax.Array]) -> float:
    call().block_until_ready()
    times = []
    for _ in range(TRIES):
        start = time.perf_counter()
        call().block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times)
