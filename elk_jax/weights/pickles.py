"""The content of pickled weights, and its conversion to NumPy: nothing named in a pickle is imported or called.

`pickle_machine` runs a pickle on plain data and creates these records. A call is looked up in a fixed table of
functions of this module, which only record their arguments. An object that no tensor needs (a Counter, a Namespace, a
configuration, a tensor of complex numbers) becomes an `Inert` object, which keeps only its name. Every other call is
refused. Then the records of tensors and arrays are converted, with every size and offset checked against the available
bytes. Supported: PyTorch tensors, parameters and storages, NumPy arrays, scalars and dtypes, and plain containers.

Sources: `numpy.ndarray.__reduce_ex__`, PyTorch's serialization notes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from elk_jax.budget import Budget
from elk_jax.errors import UserError

OBJECT = 64
"""Bytes of the budget charged for each opcode: an object, and its place on the stack."""
HASHED_BITS = 60
"""Whole numbers up to this many bits are their own hash in Python; any number of larger ones can share a hash."""
MOST_NESTED = 100
"""Deepest nesting of containers."""
MOST_LETTERS = 2000
"""Most characters of the name of a class with its module."""
MOST_AXES = 64
"""Most dimensions of a NumPy array."""
MOST_ELEMENTS = 1 << 48
"""Largest size of one axis."""


class Refused(Exception):
    """The pickle calls something that a weights file does not need."""


class Malformed(Exception):
    """The pickle is invalid."""


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
        """Charge the memory that `to_array` takes for `numel` elements to the budget."""
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
"""Types of storages whose tensors are not used as weights: only the size of an element matters."""


# ---- Records of a pickle -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Global:
    """The name of a function or a class."""

    name: str


@dataclass(frozen=True, eq=False)
class Inert:
    """An object of the class `name`; its content is not kept."""

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


def array_from_bytes(budget: Budget, raw: Any, dtype: Any, shape: Any, order: Any = "C", axes: Any = None) -> Any:
    """An array from its bytes; NumPy's order "K", since 2.3: in the order of memory, then transposed by `axes`.

    An array of anything other than numbers (text, objects, dates) contains no weights and becomes its inert dtype.
    """
    if isinstance(dtype, Inert):
        return dtype
    if not isinstance(dtype, DtypeRef) or not isinstance(raw, str | bytes | bytearray):
        raise Malformed("an array without a dtype or bytes")
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
    """`_codecs.encode`, which Python 3 uses to write bytes into pickles of protocol 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise Refused("_codecs.encode with an encoding other than latin1")
    budget.spend(len(text), "bytes")
    return text.encode("latin1")


def _tensor(budget: Budget, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> TensorRef | Inert:
    """rest: whether it has a gradient, its hooks, and the view of its elements (conjugated, negated)."""
    if isinstance(storage, Inert):
        return storage
    if any(rest[2:]):
        return Inert("a tensor whose elements are negated")
    if not isinstance(storage, StorageRef):
        raise Malformed("a tensor without storage")
    return TensorRef(storage, offset, _sizes(shape), _sizes(strides))


def _of_class(budget: Budget, function: Any, kind: Any, args: Any, state: Any) -> Any:
    """A tensor with attributes, or of a subclass: `function(*args)`, without the attributes."""
    if not isinstance(function, Global) or _CALLS.get(function.name) is _of_class:
        raise Malformed("a tensor of an unknown kind")
    return call(budget, function, args)


def _sequence(budget: Budget, items: Any = ()) -> list[Any]:
    """A sequence or a set; its items are not hashed."""
    if not isinstance(items, list | tuple):
        raise Malformed("a sequence without items")
    budget.spend(8 * len(items), "a sequence")
    return list(items)


def _mapping(budget: Budget, items: Any = ()) -> dict[Any, Any]:
    budget.spend(2 * OBJECT * (len(items) if isinstance(items, dict | list | tuple) else 0), "a mapping")
    if isinstance(items, dict):
        return dict(items)
    if not isinstance(items, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in items
    ):
        raise Malformed("a mapping that is not made of pairs")
    return {checked_key(key): value for key, value in items}


def checked_key(key: Any) -> Any:
    """A key that is fast to hash: itself, or a stand-in for a key that names no tensor."""
    if (
        key is None
        or isinstance(key, str | bytes | float)
        or (isinstance(key, int) and key.bit_length() <= HASHED_BITS)
    ):
        return key
    return Inert("a key that is not a string")


def _attribute(budget: Budget, owner: Any, name: Any) -> Any:
    """`getattr`, which protocols before 4 use for a class or function within a class, and a method of an object."""
    if not isinstance(owner, Global | Inert) or not isinstance(name, str):
        raise Refused("builtins.getattr")
    return type(owner)(short_name(f"{owner.name}.{name}"))


def short_name(name: str) -> str:
    if len(name) > MOST_LETTERS:
        raise Malformed(f"a name of {len(name)} letters")
    return name


def _reconstructor(budget: Budget, kind: Any, *_: Any) -> Any:
    """`copyreg._reconstructor`, which protocols 0 and 1 use for an object of a class."""
    return new_object(kind)


def new_object(kind: Any) -> Any:
    """An object of a class, without its state; nothing is called."""
    if not isinstance(kind, Global):
        raise Malformed("an object without a class")
    return {} if kind.name == "collections.OrderedDict" else Inert(kind.name)


_NUMPY: Mapping[str, Callable[..., Any]] = {
    "multiarray._reconstruct": lambda budget, *_: ArrayRef(),
    "multiarray.scalar": lambda budget, dtype, raw: array_from_bytes(budget, raw, dtype, ()),
    "numeric._frombuffer": array_from_bytes,
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
"""Constructors of plain data, and Python modules that contain only such; their objects become `Inert`."""

_CONSTRUCTOR = re.compile(r"[A-Z]|_\w*(ctor|new|rebuild|reconstruct|unpickle)")
"""Prefixes of the names of classes in other libraries, and of functions that create their objects from a pickle."""


def call(budget: Budget, function: Any, args: Any) -> Any:
    if not isinstance(function, Global) or not isinstance(args, tuple | list):
        raise Malformed("a call to something that is not a function")
    if function.name in _CALLS:
        try:
            return _CALLS[function.name](budget, *args)
        except TypeError as error:
            raise Malformed(f"{function.name} with unexpected arguments") from error
    package, name = function.name.partition(".")[0], function.name.rpartition(".")[2]
    foreign = package not in sys.stdlib_module_names and _CONSTRUCTOR.match(name)
    if package in _PLAIN_MODULES or function.name in _PLAIN or foreign:
        return Inert(function.name)
    raise Refused(function.name)


# ---- Errors and conversion -------------------------------------------------------------------------------------------


def refused(name: str, where: object) -> UserError:
    """The error for a pickle that needs the function or class `name`."""
    return UserError(
        f"refused: this pickle refers to {name}, which is not a tensor, array or plain container",
        where=where,
        todo="use a trusted file with only a state dict, or a .safetensors file",
    )


def damaged(where: object, reason: str) -> UserError:
    """The error for a file that is truncated, overwritten or of the wrong kind."""
    return UserError(f"damaged weights file: {reason}", where=where, todo="download or copy it again")


def to_arrays(value: Any, read_storage: Callable[[StorageRef], np.ndarray], budget: Budget) -> Any:
    """Replace the records of tensors and arrays in `value` with arrays.

    `read_storage` returns the elements [numel] of a storage, and is called once for each. UserError for a tensor that
    exceeds its storage or the budget. Containers that contain themselves or are nested too deeply are left out.
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
