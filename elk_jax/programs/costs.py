"""The cost of one instruction of a compiled program: bytes of main memory, arithmetic, data between devices.

Bytes are those read and written in main memory (HBM), including the padding of tiled layouts; arrays that the compiler
keeps on the chip cost nothing. A slice or gather reads what it returns, an in-place update writes what changes.
Arithmetic is that of matrix products and convolutions, two operations for each product except those with padding;
everything else is memory-bound.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from elk_jax.programs.hlo import Array, Computation, Instruction, Module

NOTHING = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id")
    + ("opt-barrier", "domain", "add-dependency")
)
"""Instructions that touch no data. Those that end in -done wait for their -start."""
READS_PART = frozenset(("dynamic-slice", "slice", "gather"))
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
"""In-place updates -> the operand that contains the changes."""
NAMES_OPERANDS = frozenset(("all-gather-start", "collective-permute-start"))
"""Collectives that start as (operands, one result for each, context)."""
COLLECTIVES = frozenset(
    ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
    + ("collective-broadcast",)
)


LIBRARY_CONVOLUTIONS = {
    "convForward": (0, 1, 2),
    "convBiasActivationForward": (0, 1, 2),
    "convBackwardInput": (2, 1, 0),
    "convBackwardFilter": (0, 2, 1),
}
"""cuDNN's convolutions -> image, kernel and output of the convolution among (first operand, second operand, result)."""

_LIBRARY = re.compile(r'custom_call_target="__(?:cublas|cudnn)\$(\w+)')
_KERNEL_FLOPS = re.compile(r'"cost_estimate":\{"flops":"(\d+)"')


class Collective(NamedTuple):
    """Data between devices. kind: as in `COLLECTIVES`. group: number of devices that take part together.

    bytes: of the whole array that is reduced, gathered or exchanged, on one device.
    """

    kind: str
    bytes: int
    group: int


def collective(module: Module, computation: Computation, instruction: Instruction, devices: int) -> Collective | None:
    """The collective that an instruction starts, even inside a fusion; None for any other. devices: of the program.

    A TPU's reduce-scatter is a fusion of an all-reduce and a slice of it. Several in one fusion have the same kind.
    """
    if instruction.opcode == "fusion":
        inside = module.computations[instruction.called["calls"][0]]
        found = [collective(module, inside, one, devices) for one in inside.instructions.values()]
        exchanged = [one for one in found if one is not None]
        if not exchanged:
            return None
        root = inside.root
        while root.opcode in ("bitcast", "reshape", "convert") and root.operands:
            root = inside.inputs(root)[0]
        whole = exchanged[0]._replace(bytes=sum(one.bytes for one in exchanged))
        scattered = whole.kind == "all-reduce" and root.opcode == "dynamic-slice"
        return whole._replace(kind="reduce-scatter") if scattered else whole
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
        return None
    group = _group_size(instruction.attributes, devices)
    operands = computation.inputs(instruction)
    given = sum(_logical(array) for operand in operands for array in operand.outputs)
    return Collective(kind, given * group if kind == "all-gather" else given, group)


def moved_bytes(module: Module, computation: Computation, instruction: Instruction) -> int:
    """Bytes of main memory that an instruction reads and writes, without those of computations that it calls."""
    opcode, operands = instruction.opcode, computation.inputs(instruction)
    if opcode in NOTHING or opcode.endswith("-done") or is_allocation(instruction):
        return 0
    if opcode == "fusion":
        inside = module.computations[instruction.called["calls"][0]]
        read = sum(_read_by_fusion(module, inside, place, operand) for place, operand in enumerate(operands))
        return read + _written_by_fusion(module, inside, instruction)
    if opcode.endswith("-start") and opcode.removesuffix("-start") not in COLLECTIVES:
        return _transfer(computation, instruction)
    read = sum(operand.bytes for operand in operands)
    if opcode in UPDATES and len(instruction.outputs) == 1:
        change = sum(array.bytes for array in operands[UPDATES[opcode]].outputs)
        return read - operands[0].bytes + instruction.outputs[0].in_main_memory * change
    if opcode in READS_PART:
        part = sum(array.bytes for array in instruction.outputs)
        source = operands[0].outputs[0].in_main_memory
        return instruction.bytes + source * part + read - operands[0].bytes
    return read + sum(array.bytes for array in made(computation, instruction) if array.in_main_memory)


def made(computation: Computation, instruction: Instruction) -> tuple[Array, ...]:
    """The arrays that an instruction creates, without results that only alias its operands.

    A copy starts as (target, source, context), a slice as (operands, target, context).
    """
    opcode, outputs = instruction.opcode, instruction.outputs
    if opcode == "copy-start":
        return outputs[:1]
    given = sum(len(operand.outputs) for operand in computation.inputs(instruction))
    if opcode in NAMES_OPERANDS:
        return outputs[given : 2 * given]
    if opcode.endswith("-start") and opcode.removesuffix("-start") not in COLLECTIVES:
        return outputs[given : given + 1]
    if opcode == "custom-call" and _LIBRARY.search(instruction.attributes) and outputs[-1].dtype in ("s8", "u8"):
        return outputs[:-1]  # the last is workspace for the library
    return outputs


def _transfer(computation: Computation, instruction: Instruction) -> int:
    """Bytes of a copy or slice that runs alongside the program, on the sides in main memory."""
    sources, targets = computation.inputs(instruction), made(computation, instruction)
    if not sources or not targets:
        return 0
    return targets[0].bytes * (targets[0].in_main_memory + sources[0].outputs[0].in_main_memory)


def arithmetic(module: Module, computation: Computation, instruction: Instruction) -> int:
    """Operations of the matrix products and convolutions of an instruction, including those of a fusion and of calls to
    cuBLAS and cuDNN; for a kernel, those that it declares (`pallas_call(cost_estimate=...)`)."""
    if instruction.opcode == "fusion":
        inside = module.computations[instruction.called["calls"][0]]
        return sum(arithmetic(module, inside, one) for one in inside.instructions.values())
    text = instruction.attributes
    arrays = [operand.outputs[0] for operand in computation.inputs(instruction)[:2]] + [*instruction.outputs[:1]]
    if instruction.opcode == "dot":
        return _product(arrays, _numbers(text, "lhs_contracting_dims"))
    if instruction.opcode == "convolution":
        return _convolution(arrays, text)
    if instruction.opcode == "custom-call":
        return _library_call(arrays, text)
    return 0


def _product(arrays: list[Array], axes: list[int]) -> int:
    """Operations of a matrix product. axes: of the first of (left, right, result) that are summed over."""
    return 2 * arrays[-1].elements * int(np.prod([arrays[0].shape[axis] for axis in axes], dtype=np.int64))


def _library_call(arrays: list[Array], text: str) -> int:
    """Operations of a call to cuBLAS or cuDNN, or of a kernel."""
    library, told = _LIBRARY.search(text), _KERNEL_FLOPS.search(text)
    if library and library.group(1) in LIBRARY_CONVOLUTIONS:
        return _convolution([arrays[place] for place in LIBRARY_CONVOLUTIONS[library.group(1)]], text)
    axes = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', text)
    if library and axes and "__cublas" in library.group():
        return _product(arrays, [int(axis) for axis in re.findall(r"\d+", axes.group(1))])
    return int(told.group(1)) if told else 0


def _read_by_fusion(module: Module, inside: Computation, place: int, operand: Instruction) -> int:
    """Bytes that a fusion reads from one operand: if it is only sliced, the slices."""
    whole = operand.bytes
    if not whole or place not in inside.parameters or _is_root(inside, inside.parameters[place]):
        return whole
    read = _read(module, inside, inside.parameters[place], whole)
    return min(read, whole)


def _read(module: Module, inside: Computation, value: Instruction, whole: int) -> int:
    total = 0
    for user in inside.users[value.name]:
        places = [place for place, name in enumerate(user.operands) if name == value.name]
        if user.opcode in READS_PART and places == [0]:
            total += sum(array.bytes for array in user.outputs)
        elif user.opcode in UPDATES and places == [0] and _is_result(inside, user):
            total += 0
        elif user.opcode == "bitcast":
            total += _read(module, inside, user, whole)
        elif user.opcode == "fusion":
            within = module.computations[user.called["calls"][0]]
            taken = [within.parameters[place] for place in places]
            total += sum(_read(module, within, parameter, whole) for parameter in taken)
            if any(_is_root(within, parameter) for parameter in taken):  # it is passed on, and read from there
                total += _read(module, inside, user, whole)
        else:
            return whole
        if total >= whole:
            return whole
    return total


def _is_root(inside: Computation, parameter: Instruction) -> bool:
    """Whether the result of a fusion is one of its operands, at most under another shape."""
    return _behind_bitcasts(inside, inside.root) is parameter


def _is_result(inside: Computation, value: Instruction) -> bool:
    """Whether a value of a fusion is one of its results, and nothing in the fusion reads it."""
    users = inside.users[value.name]
    if value is inside.root:
        return True
    return bool(users) and all(
        user is inside.root if user.opcode == "tuple" else user.opcode == "bitcast" and _is_result(inside, user)
        for user in users
    )


def _written_by_fusion(module: Module, inside: Computation, instruction: Instruction) -> int:
    """Bytes that a fusion writes: for an output updated in place, the changes."""
    roots = inside.inputs(inside.root) if inside.root.opcode == "tuple" else [inside.root]
    if len(roots) != len(instruction.outputs):
        return instruction.bytes
    outputs = zip(roots, instruction.outputs)
    return sum(_written(module, inside, root, array) for root, array in outputs if array.in_main_memory)


def _written(module: Module, inside: Computation, root: Instruction, array: Array) -> int:
    root = _behind_bitcasts(inside, root)
    if root.opcode == "fusion" and len(root.outputs) == 1:
        within = module.computations[root.called["calls"][0]]
        return min(_written(module, within, within.root, array), array.bytes)
    if root.opcode not in UPDATES:
        return array.bytes
    target, change = (inside.inputs(root)[place] for place in (0, UPDATES[root.opcode]))
    target = _behind_bitcasts(inside, target)
    if (target.opcode != "parameter" and not is_allocation(target)) or not _is_result(inside, root):
        return array.bytes
    return min(sum(a.bytes for a in change.outputs), array.bytes)


def _behind_bitcasts(computation: Computation, value: Instruction) -> Instruction:
    while value.opcode == "bitcast":
        value = computation.inputs(value)[0]
    return value


def is_allocation(instruction: Instruction) -> bool:
    """Whether an instruction only allocates memory, without writing to it."""
    return 'custom_call_target="AllocateBuffer"' in instruction.attributes


# ---- Convolutions ---------------------------------------------------------------------------------------------------


def _convolution(arrays: list[Array], text: str) -> int:
    """Products whose factors are neither padding nor holes of a dilation, times two.

    arrays: image, kernel and output. text: contains the window and the labels of the axes.
    """
    image, kernel, output = arrays
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text)
    if labels is None:
        return 0
    of_image, of_kernel, of_output = labels.groups()
    groups = int((re.search(r"batch_group_count=(\d+)", text) or [0, 1])[1])
    window = _window(text, sum(label.isdigit() for label in of_kernel))
    valid = 1
    for axis in range(len(window.size)):
        label = str(axis)
        valid *= _valid_pairs(image.shape[of_image.index(label)], output.shape[of_output.index(label)], axis, window)
    inputs = kernel.shape[of_kernel.index("i")]  # of one feature group
    outputs = output.shape[of_output.index("f")]
    batch = output.shape[of_output.index("b")]
    if groups > 1:  # the batch of the input is split over the output features
        batch = image.shape[of_image.index("b")] // groups
    return 2 * valid * inputs * outputs * batch


class _Window(NamedTuple):
    size: list[int]
    stride: list[int]
    low: list[int]
    image_dilation: list[int]
    kernel_dilation: list[int]


def _window(text: str, axes: int) -> _Window:
    found = re.search(r"window=\{([^}]*)\}", text)
    fields = dict(re.findall(r"(\w+)=(\S+)", found.group(1))) if found else {}

    def numbers(key: str, default: int) -> list[int]:
        given = fields.get(key)
        return [int(value) for value in given.split("x")] if given else [default] * axes

    low = [int(pair.split("_")[0]) for pair in fields["pad"].split("x")] if "pad" in fields else [0] * axes
    return _Window(numbers("size", 1), numbers("stride", 1), low, numbers("lhs_dilate", 1), numbers("rhs_dilate", 1))


def _valid_pairs(size: int, outputs: int, axis: int, window: _Window) -> int:
    """Pairs of an output and a kernel position along an axis that use a value of the image."""
    start = np.arange(outputs)[:, None] * window.stride[axis] - window.low[axis]
    place = start + np.arange(window.size[axis])[None, :] * window.kernel_dilation[axis]
    dilation = window.image_dilation[axis]
    return int(((place >= 0) & (place < (size - 1) * dilation + 1) & (place % dilation == 0)).sum())


# ---- Attributes -----------------------------------------------------------------------------------------------------


def _numbers(text: str, key: str) -> list[int]:
    found = re.search(rf"{key}=\{{([\d,]*)\}}", text)
    return [int(value) for value in found.group(1).split(",") if value] if found else []


def _group_size(text: str, devices: int) -> int:
    """Devices per replica group: {{0,1},{2,3}} and [2,2]<=[4] are two groups of two, mesh['a'=2,'b'=4] {'b'} are two
    groups of four; {} means all."""
    if "source_target_pairs" in text:
        return 2
    of_mesh = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", text)
    if of_mesh:
        sizes = dict(re.findall(r"'([^']*)'=(\d+)", of_mesh.group(1)))
        axes = re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", of_mesh.group(2))
        return int(np.prod([int(part or sizes[axis]) for axis, part in axes], dtype=np.int64))
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", text)
    if listed:
        return len(listed.group(1).split(","))
    counted = re.search(r"replica_groups=\[(\d+),(\d+)\]", text)
    return int(counted.group(2)) if counted else devices


def _logical(array: Array) -> int:
    return array._replace(tile=()).bytes
