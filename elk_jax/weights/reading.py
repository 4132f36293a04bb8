"""Read weights files of other libraries as named arrays, without PyTorch and without executing pickles."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from elk_jax import files
from elk_jax.budget import budget_for
from elk_jax.errors import UserError, from_os_error
from elk_jax.weights import pickle_machine, pickles, torch_files

Tensors = dict[str, np.ndarray]

STATE_DICT_KEYS = ("model", "state_dict", "model_state_dict", "model_state", "blobs", "module")
"""Entries of a checkpoint with its weights; the first one present is read."""
AVERAGED = re.compile(r"(^|_)ema(_|$)")
"""In the names of entries with averaged weights: state_dict_ema, model_ema, ema. They are read before all others, as in
timm, effdet and the reference scripts of torchvision, which evaluate them."""
FLOOR = 1 << 27
"""Bytes that reading the smallest file may allocate: weights are stored in full, except masks of one repeated row."""
LONGEST_NAME = 1000
"""Most characters of a tensor's name."""

_CODES = {
    "F64": "f8",
    "F32": "f4",
    "F16": "f2",
    "I64": "i8",
    "I32": "i4",
    "I16": "i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
_SAFETENSORS_TYPES = {kind: pickles.ElementType(np.dtype(code)) for kind, code in _CODES.items()}
_SAFETENSORS_TYPES["BF16"] = pickles.BFLOAT16


def read_tensors(path: str | os.PathLike) -> Tensors:
    """Name -> array of a detectron2 or Detectron .pkl, a PyTorch .pth (either format), or a .safetensors file.

    The format is detected from the content, not from the file name. Arrays are contiguous, in native byte order and of
    the stored type; bfloat16 becomes float32 (exact). The state dict is the top level of the file or under one of
    STATE_DICT_KEYS. Raises UserError for a missing, truncated, unknown or refused file.
    """
    path = Path(path)
    try:
        with files.open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            budget, head = budget_for(size, path, FLOOR), file.read(64)
            if head[:2] == b"PK":
                return state_dict(torch_files.read_zip(file, budget), path)
            if path.suffix == ".safetensors" or head[5:9] == b"\0\0\0{":
                return state_dict(read_safetensors(path), path)
            _refuse_other_kinds(head, path)
            file.seek(0)
            first, _ = pickle_machine.load(file, size, budget)
            if first == torch_files.LEGACY_MAGIC:
                return state_dict(torch_files.read_legacy(file, budget), path)

            def no_storage(_: pickles.StorageRef) -> np.ndarray:
                raise pickles.damaged(path, "a tensor without storage")

            return state_dict(pickles.to_arrays(first, no_storage, budget), path)
    except OSError as error:
        raise from_os_error(error, path) from error


def read_safetensors(path: str | os.PathLike) -> Tensors:
    """Name -> array of a .safetensors file; raises UserError if it is missing or damaged."""
    content = files.read_bytes(path)
    budget = budget_for(len(content), path, FLOOR)
    try:
        views = safetensors.deserialize(content)
    except Exception as error:  # the library's exception derives directly from Exception
        raise pickles.damaged(path, f"broken safetensors file, {error}") from error
    tensors = {}
    for name, view in views:
        element = _SAFETENSORS_TYPES.get(view["dtype"])
        if element is None:
            raise UserError(f"tensor {name} is of type {view['dtype']}", where=path, todo="save it as float32")
        element.spend(budget, len(view["data"]) // element.dtype.itemsize, f"tensor {name}")
        try:
            tensors[name] = element.to_array(view["data"]).reshape(view["shape"])
        except (ValueError, OverflowError) as error:  # of no elements, in impossible shapes
            raise pickles.damaged(path, f"tensor {name} of impossible shape, {error}") from error
    return tensors


def state_dict(content: Any, path: object) -> Tensors:
    """The only mapping of names to arrays in a checkpoint, without the rest (optimizer, epoch, settings, author).

    It may be two levels deep if both have a name of AVERAGED or STATE_DICT_KEYS. Raises UserError if there is none, if
    there are several but none under such a name, or if an entry is not an array.
    """
    if not isinstance(content, Mapping):
        _refuse_inert([content, *(content if isinstance(content, list | tuple) else ())], path)
        kind = type(content).__name__
        raise UserError(f"the file holds a {kind}, not named tensors", where=path, todo="save the model's state_dict()")
    found = {str(key): value for key, value in content.items() if _has_tensors(value)}
    if _is_state_dict(content):
        return _checked(content, "", path)
    for key in _places(content):
        if key in found:
            return _checked(found[key], key, path)
        entry = content.get(key)
        below: Mapping[Any, Any] = entry if isinstance(entry, Mapping) else {}
        for inner in _places(below):
            if _has_tensors(below.get(inner)):
                return _checked(below[inner], f"{key}.{inner}", path)
        _refuse_inert([entry], path)
    whole = [key for key, value in found.items() if _is_state_dict(value)]
    if len(whole) == 1:
        return _checked(found[whole[0]], whole[0], path)
    if not whole and _has_tensors(content):
        return _checked(content, "", path)
    if not whole and len(found) == 1:
        return _checked(*next((value, key) for key, value in found.items()), path)
    if not found:
        _refuse_inert(content.values(), path)
    keys = ", ".join(sorted(shown(key) for key in content)[:8]) or "nothing"
    raise UserError(f"no state dict among the entries {keys}", where=path, todo="store it under 'model'")


def _places(content: Mapping[Any, Any]) -> tuple[str, ...]:
    """The names of the entries that may hold the weights, in order. Settings of an average are not among them."""
    averaged = [key for key in content if isinstance(key, str) and AVERAGED.search(key)]
    return (
        *(key for key in averaged if not _has_tensors(content[key]) or _is_state_dict(content[key])),
        *STATE_DICT_KEYS,
    )


def _refuse_inert(values: Iterable[Any], path: object) -> None:
    """Raise UserError for the first object found in place of weights, such as a complete module."""
    for value in values:
        if isinstance(value, pickles.Inert):
            raise pickles.refused(value.name, path)


def shown(name: Any) -> str:
    """A name from a foreign file, shortened for messages."""
    text = name if isinstance(name, str) else "(not a string)"
    return text if len(text) <= 80 else f"{text[:80]}..."


def _is_note(name: Any) -> bool:
    """Whether an entry of a state dict is not a weight: a note, a Detectron momentum, a module's extra state.

    Sources: detectron2's DetectionCheckpointer; `get_extra_state` of PyTorch's modules.
    """
    if not isinstance(name, str):
        return False
    ends = name.endswith(("_momentum", "_extra_state"))
    return ends or name.startswith("__") or name in ("matching_heuristics", "weight_order")


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(item, np.ndarray) for item in value.values())


def _is_state_dict(value: Any) -> bool:
    """Whether a mapping contains named arrays, and nothing else except notes."""
    return _has_tensors(value) and not _others(value)


def _others(value: Mapping[Any, Any]) -> list[Any]:
    """The names of entries that are neither arrays nor notes, and names that are not strings."""
    return [name for name, item in value.items() if not (_is_note(name) or _is_tensor(name, item))]


def _is_tensor(name: Any, item: Any) -> bool:
    return isinstance(name, str) and len(name) <= LONGEST_NAME and isinstance(item, np.ndarray)


def _checked(tensors: Mapping[Any, Any], key: str, path: object) -> Tensors:
    """The arrays of a state dict; UserError for the first entry that is not an array."""
    others = _others(tensors)
    if others:
        item = tensors[others[0]]
        kind = f"an object of {item.name}" if isinstance(item, pickles.Inert) else f"of type {type(item).__name__}"
        place = f" under '{key}'" if key else ""
        what = f"the entry '{shown(others[0])}' of the state dict{place} is {kind}, not a tensor"
        raise UserError(what, where=path, todo="remove it, and save the state dict again")
    return {name: item for name, item in tensors.items() if not _is_note(name)}


def _refuse_other_kinds(head: bytes, path: Path) -> None:
    files.check_there(head, path)
    if head.lstrip()[:1] == b"<":
        raise UserError("a web page, not the weights", where=path, todo="download the file again")
    if not head.startswith((b"\x80", b"(", b"}", b"]", b"c")):
        raise UserError("not a weights file", where=path, todo="give a .pkl, .pth or .safetensors file")
