"""A plan as tables in the terminal, and the rows that its page shares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from elk_jax.output import Console
from elk_jax.planning.plan import Efficiency, Plan, Program, SlicePlan, efficiencies
from elk_jax.programs.account import Account, Total
from elk_jax.reporting.tables import named_table

LARGE = 0.2
"""A part with a larger share of the bytes is divided into its own parts."""
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
"""Labels of the fields of `Memory`."""


def print_plan(plan: Plan, console: Console) -> None:
    """Print the tables of a plan."""
    for sentence in plan.assumed:
        console.print(f"assumed: {sentence}")
    if plan.steps:
        console.print(length(plan))
    for one in plan.slices:
        console.print()
        console.print(headline(plan, one))
        for what, shape, reason in one.refused:
            console.print(f"  {what} {shape}: {reason}")
        for program in one.programs:
            console.print(_summary_table(one, program))
    for program in plan.slices[0].programs:
        console.print(_parts_table(program))
    if len(plan.slices) > 1:
        console.print(_scaling_table(efficiencies(plan)))


def headline(plan: Plan, one: SlicePlan) -> str:
    """One line: whether the stage fits on a slice, and the largest batch."""
    chips, chip = len(one.slice.devices), one.slice.chip
    answer = "fits" if one.fits else "does not fit"
    text = (
        f"{plan.stage} on {one.slice.name} ({chips} x {chip.name}, mesh {_mesh(one)}), {plan.batch} examples per chip, "
        f"{plan.batch * chips} in total: {answer} in {binary(chip.memory)} per chip"
    )
    if one.largest_batch is not None:
        text += (
            f"; at most about {one.largest_batch} examples per chip fit" if one.largest_batch else "; not even one fits"
        )
    return text


def length(plan: Plan) -> str:
    """One line: the number of trainings and steps of the stage, with a lower bound on their time on the first slice."""
    said = f"{plan.steps} steps"
    if plan.folds and not plan.refit:
        said = f"{plan.folds} folds of {plan.steps} steps, which together form the model, {plan.all_steps} in total"
    elif plan.folds:
        said = (
            f"{plan.folds + 1} trainings: {plan.folds} folds of {plan.steps} steps, then one on all patients "
            f"with at most as many, {plan.all_steps} in total"
        )
    steps = plan.slices[0].steps
    if not steps:
        return said
    seconds = plan.all_steps * steps[0].bound.exposed
    return f"{said}; at {duration(steps[0].bound.exposed)} per step {duration(seconds)}, without evaluations"


def parts(read: Account) -> list[tuple[str, Total]]:
    """Parts of the model with their totals, most bytes first; large parts are divided into their own parts."""
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
        # a part with the name of the whole is not divided further: its parts are listed next to it
        inside = name != prefix and any(n.startswith(f"{name}/") for n in read.by_part(depth + 1))
        if total.bytes > LARGE * whole and inside and depth < DEEPEST:
            yield from _split(read, name, depth + 1, whole)
        else:
            yield name, depth


def facts(one: SlicePlan, program: Program) -> dict[str, str]:
    """The rows of the summary of a program, in order."""
    bound, read, memory = program.bound, program.account, program.memory
    found = {
        "memory": f"{binary(memory.total)} of {binary(one.slice.chip.memory)}",
        **{f"- {MEMORY[name]}": binary(size) for name, size in memory._asdict().items() if size},
        "arithmetic": f"{scaled(read.total.flops, 'FLOP')}: {duration(bound.arithmetic)}",
        "memory traffic": f"{scaled(read.total.bytes, 'B')}: {duration(bound.memory)}",
        "- including layout copies": scaled(read.layout_copies, "B"),
    }
    for (kind, group), moved in read.collectives().items():
        found[f"{kind} over {group} chips"] = f"{moved.number} with {scaled(moved.bytes, 'B')}"
    if read.collectives():
        found["data between chips"] = duration(bound.links)
    found["least time"] = duration(bound.least) + (
        f" to {duration(bound.exposed)}, depending on how much of the data exchange is hidden" if bound.links else ""
    )
    if program.measured is not None:
        median = program.measured.median
        found["measured"] = (
            f"{duration(median)} ({duration(program.measured.least)} to {duration(program.measured.most)}): "
            f"{median / bound.exposed:.1f} times the least time"
        )
    if read.unknown_loops:
        found["loops counted once"] = f"{len(read.unknown_loops)}, whose number of iterations depends on the data"
    found["compiling"] = f"{program.compile_seconds:.0f} s of processor time"
    return found


def _summary_table(one: SlicePlan, program: Program) -> Table:
    table = named_table(f"{program.what}, {program.shape}, on each of {len(one.slice.devices)} chips", "")
    table.add_column("")
    table.show_header = False
    for name, value in facts(one, program).items():
        table.add_row(name, value)
    return table


def _parts_table(program: Program) -> Table:
    table = named_table(f"parts of the {program.what}, {program.shape}", "part")
    for head in ("bytes", "of bytes", "FLOP", "of arithmetic"):
        table.add_column(head, justify="right")
    for name, cells in part_rows(program):
        table.add_row(name, *cells)
    return table


def part_rows(program: Program) -> list[tuple[str, tuple[str, ...]]]:
    whole = program.account.total
    return [
        (
            name,
            (
                scaled(total.bytes, ""),
                f"{total.bytes / max(whole.bytes, 1):.1%}",
                scaled(total.flops, ""),
                f"{total.flops / max(whole.flops, 1):.1%}",
            ),
        )
        for name, total in parts(program.account)
    ]


def _scaling_table(found: Sequence[Efficiency]) -> Table:
    table = named_table("weak scaling by the roofline", "slice")
    for head in ("chips", "efficiency, exchange hidden", "not hidden"):
        table.add_column(head, justify="right")
    for one in found:
        table.add_row(one.topology, str(one.chips), f"{one.hidden:.1%}", f"{one.exposed:.1%}")
    return table


def _mesh(one: SlicePlan) -> str:
    return " x ".join(f"{name} {size}" for name, size in one.mesh.items())


def scaled(count: float, unit: str) -> str:
    """Three digits and a prefix: 1.53 GB."""
    return _prefixed(count, 1000, ("", "k", "M", "G", "T", "P"), unit)


def binary(count: float) -> str:
    """A size of memory: 1.43 GiB."""
    return _prefixed(count, 1024, ("", "Ki", "Mi", "Gi", "Ti"), "B")


def duration(seconds: float) -> str:
    return _prefixed(seconds * 1e6, 1000, ("us", "ms", "s"), "")


def _prefixed(value: float, base: int, prefixes: Sequence[str], unit: str) -> str:
    power = 0
    while power < len(prefixes) - 1 and value >= base - 0.5:
        value, power = value / base, power + 1
    digits = 0 if not power or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {prefixes[power]}{unit}".rstrip()
