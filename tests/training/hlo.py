"""Looking into a compiled program for communication between devices."""

from __future__ import annotations

import re
from typing import NamedTuple

from elk_jax.programs import hlo
from elk_jax.programs.costs import COLLECTIVES


class Collective(NamedTuple):
    """kind: as `all-gather`. elements: in the largest array it produces. source: the operation it came from."""

    kind: str
    elements: int
    source: str


def collectives(text: str) -> list[Collective]:
    """The collectives in optimised HLO (`compiled.as_text()`), asynchronous ones counted once."""
    found = []
    for computation in hlo.parse(text):
        for instruction in computation.instructions.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                elements = max(array.elements for array in instruction.outputs)
                found.append(Collective(kind, elements, instruction.op_name))
    return found


def gathers(text: str) -> list[Collective]:
    """The collectives that carry whole arrays between devices: everything but reductions."""
    return [c for c in collectives(text) if c.kind not in ("all-reduce", "reduce-scatter")]


def arithmetic(text: str, shape: tuple[int, ...]) -> int:
    """How many operations of an optimiser work on arrays of this shape in optimised HLO."""
    kinds = "add|subtract|multiply|divide|sqrt|rsqrt"
    return len(re.findall(rf"= f32\[{','.join(map(str, shape))}\]\S* (?:{kinds})\(", text))
