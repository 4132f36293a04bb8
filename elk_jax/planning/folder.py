"""A plan as a folder: plan.json and plan.html."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from elk_jax import files
from elk_jax.planning.page import page
from elk_jax.planning.plan import SPARE, Plan, Program, SlicePlan, efficiencies
from elk_jax.reporting.report import write_report

PLAN = "plan.json"


def write_plan(plan: Plan, folder: Path) -> None:
    """Write plan.json and plan.html."""
    with files.new_results(folder, PLAN, ()) as place:
        files.write_json(place / PLAN, as_json(plan))
        write_report(place / "plan.html", page(plan))


def as_json(plan: Plan) -> dict[str, Any]:
    """A plan as JSON-able data; sizes in bytes, times in seconds."""
    return {
        "experiment": plan.experiment,
        "stage": plan.stage,
        "batch_per_chip": plan.batch,
        "assumed": list(plan.assumed),
        "steps": plan.steps,
        "folds": plan.folds,
        "steps_in_all": plan.all_steps,
        "memory_spared": SPARE,
        "slices": [_slice_json(one) for one in plan.slices],
        "weak_scaling": [efficiency._asdict() for efficiency in efficiencies(plan)],
    }


def _slice_json(one: SlicePlan) -> dict[str, Any]:
    return {
        "topology": one.slice.name,
        "chips": len(one.slice.devices),
        "chip": {name: _finite(value) for name, value in one.slice.chip._asdict().items()},
        "mesh": dict(one.mesh),
        "fits": one.fits,
        "refused": [entry._asdict() for entry in one.refused],
        "largest_batch_per_chip": one.largest_batch,
        "programs": [_program_json(program) for program in one.programs],
    }


def _program_json(program: Program) -> dict[str, Any]:
    read, bound = program.account, program.bound
    seconds = {**bound._asdict(), "least": bound.least, "exposed": bound.exposed}
    return {
        "program": program.what,
        "shape": program.shape,
        "batch_per_chip": program.batch,
        "fits": program.fits,
        "memory": {**program.memory._asdict(), "total": program.memory.total},
        "flops": read.total.flops,
        "bytes": read.total.bytes,
        "layout_copy_bytes": read.layout_copies,
        "bytes_by_compiler": program.compiler_bytes,
        "seconds": {name: _finite(value) for name, value in seconds.items()},
        "measured_seconds": None if program.measured is None else program.measured._asdict(),
        "parts": {name: total._asdict() for name, total in read.by_part().items()},
        "parts_in_detail": {name: total._asdict() for name, total in read.by_part(3).items()},
        "collectives": [
            {"kind": kind, "chips": group, **moved._asdict()} for (kind, group), moved in read.collectives().items()
        ],
        "loops_counted_once": list(read.unknown_loops),
        "compile_seconds": program.compile_seconds,
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
