"""Read pickled tensors as data: nothing that a pickle refers to is imported or called.

A pickle is a program: it names functions ("globals") and calls them. Here every global is looked up in a fixed table of
our stand-ins, which only record their arguments; a name that is not in the table is an error. Afterwards the stand-ins
of tensors and arrays are converted to NumPy, with every size and offset checked against the available bytes. Supported:
PyTorch tensors, parameters and storages, NumPy arrays, scalars and dtypes, and plain containers.

Sources: the pickle opcodes (Python's pickletools), `numpy.ndarray.__reduce__`, PyTorch's serialization notes.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from elk_jax.errors import UserError

MAX_EXPANDED = 1 << 24
"""Number of elements by which a tensor may exceed its storage (an expanded tensor has axes of stride 0)."""


class Refused(pickle.UnpicklingError):
    """The pickle refers to something that a weights file does not need."""


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


BFLOAT16 = ElementType(np.dtype("u2"), is_bfloat16=True)
_FLOATS = {"Double": "f8", "Float": "f4", "Half": "f2"}
_INTEGERS = {"Long": "i8", "Int": "i4", "Short": "i2", "Char": "i1", "Byte": "u1", "Bool": "?"}
STORAGE_TYPES = {
    **{f"{name}Storage": ElementType(np.dtype(code)) for name, code in (_FLOATS | _INTEGERS).items()},
    "BFloat16Storage": BFLOAT16,
}


class _Sealed:
    """An object on the pickle's stack whose attributes the pickle cannot set (by the opcode BUILD)."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("state for an object that has none")


class Global(_Sealed):
    """The stand-in of a callable global: calls a function of this module."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


class StorageType(_Sealed):
    """The stand-in of a storage class (torch.FloatStorage)."""

    __slots__ = ("element",)

    def __init__(self, element: ElementType):
        self.element = element


class StorageRef(_Sealed):
    """A reference to a storage: elements [start, start + numel) of `key`, which are read separately."""

    __slots__ = ("element", "key", "numel", "start")

    def __init__(self, element: ElementType, key: str, numel: int, start: int):
        self.element, self.key, self.numel, self.start = element, key, numel, start


class TensorRef(_Sealed):
    """A reference to a tensor; offset and strides count elements."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any):
        if not isinstance(storage, StorageRef):
            raise pickle.UnpicklingError("a tensor without storage")
        self.storage, self.offset, self.shape, self.strides = storage, offset, tuple(shape), tuple(strides)


class PlainMapping(dict):
    """A dict or OrderedDict; attributes set on it (PyTorch's `_metadata`) are dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


_PLAIN_DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


class DtypeRef:
    """`numpy.dtype(name, align, copy)` and its later state (version, byte order, ...)."""

    def __init__(self, name: Any, *_: Any):
        text = name.decode("latin1") if isinstance(name, bytes) else str(name)
        if text.lstrip("<>=|") not in _PLAIN_DTYPES:
            raise Refused(f"numpy dtype {text!r}")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        order: Any = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        self.dtype = self.dtype.newbyteorder(order)


class ArrayRef:
    """`numpy.ndarray` before and after its state (version, shape, dtype, Fortran order, bytes) is set."""

    def __init__(self, *_: Any):
        self.array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        self.array = _array(raw, dtype, shape, "F" if fortran else "C")


def _array(raw: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray:
    if not isinstance(dtype, DtypeRef):
        raise pickle.UnpicklingError("an array without a dtype")
    if isinstance(raw, str):  # written by Python 2
        raw = raw.encode("latin1")
    if not isinstance(raw, bytes | bytearray):
        raise pickle.UnpicklingError("an array without bytes")
    array = np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if order in ("F", b"F") else "C")
    return np.ascontiguousarray(array, dtype.dtype.newbyteorder("=")).reshape(shape)


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """`_codecs.encode`, by which Python 3 writes bytes into pickles of protocol 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise Refused("_codecs.encode with an encoding other than latin1")
    return text.encode("latin1")


_BYTES, _SET = Global(lambda: b""), Global(lambda items=(): set(items))
_NUMPY = {
    ("multiarray", "_reconstruct"): Global(ArrayRef),
    ("multiarray", "scalar"): Global(lambda dtype, raw: _array(raw, dtype, ())),
    ("numeric", "_frombuffer"): Global(_array),
}
_GLOBALS: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Global(lambda items=(): PlainMapping(items)),
    ("_codecs", "encode"): Global(_encode),
    ("builtins", "bytes"): _BYTES,
    ("__builtin__", "bytes"): _BYTES,
    ("builtins", "set"): _SET,
    ("__builtin__", "set"): _SET,
    ("numpy", "dtype"): Global(DtypeRef),
    ("numpy", "ndarray"): Global(ArrayRef),
    **{(f"numpy.core.{module}", name): stand_in for (module, name), stand_in in _NUMPY.items()},
    **{(f"numpy._core.{module}", name): stand_in for (module, name), stand_in in _NUMPY.items()},
    ("torch", "Size"): Global(lambda items=(): tuple(items)),
    ("torch._utils", "_rebuild_tensor"): Global(TensorRef),
    ("torch._utils", "_rebuild_tensor_v2"): Global(TensorRef),
    ("torch._utils", "_rebuild_parameter"): Global(lambda tensor, *_: tensor),
    **{("torch", name): StorageType(element) for name, element in STORAGE_TYPES.items()},
}


class _Reader(pickle.Unpickler):
    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="latin1")
        self.storages: list[StorageRef] = []

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> StorageRef:
        """('storage', type, key, device, elements[, view]); view: (key, first element, elements) or None."""
        kind, storage_type, key, _, numel, *rest = pid
        if kind != "storage" or not isinstance(storage_type, StorageType):
            raise pickle.UnpicklingError("an unknown persistent object")
        _, start, numel = rest[0] if rest and rest[0] is not None else (key, 0, numel)
        self.storages.append(StorageRef(storage_type.element, str(key), int(numel), int(start)))
        return self.storages[-1]


def load(file: BinaryIO, where: object) -> tuple[Any, list[StorageRef]]:
    """The next pickle in `file`: plain containers, numbers, text, arrays and the *Ref stand-ins above.

    Also returns the storages it refers to. Raises UserError, with `where`, for a global outside the table and for an
    incomplete or damaged pickle.
    """
    reader = _Reader(file)
    try:
        return reader.load(), reader.storages
    except Refused as error:
        raise UserError(
            f"refused: this pickle refers to {error}, which is not a tensor, array or plain container",
            where=where,
            todo="use a trusted file with only a state dict, or a .safetensors file",
        ) from error
    except OSError:
        raise
    except Exception as error:  # a damaged pickle is a program of arbitrary bytes: it can fail in any way
        early = isinstance(error, EOFError) or "truncated" in str(error)
        raise damaged(where, "it ends too early" if early else str(error) or type(error).__name__) from error


def damaged(where: object, reason: str) -> UserError:
    """The error for a file that is truncated, overwritten or of another kind."""
    return UserError(f"damaged weights file: {reason}", where=where, todo="download or copy it again")


def to_arrays(value: Any, read_storage: Callable[[StorageRef], np.ndarray], where: object) -> Any:
    """Replace the stand-ins in `value` by arrays; mappings become dicts.

    `read_storage` returns the elements [numel] of a storage, and is called once for each. UserError for a tensor that
    exceeds its storage, and for a container that contains itself.
    """
    storages: dict[tuple[str, int, int], np.ndarray] = {}
    done: dict[int, Any] = {}  # id of a stand-in or container -> result: shared parts are converted once
    within: set[int] = set()

    def convert(item: Any) -> Any:
        if not isinstance(item, TensorRef | ArrayRef | dict | list | tuple):
            return item
        if id(item) in within or len(within) > 100:
            raise damaged(where, "a container contains itself")
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
        return strided(storages[key], item, where)

    return convert(value)


def strided(storage: np.ndarray, tensor: TensorRef, where: object) -> np.ndarray:
    """A contiguous copy of the tensor's part of `storage` [numel]; UserError if it exceeds the storage."""
    shape, strides, offset = tensor.shape, tensor.strides, tensor.offset
    numbers = (*shape, *strides, offset)
    if len(shape) != len(strides) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise damaged(where, "a tensor has invalid sizes")
    if 0 in shape:
        return np.zeros(shape, storage.dtype)
    elements, last = 1, offset
    for size, stride in zip(shape, strides):
        elements, last = elements * size, last + (size - 1) * stride
    if last >= storage.size or elements > storage.size + MAX_EXPANDED:
        raise damaged(where, f"a tensor of shape {shape} exceeds its {storage.size} stored elements")
    steps = tuple(stride * storage.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False).copy(order="C")
