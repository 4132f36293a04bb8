"""A plan as tables for the terminal, as JSON, and as a page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from elk_jax import files
from elk_jax.output import Console
from elk_jax.planning.plan import SPARE, STEP, Efficiency, Plan, Program, SlicePlan, efficiencies
from elk_jax.programs.account import Account, Total
from elk_jax.reporting import html
from elk_jax.reporting.figures import Series, line_chart
from elk_jax.reporting.report import Report, Section, write_report
from elk_jax.reporting.tables import named_table

LARGE = 0.2
"""A part with more of the bytes than this is shown by its own parts."""
ROWS = 24
DEEPEST = 4
MEMORY = {
    "parameters": "parameters",
    "optimizer": "state of the optimiser",
    "averages": "averaged parameters",
    "constants": "constants (never trained)",
    "batch": "batch and step number",
    "activations": "activations for the backward pass",
    "temporaries": "temporaries",
    "results": "results",
    "program": "program",
}
"""Fields of `Memory`, as they are called."""


def print_plan(plan: Plan, console: Console) -> None:
    """Tables of all that was found."""
    for sentence in plan.assumed:
        console.print(f"assumed: {sentence}")
    for one in plan.slices:
        console.print()
        console.print(headline(plan, one))
        for what, shape, reason in one.refused:
            console.print(f"  {what} {shape}: {reason}")
        for program in one.programs:
            if program.what == STEP or one is plan.slices[0]:
                console.print(_summary_table(one, program))
    for program in plan.slices[0].programs:
        console.print(_parts_table(program))
    if len(plan.slices) > 1:
        console.print(_scaling_table(efficiencies(plan)))


def headline(plan: Plan, one: SlicePlan) -> str:
    """Whether the stage fits a slice, and how large a batch could be, in a line."""
    chips, chip = len(one.slice.devices), one.slice.chip
    answer = "fits" if one.fits else "does not fit"
    text = (
        f"{plan.stage} on {one.slice.name} ({chips} x {chip.name}, mesh {_mesh(one)}), {plan.batch} examples a chip, "
        f"{plan.batch * chips} in all: {answer} in {_binary(chip.memory)} a chip"
    )
    if one.largest_batch is not None:
        text += (
            f"; at most about {one.largest_batch} examples a chip fit" if one.largest_batch else "; not even one fits"
        )
    return text


def write_plan(plan: Plan, folder: Path) -> None:
    """Write plan.json and plan.html."""
    files.make_folder(folder)
    files.write_json(folder / "plan.json", as_json(plan))
    write_report(folder / "plan.html", page(plan))


# ---- Rows ------------------------------------------------------------------------------------------------------------


def parts(read: Account) -> list[tuple[str, Total]]:
    """Parts of the model with their totals, most bytes first; a large part by its own parts."""
    whole = max(read.total.bytes, 1)
    chosen = dict(_split(read, "", 1, whole))
    totals = [(name, read.by_part(depth)[name]) for name, depth in chosen.items()]
    totals.sort(key=lambda entry: -entry[1].bytes)
    rest = [total for _, total in totals[ROWS:]]
    if not rest:
        return totals
    others = Total(sum(total.bytes for total in rest), sum(total.flops for total in rest))
    return [*totals[:ROWS], ("all other parts", others)]


def _split(read: Account, prefix: str, depth: int, whole: int) -> Iterable[tuple[str, int]]:
    for name, total in read.by_part(depth).items():
        if not (name == prefix or name.startswith(f"{prefix}/") or not prefix):
            continue
        # what has the name of the whole itself is not divided further: its parts stand beside it
        inside = name != prefix and any(n.startswith(f"{name}/") for n in read.by_part(depth + 1))
        if total.bytes > LARGE * whole and inside and depth < DEEPEST:
            yield from _split(read, name, depth + 1, whole)
        else:
            yield name, depth


def _facts(one: SlicePlan, program: Program) -> dict[str, str]:
    """What the summary of a program says, in its order."""
    bound, read, memory = program.bound, program.account, program.memory
    facts = {
        "memory": f"{_binary(memory.total)} of {_binary(one.slice.chip.memory)}",
        **{f"- {MEMORY[name]}": _binary(size) for name, size in memory._asdict().items() if size},
        "arithmetic": f"{_scaled(read.total.flops, 'FLOP')}: {_time(bound.arithmetic)}",
        "memory traffic": f"{_scaled(read.total.bytes, 'B')}: {_time(bound.memory)}",
        "- of it layout copies": _scaled(read.layout_copies, "B"),
    }
    for (kind, group), moved in read.collectives().items():
        facts[f"{kind} over {group} chips"] = f"{moved.number} with {_scaled(moved.bytes, 'B')}"
    if read.collectives():
        facts["data between chips"] = _time(bound.links)
    facts["least time"] = _time(bound.least) + (
        f" to {_time(bound.exposed)}, as data between chips are hidden or not" if bound.links else ""
    )
    if program.measured is not None:
        median = program.measured.median
        facts["measured"] = (
            f"{_time(median)} ({_time(program.measured.least)} to {_time(program.measured.most)}): "
            f"{median / bound.exposed:.1f} times the least time"
        )
    if read.unknown_loops:
        facts["loops counted once"] = f"{len(read.unknown_loops)}, whose number of turns follows from the data"
    facts["compiling"] = f"{program.compile_seconds:.0f} s of processor time"
    return facts


def _summary_table(one: SlicePlan, program: Program) -> Table:
    table = named_table(f"{program.what}, {program.shape}, on each of {len(one.slice.devices)} chips", "")
    table.add_column("")
    table.show_header = False
    for name, value in _facts(one, program).items():
        table.add_row(name, value)
    return table


def _parts_table(program: Program) -> Table:
    table = named_table(f"parts of the {program.what}, {program.shape}", "part")
    for head in ("bytes", "of bytes", "FLOP", "of arithmetic"):
        table.add_column(head, justify="right")
    for name, cells in _part_rows(program):
        table.add_row(name, *cells)
    return table


def _part_rows(program: Program) -> list[tuple[str, tuple[str, ...]]]:
    whole = program.account.total
    return [
        (
            name,
            (
                _scaled(total.bytes, ""),
                f"{total.bytes / max(whole.bytes, 1):.1%}",
                _scaled(total.flops, ""),
                f"{total.flops / max(whole.flops, 1):.1%}",
            ),
        )
        for name, total in parts(program.account)
    ]


def _scaling_table(found: Sequence[Efficiency]) -> Table:
    table = named_table("weak scaling by the roofline", "slice")
    for head in ("chips", "efficiency, data hidden", "not hidden"):
        table.add_column(head, justify="right")
    for one in found:
        table.add_row(one.topology, str(one.chips), f"{one.hidden:.1%}", f"{one.exposed:.1%}")
    return table


def _mesh(one: SlicePlan) -> str:
    return " x ".join(f"{name} {size}" for name, size in one.mesh.items())


def _scaled(count: float, unit: str) -> str:
    """Three digits and a prefix: 1.53 GB."""
    return _prefixed(count, 1000, ("", "k", "M", "G", "T", "P"), unit)


def _binary(count: float) -> str:
    """A size of memory: 1.43 GiB."""
    return _prefixed(count, 1024, ("", "Ki", "Mi", "Gi", "Ti"), "B")


def _time(seconds: float) -> str:
    return _prefixed(seconds * 1e6, 1000, ("us", "ms", "s"), "")


def _prefixed(value: float, base: int, prefixes: Sequence[str], unit: str) -> str:
    power = 0
    while power < len(prefixes) - 1 and value >= base - 0.5:
        value, power = value / base, power + 1
    digits = 0 if not power or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {prefixes[power]}{unit}".rstrip()


# ---- The page --------------------------------------------------------------------------------------------------------


def page(plan: Plan) -> Report:
    """The plan as a page."""
    first = plan.slices[0]
    sections = []
    found = efficiencies(plan)
    if len(plan.slices) > 1 and found:
        note = "Speed of a chip relative to one that exchanges no data, by the published speed of chips and links."
        sections.append(Section("Weak scaling", _scaling_chart(found) + _scaling_html(found), note))
    for one in plan.slices:
        blocks = [
            f"<h3>{html.text(p.what)}, {html.text(p.shape)}</h3>{html.key_values(_facts(one, p))}" for p in one.programs
        ]
        blocks += [html.paragraph(f"{what} {shape}: {reason}") for what, shape, reason in one.refused]
        sections.append(Section(one.slice.name, "".join(blocks), headline(plan, one)))
    for program in first.programs:
        head = ("part", "bytes", "of bytes", "FLOP", "of arithmetic")
        rows = (html.row((html.text(name), *cells)) for name, cells in _part_rows(program))
        title = f"Parts of the {program.what}, {program.shape}"
        sections.append(Section(title, html.table(head, rows), f"On {first.slice.name}, on each chip."))
    assumed = f" Assumed: {'; '.join(plan.assumed)}." if plan.assumed else ""
    return Report(
        title=f"{plan.experiment}: {plan.stage}",
        kicker="elk_jax plan",
        summary=f"{headline(plan, first)}.{assumed}",
        facts={"chip": first.slice.chip.name, "its speed": first.slice.chip.source},
        sections=sections,
        footer="Times are lower bounds: arithmetic, memory and links at their published speed.",
    )


def _scaling_chart(found: Sequence[Efficiency]) -> str:
    chips = [math.log2(one.chips) for one in found]
    return html.legend(("data between chips hidden", "not hidden")) + line_chart(
        [
            Series("hidden", chips, [one.hidden for one in found], 0, dots=(chips, [one.hidden for one in found])),
            Series(
                "not hidden", chips, [one.exposed for one in found], 1, dots=(chips, [one.exposed for one in found])
            ),
        ],
        x_label="chips, log2",
        y_label="efficiency",
        y_range=(0.0, 1.05),
        size=(820, 320),
    )


def _scaling_html(found: Sequence[Efficiency]) -> str:
    head = ("slice", "chips", "data hidden", "not hidden")
    rows = (html.row((html.text(f.topology), str(f.chips), f"{f.hidden:.1%}", f"{f.exposed:.1%}")) for f in found)
    return html.table(head, rows)


# ---- JSON ------------------------------------------------------------------------------------------------------------


def as_json(plan: Plan) -> dict[str, Any]:
    """A plan as JSON-able data; sizes in bytes, times in seconds."""
    return {
        "experiment": plan.experiment,
        "stage": plan.stage,
        "batch_per_chip": plan.batch,
        "assumed": list(plan.assumed),
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
