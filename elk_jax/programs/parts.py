"""From the name of an operation to the part of the model to which it belongs.

JAX names an operation by its path through transformations, named scopes and Flax modules, ending with the primitive:
`jit(update)/transpose(jvp(FasterRCNN.features))/backbone/res2_0/conv1/conv_general_dilated`. Arguments are named by
their place in the pytree: `state.params['fpn']['output2']['kernel']`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, NamedTuple

Phase = Literal["forward", "recomputation", "backward"]

OTHER = "other"
"""The part of operations without a name."""
INPUT, OPTIMIZER = "input", "optimizer"
"""The parts of the batch, and of the state that only the optimiser reads."""

_TRANSFORMATION = re.compile(r"^(\w+)\((.*)\)$")
_NAMING = {"jvp", "vmap", "transpose", "checkpoint", "remat", "pmap"}
"""Transformations that contain the name of a scope; others contain the name of a function."""
_CONTROL = re.compile(
    r"^(while|body|cond|scan|checkpoint|remat\d*|rematted_computation|closed_call|core_call|shard_map|branch_\d+_fun"
    r"|custom_[jv][jv]p_call\w*|platform_index|turns=\d+|)$"
)
_METHOD = re.compile(r"^\w+\.(<lambda>|\w+)$")
"""A method of a Flax module other than __call__: its submodules are more informative."""
_NAME = re.compile(r"^[\w.\-]+$")
_TURNS = re.compile(r"turns=(\d+)")


class Part(NamedTuple):
    """path: names of scopes and modules, outermost first; () if there are none."""

    path: tuple[str, ...]
    phase: Phase

    def name(self, depth: int) -> str:
        return "/".join(self.path[:depth]) or OTHER


@lru_cache(maxsize=1 << 16)
def part_of(op_name: str) -> Part:
    """The part given by an operation's name."""
    if re.match(r"^[\w.]+(\[|$)", op_name) and "/" not in op_name:
        return Part(_argument(op_name), "forward")
    path: list[str] = []
    phase: Phase = "forward"
    *scopes, _ = _split(op_name)
    for scope in scopes:
        if scope == "rematted_computation" and phase == "forward":
            phase = "recomputation"
        name = scope
        while match := _TRANSFORMATION.match(name):
            kind, inside = match.groups()
            if kind == "transpose":
                phase = "backward"
            name = inside if kind in _NAMING else ""
        names = [name for name in _split(name) if not _CONTROL.match(name) and not _METHOD.match(name)]
        path += [name for name in names if _NAME.match(name)]
    return Part(tuple(path), phase)


def turns_of(op_name: str) -> int | None:
    """The number of turns expected in the scope of a loop (`turns.expected_turns`); None if there is none."""
    found = _TURNS.findall(op_name)
    return int(found[-1]) if found else None


def _argument(name: str) -> tuple[str, ...]:
    root, *keys = re.split(r"[\[\]]+", name.replace("\\'", "'"))
    path = tuple(key.strip("'\"") for key in keys if key.startswith(("'", '"')))
    if root.endswith(("params", "constants")) and path:
        return path[:-1] or path
    return (OPTIMIZER,) if "opt_state" in root else (INPUT,) if root == "batch" else ()


def _split(name: str) -> list[str]:
    """Parts between slashes that are outside parentheses."""
    parts, depth, last = [], 0, 0
    for position, character in enumerate(name):
        depth += (character == "(") - (character == ")")
        if character == "/" and depth == 0:
            parts.append(name[last:position])
            last = position + 1
    return [*parts, name[last:]]
