"""Times, their spread, and the surroundings of a measurement, for every benchmark."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from elk_jax.programs import chips

LIBRARIES = ("elk_jax", "jax", "jaxlib", "flax", "optax", "grain", "numpy")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes."""
    if len(values) > 1:
        first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    else:
        first = third = values[0]
    return {
        "median": statistics.median(values),
        "quartile_1": first,
        "quartile_3": third,
        "min": min(values),
        "max": max(values),
    }


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Spread of theirs / ours over repetitions measured in turn: above 1, ours is faster."""
    return spread([a / b for a, b in zip(theirs, ours, strict=True)])


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""cpu: processor time of all threads, which measures the work of a program even on a busy CPU."""


def count(text: str) -> int:
    """A whole number of at least 1, as the `type` of a flag."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def add_clock(parser: argparse.ArgumentParser) -> None:
    """The flag --clock, one of CLOCKS."""
    words = "cpu: processor time of all threads, for a busy CPU"
    parser.add_argument("--clock", default="wall", choices=sorted(CLOCKS), help=words)


def times_per_call(call: Callable[[], Any], calls: int) -> dict[str, float]:
    """Mean time of `calls` calls in a row by each of CLOCKS, including the wait for the last result."""
    start = {name: now() for name, now in CLOCKS.items()}
    result = None
    for _ in range(calls):
        result = call()
    jax.block_until_ready(result)
    return {name: (now() - start[name]) / calls for name, now in CLOCKS.items()}


def seconds_per_call(call: Callable[[], Any], calls: int, clock: str = "wall") -> float:
    """`times_per_call` by one of CLOCKS."""
    return times_per_call(call, calls)[clock]


def calls_for(call: Callable[[], Any], least_seconds: float, most: int = 200) -> int:
    """Number of calls in a row that take `least_seconds`. Warms up with one call, or two short ones."""
    return calls_of_seconds(lambda: seconds_per_call(call, 1), least_seconds, most)


def calls_of_seconds(seconds: Callable[[], float], least_seconds: float, most: int = 200) -> int:
    """`calls_for` for a function that makes one call and returns its time."""
    first = seconds()
    if first > 4 * least_seconds:
        return 1
    return max(1, min(most, round(least_seconds / max(seconds(), 1e-6))))


def surroundings() -> dict[str, Any]:
    """Hardware, versions, and the load of the machine, which affects the times."""
    device = jax.devices()[0]
    return {
        "hardware": {
            "platform": device.platform,
            "device": device.device_kind,
            "cpu": _cpu_name(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "load_average": round(os.getloadavg()[0], 2),
        },
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}},
        "environment": {k: v for k, v in os.environ.items() if k.startswith(("XLA_", "JAX_", "OMP_"))},
    }


def peak_bf16(device_kind: str) -> float | None:
    """Published dense bfloat16 FLOP/s; None for a device that is not in the table of chips."""
    chip = chips.of_device(device_kind)
    return None if chip is None else chip.flops


def flops(cost: Mapping[str, float] | Sequence[Mapping[str, float]] | None) -> float | None:
    """Floating-point operations by XLA's cost analysis; None without them."""
    first = cost[0] if isinstance(cost, (list, tuple)) and cost else cost
    value = first.get("flops") if isinstance(first, Mapping) else None
    return value if value and value > 0 else None


def timing(seconds: Sequence[float], batch: int, calls: int, operations: float | None = None) -> dict[str, Any]:
    """Time of one call for a batch; with the FLOPs of the model also the share of the peak rate."""
    times = spread(seconds)
    values: dict[str, Any] = {
        "seconds": times,
        "calls_per_repetition": calls,
        "images_per_second": batch / times["median"],
    }
    if operations is not None:
        peak = peak_bf16(jax.devices()[0].device_kind)
        values["model_flops"] = operations
        values["model_flops_per_second"] = operations / times["median"]
        values["share_of_bf16_peak"] = operations / times["median"] / peak if peak else None
    return values


def program_bytes(compiled: Any) -> int | None:
    """Memory of one call by the compiler's estimate: arguments, results and temporaries; None without an estimate."""
    sizes = compiled.memory_analysis()
    if sizes is None:
        return None
    parts = (sizes.argument_size_in_bytes, sizes.output_size_in_bytes, sizes.temp_size_in_bytes)
    return int(sum(parts) - sizes.alias_size_in_bytes)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
