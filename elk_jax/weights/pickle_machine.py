"""Interpret a pickle as data: a small stack machine on plain data that imports and calls nothing.

A pickle is a program that names functions ("globals") and calls them. `pickles.call` determines the result of a call.
Everything that the program creates is charged to the file's budget, and only numbers and strings are hashed as keys:
hashing nested tuples can take for ever.

Sources: the pickle opcodes (Python's pickletools).
"""

from __future__ import annotations

import _compat_pickle
import codecs
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from elk_jax.budget import Budget
from elk_jax.weights.pickles import (
    OBJECT,
    OPAQUE_TYPES,
    STORAGE_TYPES,
    ArrayRef,
    DtypeRef,
    ElementType,
    Global,
    Inert,
    Malformed,
    Refused,
    StorageRef,
    array_from_bytes,
    call,
    checked_key,
    damaged,
    new_object,
    refused,
    short_name,
)

MOST_BITS = 4096
"""Most bits of a whole number; the states of random generators have 128."""


class _Stream:
    """Reads arguments of opcodes; never requests more bytes than the file has."""

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
        return self.read(max(0, self.number(code)))


def _text(content: bytes) -> str:
    return content.decode("utf-8")


def _long(content: bytes) -> int:
    return int.from_bytes(content, "little", signed=True)


def _short(line: bytes) -> int | bool:
    return line == b"01" if line in (b"00", b"01") else int(line)


def _quoted(line: bytes) -> str:
    line = line.strip()
    if len(line) < 2 or line[:1] not in b"'\"" or line[-1:] != line[:1]:
        raise Malformed("a string without quotes")
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
    """Runs one pickle. stack: the values since the last mark; below: the stacks before it."""

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
            b"i": lambda: push(call(self.budget, self._named(stream.line(), stream.line()), self._since_mark())),
            b"o": self._call_of_mark,
            b"\x81": lambda: push(new_object([pop(), pop()][1])),
            b"\x92": lambda: push(new_object([pop(), pop(), pop()][2])),
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
            target.update((checked_key(key), value) for key, value in zip(items[::2], items[1::2]))
        elif not isinstance(target, Inert):
            raise Malformed("entries of something that is not a mapping")

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target += items
        elif not isinstance(target, Inert):
            raise Malformed("items of something that is not a list")

    def _named(self, module: Any, name: Any) -> Global:
        texts = [part.decode("utf-8") if isinstance(part, bytes) else part for part in (module, name)]
        if not all(isinstance(part, str) for part in texts):
            raise Malformed("a name that is not a string")
        names = _compat_pickle.NAME_MAPPING, _compat_pickle.IMPORT_MAPPING  # of Python 2
        module, name = names[0].get((texts[0], texts[1]), (names[1].get(texts[0], texts[0]), texts[1]))
        return Global(short_name(f"{module}.{name}"))

    def _reduce(self, args: Any) -> None:
        self.stack.append(call(self.budget, self.stack.pop(), args))

    def _call_of_mark(self) -> None:
        function, *args = self._since_mark()
        self.stack.append(call(self.budget, function, args))

    def _set_state(self, state: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, ArrayRef):
            _, shape, dtype, fortran, raw = state
            target.array = array_from_bytes(self.budget, raw, dtype, shape, "F" if fortran else "C")
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
            raise Malformed(f"storage {str(key)!r} has two types")
        return Inert(storage_type.name) if opaque else StorageRef(element, str(key), numel, start)


def load(file: BinaryIO, size: int, budget: Budget) -> tuple[Any, dict[str, ElementType]]:
    """The next pickle in `file`: plain containers, numbers, text, arrays and the records above.

    size: bytes of the whole file. Also returns the keys and types of the storages to which it refers. Raises UserError
    for a call outside the tables, for a pickle that exceeds the budget, and for an incomplete or damaged one.
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
