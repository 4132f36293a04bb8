"""Weak and strong scaling of a training step over the devices of a run, data-parallel and with the state split (FSDP).

    python benchmarks/scaling.py --workload=detector --size=800x1333 --dtype=bfloat16 --batch=2     all GPUs or TPUs
    python benchmarks/scaling.py --workload=inpainter --model=sd15 --size=512 --dtype=bfloat16 --remat --devices=1,4,8
    python benchmarks/scaling.py --workload=inpainter --size=64 --simulated=8                       on a CPU

Start several processes as for launch/train.py: under SLURM, on a Cloud TPU slice, or with ELK_COORDINATOR. The output
is a table, followed by one JSON object as the last line; benchmarks/README.md explains both. The exit code is 2 if runs
with the same batch on different devices do not have the same losses.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks import measure, painter, workload  # noqa: E402
from benchmarks.scaling_run import Point, Run, Training  # noqa: E402
from elk_jax import host_memory  # noqa: E402
from elk_jax.backbones.resnet import BLOCKS  # noqa: E402
from elk_jax.detection import detectors  # noqa: E402
from elk_jax.errors import UserError, run_main  # noqa: E402
from elk_jax.output import Console  # noqa: E402
from elk_jax.precision import DTYPES  # noqa: E402
from elk_jax.tasks.detection.model import trainable  # noqa: E402
from elk_jax.training import mesh as meshes  # noqa: E402
from elk_jax.training.step.gradient import gradient  # noqa: E402
from elk_jax.training.step.step import on_mesh  # noqa: E402

KINDS = ("strong", "weak")
LAYOUTS = ("data", "fsdp")
TOLERANCE = {"float64": 1e-7, "float32": 1e-3, "bfloat16": 5e-2}
"""Largest relative difference of the losses of the same batches: due to rounding, which detection amplifies when the
order of two nearly equal scores decides which regions are trained on."""


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.simulated:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", options.simulated)
    if options.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    host_memory.keep_freed()  # as in the launch scripts
    meshes.initialize_distributed()
    training = {"detector": detector, "inpainter": inpainter}[options.workload](options)
    counts = device_counts(options.devices, jax.device_count())
    curves = plan(counts, options.scaling, options.layouts, options.batch)
    result = benchmark(
        training,
        curves,
        updates=options.updates,
        repetitions=options.repetitions,
        least_seconds=options.least_seconds,
        tolerance=TOLERANCE[options.dtype] if options.tolerance is None else options.tolerance,
    )
    if jax.process_index() == 0:
        print_table(result)
        print(json.dumps(result, allow_nan=False), flush=True)
    check_losses(result["losses"])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", default="detector", choices=("detector", "inpainter"))
    parser.add_argument("--simulated", type=int, default=0, help="simulate this many devices on the CPU (per process)")
    parser.add_argument("--devices", default="", help="such as 1,2,4; default: powers of two up to all")
    parser.add_argument("--scaling", default="strong,weak", help="strong: one global batch; weak: one batch per device")
    parser.add_argument("--layouts", default="data,fsdp", help="fsdp: parameters and optimiser state are split")
    parser.add_argument("--batch", type=int, default=1,
                        help="images per device in weak scaling, and in strong scaling on all devices")  # fmt: skip
    parser.add_argument("--size", default="", help="detector: HEIGHTxWIDTH (512x512); inpainter: a side (256)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--remat", action="store_true", help="recompute activations in the backward pass")
    parser.add_argument("--depth", type=int, default=50, choices=tuple(BLOCKS), help="layers of the detector's ResNet")
    parser.add_argument("--model", default="", choices=("", "tiny", *painter.MODELS),
                        help="size of the inpainter; sd15: Stable Diffusion 1.5; tiny: for tests of both")  # fmt: skip
    parser.add_argument("--updates", type=int, default=5, help="updates whose losses are compared")
    parser.add_argument("--repetitions", type=int, default=5, help="rounds; each times every run once, in turn")
    parser.add_argument("--least_seconds", type=float, default=0.5, help="least time per run and round")
    parser.add_argument("--tolerance", type=float, help="largest relative difference of losses; default by --dtype")
    options = parser.parse_args(arguments)
    for name in ("batch", "updates", "repetitions"):
        if getattr(options, name) < 1:
            raise UserError(f"{name} is {getattr(options, name)}", where=f"--{name}", todo="give at least 1")
    if options.simulated < 0:
        raise UserError(f"simulated is {options.simulated}", where="--simulated", todo="give a number of devices")
    options.scaling = _choices("--scaling", options.scaling, KINDS)
    options.layouts = _choices("--layouts", options.layouts, LAYOUTS)
    return options


def _choices(flag: str, text: str, known: Sequence[str]) -> list[str]:
    words = text.split(",")
    unknown = [word for word in words if word not in known]
    if unknown:
        raise UserError(f"unknown '{unknown[0]}'", where=flag, todo=f"give one or more of {','.join(known)}")
    return [word for word in known if word in words]


def device_counts(text: str, available: int) -> list[int]:
    """'1,2,4' -> [1, 2, 4]; '' -> powers of two below `available`, and `available`."""
    if not text:
        powers = itertools.takewhile(lambda n: n < available, (2**i for i in itertools.count()))
        return [*powers, available]
    words = text.split(",")
    counts = sorted({int(word) for word in words if word.isdigit()})
    if len(counts) != len(words) or counts[0] < 1:
        raise UserError(f"devices are '{text}'", where="--devices", todo="give different whole numbers, such as 1,2,4")
    if counts[-1] > available:
        todo = f"give at most {available}, or simulate them: --simulated={counts[-1]}"
        raise UserError(f"there are {available} devices, not {counts[-1]}", where="--devices", todo=todo)
    return counts


def plan(
    counts: Sequence[int], kinds: Sequence[str], layouts: Sequence[str], batch: int
) -> dict[str, dict[str, list[Point]]]:
    """kind -> layout -> its points by number of devices. Points that curves share are equal.

    UserError if the batch of strong scaling is not divisible.
    """
    whole = batch * counts[-1]
    uneven = [count for count in counts if "strong" in kinds and whole % count]
    if uneven:
        raise UserError(
            f"the global batch of {whole} is not divisible by {uneven[0]} devices",
            where="--batch, --devices",
            todo="choose a multiple of every number of devices, or --scaling=weak",
        )

    def point(kind: str, layout: str, count: int) -> Point:
        return Point(layout if count > 1 else "data", count, whole if kind == "strong" else batch * count)

    return {kind: {layout: [point(kind, layout, n) for n in counts] for layout in layouts} for kind in kinds}


def detector(options: argparse.Namespace) -> Training:
    size = workload.parse_size(options.size or "512x512")
    config = workload.faster_rcnn(
        options.depth, options.dtype, tiny=options.model == "tiny", remat=(2, 3) if options.remat else ()
    )
    model, resnet = trainable(detectors.build(config)), config.backbone
    return Training(
        {"workload": "detector", "size": list(size), **{n: getattr(resnet, n) for n in ("depth", "dtype", "remat")}},
        program=lambda mesh: on_mesh(gradient(model, workload.RECIPE, mesh), mesh),
        params=lambda: model.init(jax.random.key(0)),
        batches=lambda count, batch: workload.phantom_batches(size, batch, count),
    )


def inpainter(options: argparse.Namespace) -> Training:
    if options.size and not options.size.isdigit():
        raise UserError(f"size is '{options.size}'", where="--size", todo="give the side of a square, for example 256")
    work = painter.Workload(
        model=options.model or "small", size=int(options.size or 256), dtype=options.dtype, remat=options.remat
    )
    return Training(
        {"workload": "inpainter", **{name: getattr(work, name) for name in ("model", "size", "dtype", "remat")}},
        program=lambda mesh: painter.training(work, mesh),
        params=lambda: painter.init(work, jax.random.key(0)),
        batches=lambda count, batch: [
            painter.random_batch(dataclasses.replace(work, batch=batch), seed) for seed in range(count)
        ],
    )


def benchmark(
    training: Training,
    curves: Mapping[str, Mapping[str, Sequence[Point]]],
    *,
    updates: int,
    repetitions: int,
    least_seconds: float,
    tolerance: float,
) -> dict[str, Any]:
    """The content of the JSON line, complete in process 0. Every process of the run calls this."""
    surroundings = measure.surroundings()
    every = {point for of_kind in curves.values() for points in of_kind.values() for point in points}
    points = sorted(every, key=lambda point: (point.devices, point.layout, point.batch))
    wide = training.settings["dtype"] == "float64"
    params = _floats(jax.device_get(training.params()), wide)
    batches = _floats(training.batches(updates, max(point.batch for point in points)), wide)
    runs = [Run(point, training, params, batches) for point in points]
    losses: dict[Point, list[float]] = {}
    calls: list[int] = []
    for run in runs:
        if run.takes_part:
            losses[run.point] = run.losses()
        calls.append(_of_first_process(run.calls(least_seconds) if run.takes_part else 0))
    times = {clock: np.zeros((len(runs), repetitions)) for clock in measure.CLOCKS}
    for number in range(repetitions):
        for i, run in enumerate(runs):
            _meet()
            for clock, seconds in (run.timed(calls[i]) if run.takes_part else {}).items():
                times[clock][i, number] = seconds
    times["cpu"] = _sum_over_processes(times["cpu"])
    compared = compare_losses(losses, tolerance)
    compared["agree"] = bool(_of_first_process(int(compared["agree"])))
    simulated = jax.default_backend() == "cpu"
    measured = "efficiency" if not simulated else "work" if jax.process_count() == 1 else None
    rows = {point: {clock: times[clock][i] for clock in measure.CLOCKS} for i, point in enumerate(points)}
    return {
        "benchmark": "scaling",
        "settings": {**training.settings, "updates": updates, "repetitions": repetitions},
        **surroundings,
        "simulated": simulated,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "runs": [
            {
                **run.description(),
                "losses": losses[run.point],
                "calls_per_repetition": calls[i],
                "seconds": measure.spread(list(times["wall"][i])),
                "images_per_second": run.point.batch / float(np.median(times["wall"][i])),
                "cpu_seconds": measure.spread(list(times["cpu"][i])),
            }
            for i, run in enumerate(runs)
            if jax.process_index() == 0
        ],
        **{
            kind: {
                layout: [
                    dataclasses.asdict(point) | relative(point, of_layout[0], rows, measured) for point in of_layout
                ]
                for layout, of_layout in of_kind.items()
            }
            for kind, of_kind in curves.items()
            if jax.process_index() == 0
        },
        "losses": compared,
    }


def relative(
    point: Point, base: Point, times: Mapping[Point, Mapping[str, np.ndarray]], measured: str | None
) -> dict[str, dict[str, float] | None]:
    """The spread over rounds of `measured`, relative to `base` in the same round; None for the others.

    efficiency: images per second and device. Not for simulated devices, which share the cores of a machine.
    work: processor time per image, of all threads. Only for simulated devices of one process: real devices do not work
    on the processor, and processes use processor time while they wait for each other.
    """

    def per_image(each: Point, clock: str) -> np.ndarray:
        return times[each][clock] / each.batch

    found: dict[str, dict[str, float] | None] = {"efficiency": None, "work": None}
    if measured == "work":
        found["work"] = measure.spread(list(per_image(point, "cpu") / per_image(base, "cpu")))
    if measured == "efficiency":
        speed = per_image(base, "wall") * base.devices / (per_image(point, "wall") * point.devices)
        found["efficiency"] = measure.spread(list(speed))
    return found


def compare_losses(losses: Mapping[Point, Sequence[float]], tolerance: float) -> dict[str, Any]:
    """The largest relative difference between points with the same global batch, and these points.

    `largest_relative_difference` is None if a loss is not finite, or if there is nothing to compare.
    """
    found: dict[str, Any] = {
        "largest_relative_difference": None, "between": None, "compared": 0, "tolerance": tolerance, "agree": True
    }  # fmt: skip
    first: dict[int, Point] = {}
    for point in sorted(losses, key=lambda point: (point.devices, point.layout)):
        reference = first.setdefault(point.batch, point)
        if not np.isfinite(losses[point]).all():
            return found | {"between": [str(reference), str(point)], "agree": False}
        if reference == point:
            continue
        wanted, got = np.asarray(losses[reference]), np.asarray(losses[point])
        difference = float(np.max(np.abs(got - wanted) / np.maximum(np.abs(wanted), 1e-300)))
        found["compared"] += 1
        if found["largest_relative_difference"] is None or difference > found["largest_relative_difference"]:
            found |= {"largest_relative_difference": difference, "between": [str(reference), str(point)]}
    found["agree"] = (found["largest_relative_difference"] or 0) <= tolerance
    return found


def check_losses(compared: Mapping[str, Any]) -> None:
    """UserError unless the losses agree."""
    if compared["agree"]:
        return
    difference = compared["largest_relative_difference"]
    one, other = compared["between"] or ["one device", "others"]
    todo = "compare with --dtype=float64: if they differ there too, the program is wrong"
    if difference is None:
        raise UserError(f"a loss of {one} or {other} is not finite", where="losses", todo=todo)
    allowed = f"by {difference:.1e} of their value, where {compared['tolerance']:.0e} is allowed"
    raise UserError(f"the losses of {one} and {other} differ {allowed}", where="losses", todo=todo)


def print_table(result: Mapping[str, Any]) -> None:
    simulated = result["simulated"]
    kind = "simulated devices of a CPU" if simulated else result["hardware"]["device"]
    measured = "work" if simulated else "efficiency"
    table = Table(header_style="bold")
    for name in ("scaling", "layout"):
        table.add_column(name)
    for name in ("devices", "batch", "seconds per update", "images/s", measured, "state (MB)", "collectives (MB)"):
        table.add_column(name, justify="right")
    runs = {Point(run["layout"], run["devices"], run["batch"]): run for run in result["runs"]}
    for scaling in KINDS:
        for layout, points in result.get(scaling, {}).items():
            for row in points:
                run = runs[Point(row["layout"], row["devices"], row["batch"])]
                table.add_row(
                    scaling,
                    layout,
                    str(row["devices"]),
                    str(row["batch"]),
                    _median_and_range(run["seconds"]),
                    f"{run['images_per_second']:.3g}",
                    _median_and_range(row[measured]) if row[measured] else "",
                    f"{run['state_bytes_per_device']['total'] / 1e6:.1f}",
                    f"{sum(each['bytes'] for each in run['collectives'].values()) / 1e6:.1f}",
                )
    console = Console(width=140)
    console.print(", ".join(f"{name} {value}" for name, value in result["settings"].items()))
    console.print(f"{result['devices']} x {kind}; processes: {result['processes']}")
    console.print(table)
    console.print("state: on each device; collectives: data that a device reduces and gathers in an update.")
    if simulated:
        console.print("Simulated devices share the cores of a machine, so these seconds say nothing about scaling.")
        console.print(
            "work: processor time per image over all threads, relative to the fewest devices (of one process)."
        )
    else:
        console.print("efficiency: images per second and device, relative to the fewest devices.")
    losses = result["losses"]
    if losses["largest_relative_difference"] == 0:
        console.print("The losses of the same batches are equal.")
    elif losses["largest_relative_difference"] is not None:
        one, other = losses["between"]
        console.print(f"The losses differ most, by {losses['largest_relative_difference']:.1e}, on {one} and {other}.")


def _median_and_range(values: Mapping[str, float]) -> str:
    return f"{values['median']:.3f} ({values['min']:.3f} to {values['max']:.3f})"


def _floats(tree: Any, wide: bool) -> Any:
    """NumPy arrays; floats as float64 if `wide`."""

    def convert(x: Any) -> np.ndarray:
        x = np.asarray(x)
        return x.astype(np.float64) if wide and np.issubdtype(x.dtype, np.floating) else x

    return jax.tree.map(convert, tree)


def _of_first_process(number: int) -> int:
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def _sum_over_processes(values: np.ndarray) -> np.ndarray:
    if jax.process_count() == 1:
        return values
    return np.asarray(multihost_utils.process_allgather(values.astype(np.float32)), np.float64).sum(0)


def _meet() -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("next run")


if __name__ == "__main__":
    run_main(main)
