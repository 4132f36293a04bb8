"""Looking into a compiled program for communication between devices."""

from __future__ import annotations

import math
import re
from typing import NamedTuple


class Collective(NamedTuple):
    """kind: as `all-gather`. elements: in the largest array it produces. source: the operation it came from."""

    kind: str
    elements: int
    source: str


KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter", "collective-broadcast")


def collectives(text: str) -> list[Collective]:
    """The collectives in optimised HLO (`compiled.as_text()`), asynchronous ones counted once."""
    found = []
    for line in text.splitlines():
        match = re.match(r"\s*(?:ROOT )?%?\S+ = (.+?) (" + "|".join(KINDS) + r")(?:-start)?\(", line)
        if match:
            shapes = re.findall(r"\w+\[([\d,]*)\]", match[1])
            elements = max(math.prod(int(n) for n in shape.split(",") if n) for shape in shapes)
            source = re.search(r'op_name="([^"]*)"', line)
            found.append(Collective(match[2], elements, source[1] if source else ""))
    return found


def gathers(text: str) -> list[Collective]:
    """The collectives that carry whole arrays between devices: everything but reductions."""
    return [c for c in collectives(text) if c.kind not in ("all-reduce", "reduce-scatter")]


def arithmetic(text: str, shape: tuple[int, ...]) -> int:
    """How many operations of an optimiser work on arrays of this shape in optimised HLO."""
    kinds = "add|subtract|multiply|divide|sqrt|rsqrt"
    return len(re.findall(rf"= f32\[{','.join(map(str, shape))}\]\S* (?:{kinds})\(", text))
