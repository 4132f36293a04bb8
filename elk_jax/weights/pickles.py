"""Read pickled tensors as data: nothing that a pickle refers to is imported or called.

A pickle is a program for a small stack machine: it names functions ("globals") and calls them. Here the machine runs on
plain data. A call of a global is looked up in a fixed table of functions of this module, which only record their
arguments; an object that no tensor needs (a Counter, a Namespace, a configuration, a tensor of complex numbers) becomes
an `Inert` one that is only known by its name; every other call is refused. Afterwards the records of tensors and arrays
are converted to NumPy, with every size and offset checked against the available bytes. Supported: PyTorch tensors,
parameters and storages, NumPy arrays, scalars and dtypes, and plain containers.

What the program makes is drawn from the file's budget, and no key is hashed that is not a number or a text: a tuple of
tuples can take for ever.

Sources: the pickle opcodes (Python's pickletools), `numpy.ndarray.__reduce_ex__`, PyTorch's serialization notes.
"""

from __future__ import annotations

import _compat_pickle
import codecs
import re
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from elk_jax.budget import Budget
from elk_jax.errors import UserError

OBJECT = 64
"""Bytes of the budget for each opcode: an object, and its place on the stack."""
MOST_BITS = 4096
"""Bits of a whole number; the states of random generators have 128."""
HASHED_BITS = 60
"""Whole numbers of no more bits are their own hash in Python; of larger ones, any number can have the same."""
MOST_NESTED = 100
"""Containers within each other."""
MOST_LETTERS = 2000
"""Of the name of a class with its module."""
MOST_AXES = 64
"""Dimensions of an array of NumPy."""
MOST_ELEMENTS = 1 << 48
"""Of one axis."""


class Refused(Exception):
    """The pickle calls what a weights file does not need."""


class Malformed(Exception):
    """The pickle is not one."""


@dataclass(frozen=True)
class ElementType:
    """Type of elements on disk; bfloat16, which NumPy lacks, is widened to float32 (exact)."""

    dtype: np.dtype
    is_bfloat16: bool = False

    def to_array(self, raw: bytes | bytearray, big_endian: bool = False) -> np.ndarray:
        """Elements [N] of `raw`, native byte order."""
        array = np.frombuffer(raw, self.dtype.newbyteorder(">" if big_endian else "<")).astype(self.dtype)
        if self.is_bfloat16:  # the upper half of a float32's bits
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array

    def spend(self, budget: Budget, numel: int, what: str) -> None:
        """Draw from the budget what `to_array` takes for `numel` elements."""
        budget.spend(numel * (5 * self.dtype.itemsize if self.is_bfloat16 else 2 * self.dtype.itemsize), what)


BFLOAT16 = ElementType(np.dtype("u2"), is_bfloat16=True)
_FLOATS = {"Double": "f8", "Float": "f4", "Half": "f2"}
_INTEGERS = {"Long": "i8", "Int": "i4", "Short": "i2", "Char": "i1", "Byte": "u1", "Bool": "?"}
STORAGE_TYPES = {
    **{f"{name}Storage": ElementType(np.dtype(code)) for name, code in (_FLOATS | _INTEGERS).items()},
    "BFloat16Storage": BFLOAT16,
}
OPAQUE_TYPES = {
    **dict.fromkeys(("UntypedStorage", "QInt8Storage", "QUInt8Storage", "QUInt4x2Storage", "QUInt2x4Storage"), "V1"),
    **{"QInt32Storage": "V4", "ComplexFloatStorage": "V8", "ComplexDoubleStorage": "V16"},
}
"""Of storages whose tensors are no weights here: only the size of an element counts."""


# ---- What a pickle makes -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Global:
    """The name of a function or a class."""

    name: str


@dataclass(frozen=True, eq=False)
class Inert:
    """An object of the class `name`; what it holds is not kept."""

    name: str


@dataclass(frozen=True, eq=False)
class StorageRef:
    """A reference to a storage: elements [start, start + numel) of `key`, which are read separately."""

    element: ElementType
    key: str
    numel: int
    start: int


@dataclass(frozen=True, eq=False)
class TensorRef:
    """A reference to a tensor; offset and strides count elements."""

    storage: StorageRef
    offset: Any
    shape: tuple[Any, ...]
    strides: tuple[Any, ...]


@dataclass(eq=False)
class DtypeRef:
    """`numpy.dtype(name, align, copy)`, and its byte order once its state is set."""

    dtype: np.dtype


@dataclass(eq=False)
class ArrayRef:
    """`numpy.ndarray` before and after its state (version, shape, dtype, Fortran order, bytes) is set."""

    array: np.ndarray | Inert | None = None


_PLAIN_DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


def _dtype(budget: Budget, name: Any, *_: Any) -> DtypeRef | Inert:
    text = name.decode("latin1") if isinstance(name, bytes) else name
    if isinstance(text, str) and text.lstrip("<>=|") in _PLAIN_DTYPES:
        return DtypeRef(np.dtype(text))
    return Inert(f"numpy dtype {text[:20]!r}" if isinstance(text, str) else "numpy dtype of a class")


def _array(budget: Budget, raw: Any, dtype: Any, shape: Any, order: Any = "C", axes: Any = None) -> Any:
    """An array from its bytes; NumPy's order "K", since 2.3: in the order of memory, then transposed by `axes`.

    An array of anything but numbers (text, objects, dates) holds no weights and becomes its inert dtype.
    """
    if isinstance(dtype, Inert):
        return dtype
    if not isinstance(dtype, DtypeRef) or not isinstance(raw, str | bytes | bytearray):
        raise Malformed("an array without a dtype or without bytes")
    shape = _sizes(shape)
    budget.spend(3 * len(raw) + OBJECT, "an array")
    if isinstance(raw, str):  # written by Python 2
        raw = raw.encode("latin1")
    flat = np.frombuffer(raw, dtype.dtype)
    if order in ("K", b"K") and axes is not None:
        array = flat.reshape(shape).transpose(_sizes(axes))
    else:
        array = flat.reshape(shape, order="F" if order in ("F", b"F") else "C")
    return np.ascontiguousarray(array, dtype.dtype.newbyteorder("=")).reshape(array.shape)


def _sizes(values: Any) -> tuple[int, ...]:
    values = (values,) if isinstance(values, int) else values
    if not isinstance(values, tuple | list) or not all(type(value) is int and value >= 0 for value in values):
        raise Malformed("an array has invalid sizes")
    if len(values) > MOST_AXES:
        raise Malformed(f"an array of {len(values)} dimensions")
    return tuple(values)


def _encode(budget: Budget, text: Any, encoding: Any = "latin1") -> bytes:
    """`_codecs.encode`, by which Python 3 writes bytes into pickles of protocol 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise Refused("_codecs.encode with an encoding other than latin1")
    budget.spend(len(text), "bytes")
    return text.encode("latin1")


def _tensor(budget: Budget, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> TensorRef | Inert:
    """rest: whether it has a gradient, its hooks, and how its elements are seen (conjugated, negated)."""
    if isinstance(storage, Inert):
        return storage
    if any(rest[2:]):
        return Inert("a tensor whose elements are negated")
    if not isinstance(storage, StorageRef):
        raise Malformed("a tensor without storage")
    return TensorRef(storage, offset, _sizes(shape), _sizes(strides))


def _of_class(budget: Budget, function: Any, kind: Any, args: Any, state: Any) -> Any:
    """A tensor with attributes, or of a class of its own: `function(*args)`, without them."""
    if not isinstance(function, Global) or _CALLS.get(function.name) is _of_class:
        raise Malformed("a tensor of no known kind")
    return _call(budget, function, args)


def _sequence(budget: Budget, items: Any = ()) -> list[Any]:
    """A set as well: its items are not hashed."""
    if not isinstance(items, list | tuple):
        raise Malformed("a sequence of no items")
    budget.spend(8 * len(items), "a sequence")
    return list(items)


def _mapping(budget: Budget, items: Any = ()) -> dict[Any, Any]:
    budget.spend(2 * OBJECT * (len(items) if isinstance(items, dict | list | tuple) else 0), "a mapping")
    if isinstance(items, dict):
        return dict(items)
    if not isinstance(items, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in items
    ):
        raise Malformed("a mapping of no pairs")
    return {_key(key): value for key, value in items}


def _key(key: Any) -> Any:
    """A key that is quick to hash: itself, or a stand-in for what names no tensor."""
    if (
        key is None
        or isinstance(key, str | bytes | float)
        or (isinstance(key, int) and key.bit_length() <= HASHED_BITS)
    ):
        return key
    return Inert("a key that is not a text")


def _attribute(budget: Budget, owner: Any, name: Any) -> Any:
    """`getattr`, by which protocols before 4 write a class or function within a class, and a method of an object."""
    if not isinstance(owner, Global | Inert) or not isinstance(name, str):
        raise Refused("builtins.getattr")
    return type(owner)(_short_name(f"{owner.name}.{name}"))


def _short_name(name: str) -> str:
    if len(name) > MOST_LETTERS:
        raise Malformed(f"a name of {len(name)} letters")
    return name


def _reconstructor(budget: Budget, kind: Any, *_: Any) -> Any:
    """`copyreg._reconstructor`, by which protocols 0 and 1 write an object of a class."""
    return _new(kind)


def _new(kind: Any) -> Any:
    """An object of a class without its state: nothing is called."""
    if not isinstance(kind, Global):
        raise Malformed("an object of no class")
    return {} if kind.name == "collections.OrderedDict" else Inert(kind.name)


_NUMPY: Mapping[str, Callable[..., Any]] = {
    "multiarray._reconstruct": lambda budget, *_: ArrayRef(),
    "multiarray.scalar": lambda budget, dtype, raw: _array(budget, raw, dtype, ()),
    "numeric._frombuffer": _array,
}
_CALLS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": _mapping,
    "_codecs.encode": _encode,
    "builtins.bytes": lambda budget: b"",
    "builtins.set": _sequence,
    "builtins.frozenset": _sequence,
    "builtins.getattr": _attribute,
    "collections.defaultdict": lambda budget, *_: {},
    "copyreg._reconstructor": _reconstructor,
    "copyreg.__newobj__": _reconstructor,
    "numpy.dtype": _dtype,
    "numpy.ndarray": lambda budget, *_: ArrayRef(),
    **{f"numpy.{core}.{name}": function for core in ("core", "_core") for name, function in _NUMPY.items()},
    "torch.Size": lambda budget, items=(): tuple(_sequence(budget, items)),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._tensor._rebuild_from_type_v2": _of_class,
    "torch._utils._rebuild_parameter": lambda budget, tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda budget, tensor, *_: tensor,
}
_PLAIN = {
    *("builtins.bytearray", "builtins.complex", "builtins.dict", "builtins.list", "builtins.object"),
    *("builtins.range", "builtins.slice", "builtins.tuple", "builtins.type"),
    *("types.GenericAlias", "types.SimpleNamespace", "_io.BytesIO", "_io.StringIO", "re._compile"),
    *("functools.partial", "functools.reduce", "_operator.getitem"),  # reduce: int | None; getitem: Optional[int]
    *("torch.device", "torch.serialization._get_layout"),
}
_PLAIN_MODULES = {"argparse", "collections", "datetime", "decimal", "fractions", "pathlib", "uuid"}
"""Constructors of plain data, and the modules of Python that have no others; their objects become `Inert`."""

_CONSTRUCTOR = re.compile(r"[A-Z]|_\w*(ctor|new|rebuild|reconstruct|unpickle)")
"""How the names begin of classes, and of the functions that make their objects from a pickle, in other libraries."""


def _call(budget: Budget, function: Any, args: Any) -> Any:
    if not isinstance(function, Global) or not isinstance(args, tuple | list):
        raise Malformed("a call of what is no function")
    if function.name in _CALLS:
        try:
            return _CALLS[function.name](budget, *args)
        except TypeError as error:
            raise Malformed(f"{function.name} with other arguments") from error
    package, name = function.name.partition(".")[0], function.name.rpartition(".")[2]
    foreign = package not in sys.stdlib_module_names and _CONSTRUCTOR.match(name)
    if package in _PLAIN_MODULES or function.name in _PLAIN or foreign:
        return Inert(function.name)
    raise Refused(function.name)


# ---- The machine -------------------------------------------------------------------------------------------------


class _Stream:
    """Reads arguments of opcodes; never asks for more bytes than the file has."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size = file, size

    def read(self, count: int) -> bytes:
        if count > 1 << 16 and count > self.size - self.file.tell():
            raise EOFError
        content = self.file.read(count)
        if len(content) < count:
            raise EOFError
        return content

    def line(self) -> bytes:
        content = self.file.readline()
        if not content.endswith(b"\n"):
            raise EOFError
        return content[:-1]

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.read(struct.calcsize(code)))[0]

    def counted(self, code: str) -> bytes:
        return self.read(self.number(code)) if code != "<i" else self.read(max(0, self.number(code)))


def _text(content: bytes) -> str:
    return content.decode("utf-8")


def _long(content: bytes) -> int:
    return int.from_bytes(content, "little", signed=True)


def _short(line: bytes) -> int | bool:
    return line == b"01" if line in (b"00", b"01") else int(line)


def _quoted(line: bytes) -> str:
    line = line.strip()
    if len(line) < 2 or line[:1] not in b"'\"" or line[-1:] != line[:1]:
        raise Malformed("a text without quotes")
    return codecs.escape_decode(line[1:-1])[0].decode("latin1")  # type: ignore[attr-defined]


_VALUES: Mapping[bytes, Callable[[_Stream], Any]] = {
    b"N": lambda s: None,
    b"\x88": lambda s: True,
    b"\x89": lambda s: False,
    b"]": lambda s: [],
    b")": lambda s: (),
    b"}": lambda s: {},
    b"\x8f": lambda s: [],  # a set
    b"K": lambda s: s.number("<B"),
    b"M": lambda s: s.number("<H"),
    b"J": lambda s: s.number("<i"),
    b"I": lambda s: _short(s.line()),
    b"L": lambda s: int(s.line().removesuffix(b"L")),
    b"\x8a": lambda s: _long(s.counted("<B")),
    b"\x8b": lambda s: _long(s.counted("<i")),
    b"F": lambda s: float(s.line()),
    b"G": lambda s: s.number(">d"),
    b"S": lambda s: _quoted(s.line()),
    b"U": lambda s: s.counted("<B").decode("latin1"),
    b"T": lambda s: s.counted("<i").decode("latin1"),
    b"V": lambda s: s.line().decode("raw-unicode-escape"),
    b"\x8c": lambda s: _text(s.counted("<B")),
    b"X": lambda s: _text(s.counted("<I")),
    b"\x8d": lambda s: _text(s.counted("<Q")),
    b"C": lambda s: s.counted("<B"),
    b"B": lambda s: s.counted("<I"),
    b"\x8e": lambda s: s.counted("<Q"),
    b"\x96": lambda s: s.counted("<Q"),
}
"""Opcodes that push a value."""
_GETS = {b"g": lambda s: int(s.line()), b"h": lambda s: s.number("<B"), b"j": lambda s: s.number("<I")}
_PUTS = {b"p": lambda s: int(s.line()), b"q": lambda s: s.number("<B"), b"r": lambda s: s.number("<I")}
_TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
_SKIPPED = {b"\x80": "<B", b"\x95": "<Q"}  # protocol, frame


class _Machine:
    """Runs one pickle. stack: of the values since the last mark; below: the stacks before it."""

    def __init__(self, file: BinaryIO, size: int, budget: Budget):
        self.stream, self.budget = _Stream(file, size), budget
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.elements: dict[str, ElementType] = {}

    def run(self) -> Any:
        stream, others = self.stream, self._others()
        while (code := stream.read(1)) != b".":
            self.budget.spend(OBJECT, "its objects")
            if code in _VALUES:
                value = _VALUES[code](stream)
                if type(value) is int and value.bit_length() > MOST_BITS:
                    raise Malformed(f"a whole number of {value.bit_length()} bits")
                self.stack.append(value)
            elif code in _GETS:
                self.stack.append(self.memo[_GETS[code](stream)])
            elif code in _PUTS:
                self.memo[_PUTS[code](stream)] = self.stack[-1]
            elif code in _TUPLES:
                count = _TUPLES[code]
                if len(self.stack) < count:
                    raise IndexError
                self.stack[-count:] = [tuple(self.stack[-count:])]
            elif code in _SKIPPED:
                stream.number(_SKIPPED[code])
            elif code in others:
                others[code]()
            else:
                raise Malformed(f"unknown opcode {code!r}")
        return self.stack.pop()

    def _others(self) -> dict[bytes, Callable[[], Any]]:
        pop, push, stream = self._pop, self._push, self.stream
        return {
            b"(": self._mark,
            b"0": lambda: self.stack.pop() if self.stack else self._since_mark(),
            b"1": self._since_mark,
            b"2": lambda: push(self.stack[-1]),
            b"\x94": lambda: self.memo.__setitem__(len(self.memo), self.stack[-1]),
            b"t": lambda: push(tuple(self._since_mark())),
            b"l": lambda: push(self._since_mark()),
            b"\x91": lambda: push(self._since_mark()),  # a frozenset
            b"d": lambda: self._set_items(self._since_mark(), {}),
            b"s": lambda: self._set_items([pop(), pop()][::-1]),
            b"u": lambda: self._set_items(self._since_mark()),
            b"a": lambda: self._extend([pop()]),
            b"e": lambda: self._extend(self._since_mark()),
            b"\x90": lambda: self._extend(self._since_mark()),  # of a set
            b"c": lambda: push(self._named(stream.line(), stream.line())),
            b"\x93": lambda: push(self._named(*[pop(), pop()][::-1])),
            b"R": lambda: self._reduce(pop()),
            b"i": lambda: push(_call(self.budget, self._named(stream.line(), stream.line()), self._since_mark())),
            b"o": self._call_of_mark,
            b"\x81": lambda: push(_new([pop(), pop()][1])),
            b"\x92": lambda: push(_new([pop(), pop(), pop()][2])),
            b"b": lambda: self._set_state(pop()),
            b"Q": lambda: push(self._persistent(pop())),
            b"\x98": lambda: None,  # a buffer becomes read-only
        }

    def _push(self, value: Any) -> None:
        self.stack.append(value)

    def _pop(self) -> Any:
        return self.stack.pop()

    def _mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def _set_items(self, items: list[Any], new: dict | None = None) -> None:
        if len(items) % 2:
            raise Malformed("a key without a value")
        if new is not None:
            self.stack.append(new)
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update((_key(key), value) for key, value in zip(items[::2], items[1::2]))
        elif not isinstance(target, Inert):
            raise Malformed("entries of what is no mapping")

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target += items
        elif not isinstance(target, Inert):
            raise Malformed("items of what is no list")

    def _named(self, module: Any, name: Any) -> Global:
        texts = [part.decode("utf-8") if isinstance(part, bytes) else part for part in (module, name)]
        if not all(isinstance(part, str) for part in texts):
            raise Malformed("a name that is no text")
        names = _compat_pickle.NAME_MAPPING, _compat_pickle.IMPORT_MAPPING  # of Python 2
        module, name = names[0].get((texts[0], texts[1]), (names[1].get(texts[0], texts[0]), texts[1]))
        return Global(_short_name(f"{module}.{name}"))

    def _reduce(self, args: Any) -> None:
        self.stack.append(_call(self.budget, self.stack.pop(), args))

    def _call_of_mark(self) -> None:
        function, *args = self._since_mark()
        self.stack.append(_call(self.budget, function, args))

    def _set_state(self, state: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, ArrayRef):
            _, shape, dtype, fortran, raw = state
            target.array = _array(self.budget, raw, dtype, shape, "F" if fortran else "C")
        elif isinstance(target, DtypeRef):
            order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
            target.dtype = target.dtype.newbyteorder(order)  # type: ignore[arg-type]
        elif not isinstance(target, dict | Inert):  # PyTorch's `_metadata` of a dict is dropped
            raise Malformed("state for an object that has none")

    def _persistent(self, pid: Any) -> StorageRef | Global | Inert:
        """('storage', type, key, device, elements[, view]); view: (key, first element, elements) or None.

        The older format also has ('module', class, its file, its source).
        """
        if pid[0] == "module" and isinstance(pid[1], Global):
            return pid[1]
        kind, storage_type, key, _, numel, *rest = pid
        name = storage_type.name.rpartition(".")[2] if isinstance(storage_type, Global) else ""
        if kind != "storage" or not isinstance(key, str | int):
            raise Malformed("an unknown persistent object")
        opaque = OPAQUE_TYPES.get(name)
        element = ElementType(np.dtype(opaque)) if opaque else STORAGE_TYPES.get(name)
        if element is None:
            raise Malformed(f"a storage of type {name}")
        _, start, numel = rest[0] if rest and rest[0] is not None else (key, 0, numel)
        if not (type(start) is int and type(numel) is int):
            raise Malformed("a storage without a size")
        if self.elements.setdefault(str(key), element) != element:
            raise Malformed(f"storage {str(key)!r} of two types")
        return Inert(storage_type.name) if opaque else StorageRef(element, str(key), numel, start)


def load(file: BinaryIO, size: int, budget: Budget) -> tuple[Any, dict[str, ElementType]]:
    """The next pickle in `file`: plain containers, numbers, text, arrays and the records above.

    size: bytes of the whole file. Also returns the keys and types of the storages that it refers to. Raises UserError
    for a call outside the tables, for a pickle that makes more than the budget holds, and for an incomplete or damaged
    one.
    """
    machine = _Machine(file, size, budget)
    try:
        return machine.run(), machine.elements
    except Refused as error:
        raise refused(str(error), budget.where) from error
    except EOFError as error:
        raise damaged(budget.where, "it ends too early") from error
    except (Malformed, ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
        reason = str(error) if isinstance(error, Malformed) else f"a broken pickle, {error or type(error).__name__}"
        raise damaged(budget.where, reason) from error


def refused(name: str, where: object) -> UserError:
    """The error for a pickle that needs the function or class `name`."""
    return UserError(
        f"refused: this pickle refers to {name}, which is not a tensor, array or plain container",
        where=where,
        todo="use a trusted file with only a state dict, or a .safetensors file",
    )


def damaged(where: object, reason: str) -> UserError:
    """The error for a file that is truncated, overwritten or of another kind."""
    return UserError(f"damaged weights file: {reason}", where=where, todo="download or copy it again")


def to_arrays(value: Any, read_storage: Callable[[StorageRef], np.ndarray], budget: Budget) -> Any:
    """Replace the records of tensors and arrays in `value` by arrays.

    `read_storage` returns the elements [numel] of a storage, and is called once for each. UserError for a tensor that
    exceeds its storage or the budget. A container that contains itself, and one below MOST_NESTED others, is left out.
    """
    where = budget.where
    storages: dict[tuple[str, int, int], np.ndarray] = {}
    done: dict[int, Any] = {}  # id of a record or container -> result: shared parts are converted once
    within: set[int] = set()

    def convert(item: Any) -> Any:
        if not isinstance(item, TensorRef | ArrayRef | dict | list | tuple):
            return item
        if id(item) in within:
            return Inert("a container within itself")
        if len(within) > MOST_NESTED:
            return Inert("a container within too many others")
        if id(item) not in done:
            within.add(id(item))
            done[id(item)] = build(item)
            within.remove(id(item))
        return done[id(item)]

    def build(item: Any) -> Any:
        if isinstance(item, dict):
            return {name: convert(child) for name, child in item.items()}
        if isinstance(item, list | tuple):
            return type(item)(convert(child) for child in item)
        if isinstance(item, ArrayRef):
            if item.array is None:
                raise damaged(where, "an array without content")
            return item.array
        key = (item.storage.key, item.storage.start, item.storage.numel)
        if key not in storages:
            storages[key] = read_storage(item.storage)
        return strided(storages[key], item, budget)

    return convert(value)


def strided(storage: np.ndarray, tensor: TensorRef, budget: Budget) -> np.ndarray:
    """A contiguous copy of the tensor's part of `storage` [numel]; UserError if it exceeds the storage."""
    shape, strides, offset, where = tensor.shape, tensor.strides, tensor.offset, budget.where
    if len(shape) != len(strides) or type(offset) is not int or offset < 0 or max((0, *shape)) > MOST_ELEMENTS:
        raise damaged(where, "a tensor has invalid sizes")
    if 0 in shape:
        return _no_elements(shape, storage.dtype, where)
    elements, last = 1, offset
    for size, stride in zip(shape, strides):
        elements, last = elements * size, last + (size - 1) * stride
    if last >= storage.size:
        raise damaged(where, f"a tensor of shape {shape} exceeds its {storage.size} stored elements")
    budget.spend(elements * storage.itemsize, f"a tensor of shape {shape}")
    steps = tuple(stride * storage.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False).copy(order="C")


def _no_elements(shape: tuple[int, ...], dtype: np.dtype, where: object) -> np.ndarray:
    try:
        return np.zeros(shape, dtype)
    except ValueError as error:  # NumPy multiplies the other sizes
        raise damaged(where, "a tensor has impossible sizes") from error
