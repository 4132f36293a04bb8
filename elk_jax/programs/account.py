"""The account of a compiled program: bytes, arithmetic and collectives by part of the model.

It follows the program from its entry through calls and loops, and counts every instruction as often as it runs. A loop
counts by its trip count if the compiler knows it, by the number of turns expected in its scope
(`turns.expected_turns`) if it depends on the data, else once (`Account.unknown_loops`).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from elk_jax.programs import costs, hlo
from elk_jax.programs.costs import Collective
from elk_jax.programs.hlo import Computation, Instruction, Module
from elk_jax.programs.parts import Part, part_of, turns_of

_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
NEIGHBOURS = 6
"""Most steps to a named instruction, for instructions added by the compiler (layout copies, prefetches)."""


class Cost(NamedTuple):
    """One instruction. times: how often it runs. bytes, flops: of one run."""

    name: str
    opcode: str
    part: Part
    times: int
    bytes: int
    flops: int
    collective: Collective | None
    is_async: bool


class Total(NamedTuple):
    """bytes: of main memory, read and written. flops: of matrix products and convolutions."""

    bytes: int
    flops: int


class Exchange(NamedTuple):
    """Data moved by collectives of one kind. bytes: of all of them. number: how often they run."""

    bytes: int
    number: int


@dataclass(frozen=True)
class Account:
    """costs: of every instruction with a cost. unknown_loops: loops that are counted once.

    layout_copies: bytes moved only to change their layout.
    """

    costs: tuple[Cost, ...]
    unknown_loops: tuple[str, ...]
    devices: int

    @property
    def total(self) -> Total:
        return _sum(self.costs)

    @property
    def layout_copies(self) -> int:
        return sum(c.times * c.bytes for c in self.costs if c.opcode in ("copy", "transpose", "reshape"))

    def by(self, key: Callable[[Cost], str]) -> dict[str, Total]:
        """Totals by a key of the costs, most bytes first."""
        groups: dict[str, list[Cost]] = defaultdict(list)
        for cost in self.costs:
            groups[key(cost)].append(cost)
        totals = {name: _sum(group) for name, group in groups.items()}
        return dict(sorted(totals.items(), key=lambda item: -item[1].bytes))

    def by_part(self, depth: int = 1) -> dict[str, Total]:
        return self.by(lambda cost: cost.part.name(depth))

    def share(self, part: str) -> float:
        """The share of the bytes of one part, given by the first name of its path."""
        return self.by_part().get(part, Total(0, 0)).bytes / max(self.total.bytes, 1)

    def collectives(self) -> dict[tuple[str, int], Exchange]:
        """(kind, devices in a group) -> data exchanged."""
        sizes: Counter = Counter()
        numbers: Counter = Counter()
        for cost in self.costs:
            if cost.collective is not None:
                key = cost.collective.kind, cost.collective.group
                sizes[key] += cost.times * cost.collective.bytes
                numbers[key] += cost.times
        return {key: Exchange(sizes[key], numbers[key]) for key in sorted(sizes)}


def account(compiled: Any, devices: int = 1) -> Account:
    """The account of a compiled program (`jax.jit(...).lower(...).compile()`), on each of its devices."""
    return account_of(hlo.parse(compiled.as_text()), devices)


def account_of(module: Module, devices: int = 1) -> Account:
    found: list[Cost] = []
    unknown: list[str] = []
    for cost in _walk(module, module.computations[module.entry], 1, Part((), "forward"), devices, unknown):
        if cost.bytes or cost.flops or cost.collective:
            found.append(cost)
    return Account(tuple(found), tuple(unknown), devices)


def _sum(costs: Iterable[Cost]) -> Total:
    chosen = list(costs)
    return Total(sum(c.times * c.bytes for c in chosen), sum(c.times * c.flops for c in chosen))


def _walk(
    module: Module, computation: Computation, times: int, around: Part, devices: int, unknown: list[str]
) -> Iterator[Cost]:
    """The costs of a computation that runs `times` times. around: the part of its caller."""
    for instruction in computation.instructions.values():
        part = _part(module, computation, instruction, around)
        opcode = instruction.opcode
        called = [module.computations[name] for names in instruction.called.values() for name in names]
        if opcode == "while":
            turns = _turns(module, computation, instruction)
            if turns is None:
                unknown.append(instruction.op_name or instruction.name)
            for inside in called:
                yield from _walk(module, inside, times * (1 if turns is None else turns), part, devices, unknown)
        elif opcode == "conditional":
            branches = [list(_walk(module, inside, times, part, devices, unknown)) for inside in called]
            yield from max(branches, key=lambda branch: _sum(branch).bytes, default=[])
        elif opcode in ("call", "async-start"):
            for inside in called:
                yield from _walk(module, inside, times, part, devices, unknown)
        else:
            yield Cost(
                instruction.name,
                opcode,
                part,
                times,
                costs.moved_bytes(module, computation, instruction),
                costs.arithmetic(module, computation, instruction),
                costs.collective(module, computation, instruction, devices),
                opcode.endswith("-start"),
            )


def _turns(module: Module, computation: Computation, loop: Instruction) -> int | None:
    known = _TRIPS.search(loop.attributes)
    if known:
        return int(known.group(1))
    counted = _counted_turns(module, computation, loop)
    return turns_of(loop.op_name) if counted is None else counted


def _counted_turns(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Turns of a loop that counts from one constant to another in constant steps: a `scan` rewritten by the compiler,
    or a product whose operand is passed from chip to chip."""
    (condition,), (body,) = loop.called["condition"], loop.called["body"]
    test = module.computations[condition]
    read = test.inputs(test.root)
    if test.root.opcode != "compare" or "direction=LT" not in test.root.attributes or len(read) != 2:
        return None
    counter, limit = read[0], _constant(test, read[1])
    place = re.search(r"index=(\d+)", counter.attributes)
    inside = module.computations[body]
    start = computation.inputs(loop)
    if limit is None or place is None or inside.root.opcode != "tuple" or not start or start[0].opcode != "tuple":
        return None
    index = int(place.group(1))
    first = _constant(computation, computation.inputs(start[0])[index])
    following = inside.inputs(inside.root)[index]
    steps = [step for operand in inside.inputs(following) if (step := _constant(inside, operand)) is not None]
    if first is None or following.opcode != "add" or len(steps) != 1 or steps[0] < 1:
        return None
    return max(-(-(limit - first) // steps[0]), 0)


def _constant(computation: Computation, instruction: Instruction) -> int | None:
    """The whole number that is an instruction's constant, or that it copies."""
    while instruction.opcode in ("copy", "bitcast", "copy-done", "copy-start") and instruction.operands:
        instruction = computation.inputs(instruction)[0]
    number = instruction.literal.strip() if instruction.opcode == "constant" else ""
    return int(number) if re.fullmatch(r"-?\d+", number) else None


def _part(module: Module, computation: Computation, instruction: Instruction, around: Part) -> Part:
    """The part of an instruction. Without a name, it belongs to the part that reads its result, else to the part whose
    data it reads, else to its caller."""
    own = _named(module, instruction)
    if own.path or instruction.op_name:
        return own if own.path else around
    for near in (lambda step: computation.users[step.name], computation.inputs):
        step = instruction
        for _ in range(NEIGHBOURS):
            found = near(step)
            if not found:
                break
            step = found[0]
            part = _named(module, step)
            if part.path:
                return part
    return around


def _named(module: Module, instruction: Instruction) -> Part:
    """The part given by the name of an instruction, or by the most frequent name in a fusion."""
    return part_of(instruction.op_name or _name_inside(module, instruction))


def _name_inside(module: Module, instruction: Instruction) -> str:
    """The most frequent name of the operations of a fusion."""
    if instruction.opcode != "fusion":
        return ""
    inside = module.computations[instruction.called["calls"][0]]
    names = Counter(i.op_name for i in inside.instructions.values() if i.op_name and i.opcode != "parameter")
    return names.most_common(1)[0][0] if names else ""
