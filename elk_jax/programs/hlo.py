"""Reads the text of a compiled XLA program: computations, their instructions, and the arrays between them.

The text is that of `compiled.as_text()`, after optimisation, scheduling and memory assignment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

BITS = {"pred": 8, "token": 0, "opaque": 0} | {
    f"{kind}{bits}": bits for kind in "suf" for bits in (1, 2, 4, 8, 16, 32, 64)
}
BITS |= {"bf16": 16, "c64": 64, "c128": 128}
MAIN_MEMORY = 0
"""The memory space of a device's main memory (HBM); others are on the chip (vector memory, semaphores) or the host."""

_ARRAY = re.compile(r"([a-z]+[0-9]*(?:e[0-9]m[0-9][a-z0-9]*)?)\[([0-9,<=]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_CALLED = re.compile(
    r"(calls|to_apply|body|condition|branch_computations|true_computation|false_computation)=(\{[^}]*\}|%[\w.\-]+)"
)


class Array(NamedTuple):
    """An array of a program. order: its axes, fastest varying first. tile: of its fastest axes, slowest first."""

    dtype: str
    shape: tuple[int, ...]
    order: tuple[int, ...]
    tile: tuple[int, ...]
    space: int

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def bytes(self) -> int:
        """Size in memory, including the padding of its tiles."""
        sizes = [self.shape[axis] for axis in self.order] or [1]
        for place, size in enumerate(reversed(self.tile)):
            if place < len(sizes):
                sizes[place] = -(-sizes[place] // size) * size
        return int(np.prod(sizes, dtype=np.int64)) * bits(self.dtype) // 8

    @property
    def in_main_memory(self) -> bool:
        return self.space == MAIN_MEMORY


@dataclass(frozen=True)
class Instruction:
    """One instruction. outputs: its arrays, those of a tuple one after another. operands: names of instructions.

    attributes: the rest of its line. op_name: its origin in the traced program, "" if added by the compiler.
    """

    name: str
    outputs: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    literal: str
    attributes: str
    op_name: str
    is_root: bool

    @cached_property
    def called(self) -> dict[str, tuple[str, ...]]:
        """Attribute (`calls`, `body`, `condition`, ...) -> computations."""
        return {key: tuple(_NAME.findall(value)) for key, value in _CALLED.findall(self.attributes)}

    @property
    def bytes(self) -> int:
        """Bytes of the outputs in main memory."""
        return sum(array.bytes for array in self.outputs if array.in_main_memory)


@dataclass(frozen=True)
class Computation:
    """Instructions in the order in which they run."""

    name: str
    instructions: Mapping[str, Instruction]

    @cached_property
    def root(self) -> Instruction:
        return next(i for i in reversed(list(self.instructions.values())) if i.is_root)

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        return {int(i.literal): i for i in self.instructions.values() if i.opcode == "parameter"}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Instruction -> instructions that read it."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                if operand in found:
                    found[operand].append(instruction)
        return found

    def inputs(self, instruction: Instruction) -> list[Instruction]:
        return [self.instructions[name] for name in instruction.operands if name in self.instructions]


@dataclass(frozen=True)
class Module:
    """A complete program."""

    computations: Mapping[str, Computation]
    entry: str
    header: str

    def __iter__(self) -> Iterator[Computation]:
        return iter(self.computations.values())


def parse(text: str) -> Module:
    """The program of a text. ValueError if the text is not a program."""
    computations: dict[str, Computation] = {}
    entry, name, header = "", "", ""
    lines: dict[str, Instruction] = {}
    for line in text.splitlines():
        if line.startswith("HloModule"):
            header = line
        elif line.endswith("{") and not line.startswith(" ") and ("->" in line or line.startswith("ENTRY")):
            name = _NAME.findall(line)[0]
            entry, lines = (name if line.startswith("ENTRY") else entry), {}
        elif line.startswith("}"):
            computations[name] = Computation(name, lines)
        elif " = " in line and name:
            instruction = _instruction(line)
            lines[instruction.name] = instruction
    if entry not in computations:
        raise ValueError("not the text of a compiled program: it has no ENTRY computation")
    return Module(computations, entry, header)


def bits(dtype: str) -> int:
    """Bits per element: `f8e4m3fn` has 8."""
    if dtype in BITS:
        return BITS[dtype]
    return int(re.match(r"[a-z]+(\d+)", dtype).group(1))  # type: ignore[union-attr]


def arrays(text: str) -> tuple[Array, ...]:
    """All arrays of a type, such as `(f32[2,3]{1,0:T(8,128)}, s32[])`."""
    return tuple(_array(*match) for match in _ARRAY.findall(text))


def _array(dtype: str, shape: str, layout: str) -> Array:
    sizes = tuple(int(size.lstrip("<=")) for size in shape.split(",") if size)
    axes, _, memory = layout.partition(":")
    order = tuple(int(axis) for axis in axes.split(",") if axis) or tuple(reversed(range(len(sizes))))
    tile = re.search(r"T\(([\d,]+)\)", memory)
    space = re.search(r"S\((\d+)\)", memory)
    return Array(
        dtype,
        sizes,
        order,
        tuple(int(size) for size in tile.group(1).split(",")) if tile else (),
        int(space.group(1)) if space else MAIN_MEMORY,
    )


def _instruction(line: str) -> Instruction:
    left, _, right = line.strip().partition(" = ")
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    opcode, _, rest = right[end:].strip().partition("(")
    close = _closing("(" + rest, 0) - 1
    inside, attributes = rest[:close], rest[close + 1 :]
    op_name = _OP_NAME.search(attributes)
    return Instruction(
        name=left.removeprefix("ROOT ").lstrip("%"),
        outputs=arrays(right[:end]),
        opcode=opcode,
        operands=tuple(_NAME.findall(inside)) if opcode != "constant" else (),
        literal=inside,
        attributes=attributes,
        op_name=op_name.group(1) if op_name else "",
        is_root=left.startswith("ROOT "),
    )


def _closing(text: str, start: int) -> int:
    """Position of the parenthesis that closes the one at `start`; quoted text does not count."""
    depth, quoted = 0, False
    for position in range(start, len(text)):
        character = text[position]
        if character == '"' and text[position - 1] != "\\":
            quoted = not quoted
        if quoted:
            continue
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return position
    raise ValueError(f"a parenthesis is not closed in {text[:80]!r}")
