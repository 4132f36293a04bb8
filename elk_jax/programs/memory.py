"""Memory of one device by content: from the compiler's sizes, the names of the arguments, and the schedule."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax

from elk_jax.programs import hlo
from elk_jax.programs.account import account_of
from elk_jax.programs.costs import NOTHING, made
from elk_jax.programs.hlo import Module

Leaves = tuple[frozenset[str], ...]
_ALIASED = re.compile(r"\{(\d+)\}: \(\d+")
"""A result that reuses the memory of an argument, in the header of a program."""


class Memory(NamedTuple):
    """Bytes on one device, including the padding of tiled layouts.

    activations: results of the forward pass that are kept for the backward pass at the peak of memory. temporaries: all
    other working memory. results: of the program, except those that reuse the memory of arguments.
    """

    parameters: int
    optimizer: int
    averages: int
    constants: int
    batch: int
    activations: int
    temporaries: int
    results: int
    program: int

    @property
    def total(self) -> int:
        return sum(self)


def memory(compiled: Any) -> Memory:
    """The memory of a compiled program whose arguments are named state, params, constants and batch."""
    sizes = compiled.memory_analysis()
    module = hlo.parse(compiled.as_text())
    held = dict.fromkeys(("parameters", "optimizer", "averages", "constants", "batch"), 0)
    for argument, size in _arguments(compiled, module):
        held[_holder(argument)] += size
    working = int(sizes.temp_size_in_bytes)
    activations = min(waiting_activations(module), working)
    return Memory(
        **held,
        activations=activations,
        temporaries=working - activations,
        results=max(int(sizes.output_size_in_bytes - sizes.alias_size_in_bytes), 0),
        program=int(sizes.generated_code_size_in_bytes),
    )


def _arguments(compiled: Any, module: Module) -> list[tuple[str, int]]:
    """(name, bytes) of every argument that the program reads."""
    given = list(module.computations[module.entry].parameters.values())
    if len(given) != 1 or len(given[0].outputs) == 1:
        return [(parameter.op_name, parameter.bytes) for parameter in given]
    # JAX passes more than 2000 arguments as one tuple without names; arguments that are not read are not in it.
    leaves, _ = jax.tree_util.tree_flatten_with_path(compiled.args_info[0])
    kept = getattr(compiled._executable, "_kept_var_idx", range(len(leaves)))
    names = [_tuple_name(path) for place, (path, _) in enumerate(leaves) if place in kept]
    return [(name, array.bytes) for name, array in zip(names, given[0].outputs)]


def _tuple_name(path: tuple[Any, ...]) -> str:
    """The name of a leaf of (state, constants, batch), or of (params, constants, batch)."""
    place, *rest = path
    root = ("state" if rest and isinstance(rest[0], jax.tree_util.GetAttrKey) else "params", "constants", "batch")
    return root[place.idx] + jax.tree_util.keystr(tuple(rest))


def _holder(argument: str) -> str:
    """state.params[...], params[...] -> parameters, and so on; arguments without a name are part of the batch."""
    root = re.split(r"[\[.]", argument.removeprefix("state."))[0]
    names = {"params": "parameters", "opt_state": "optimizer", "ema_params": "averages", "constants": "constants"}
    return names.get(root, "batch")


def waiting_activations(module: Module) -> int:
    """Bytes of forward results that are still needed at the entry's instruction with the peak of memory; 0 for a
    program without a backward pass."""
    entry = module.computations[module.entry]
    phases = {cost.name: cost.part for cost in account_of(module).costs}
    if all(part.phase == "forward" for part in phases.values()):
        return 0
    position = {name: place for place, name in enumerate(entry.instructions)}
    buffers, last = _lifetimes(module, position)
    events: dict[int, list[tuple[int, bool]]] = {}
    for name, size in buffers.items():
        part = phases.get(name)
        forward = part is not None and part.phase == "forward" and part.name(1) not in ("optimizer", "ema")
        events.setdefault(position[name], []).append((size, forward))
        events.setdefault(last[name] + 1, []).append((-size, forward))
    held = waiting = fullest = found = 0
    for place in sorted(events):
        for size, forward in events[place]:
            held += size
            waiting += size * forward
        if held > fullest:
            fullest, found = held, waiting
    return found


def _lifetimes(module: Module, position: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """(bytes of every buffer in main memory by the instruction that creates it, position of its last reader), without
    results that reuse the memory of arguments."""
    entry = module.computations[module.entry]
    buffers: dict[str, int] = {}
    last: dict[str, int] = {}
    holds: dict[str, Leaves] = {}  # instruction -> the buffers behind each of its arrays
    for name, instruction in entry.instructions.items():
        place = position[name]
        given = [holds.get(operand, ()) for operand in instruction.operands]
        for leaves in given:
            for buffer in frozenset().union(*leaves):
                last[buffer] = place
        opcode = instruction.opcode
        if opcode == "get-tuple-element":
            index = re.search(r"index=(\d+)", instruction.attributes)
            leaves = given[0] if given else ()
            number = int(index.group(1)) if index else 0
            holds[name] = (leaves[number],) if number < len(leaves) else (frozenset().union(*leaves),)
        elif opcode in ("tuple", "while", "bitcast", "opt-barrier") or opcode.endswith("-done"):
            holds[name] = tuple(leaf for leaves in given for leaf in leaves)
        elif opcode in NOTHING or not (size := sum(a.bytes for a in made(entry, instruction) if a.in_main_memory)):
            holds[name] = ()
        else:
            buffers[name], last[name] = size, place
            holds[name] = (frozenset((name,)),) * len(instruction.outputs)
    results = holds.get(entry.root.name, ())
    for number in _ALIASED.findall(module.header):
        for buffer in results[int(number)] if int(number) < len(results) else ():
            buffers.pop(buffer, None)
    return buffers, last
