"""Read weights files of other libraries as named arrays, without PyTorch and without executing pickles."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from elk_jax.errors import UserError, from_os_error
from elk_jax.weights import pickles, torch_files

Tensors = dict[str, np.ndarray]

STATE_DICT_KEYS = ("model", "state_dict", "model_state_dict", "model_state", "blobs")

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
    if path.is_dir():
        raise UserError("a folder, not a weights file", where=path, todo="give a file in it")
    try:
        with open(path, "rb") as file:
            head = file.read(64)
            if head[:2] == b"PK":
                return state_dict(torch_files.read_zip(path), path)
            if path.suffix == ".safetensors" or head[5:9] == b"\0\0\0{":
                return read_safetensors(path)
            _refuse_other_kinds(head, path)
            file.seek(0)
            first, _ = pickles.load(file, path)
            if first == torch_files.LEGACY_MAGIC:
                return state_dict(torch_files.read_legacy(file, path), path)

            def no_storage(_: pickles.StorageRef) -> np.ndarray:
                raise pickles.damaged(path, "a tensor without storage")

            return state_dict(pickles.to_arrays(first, no_storage, path), path)
    except OSError as error:
        raise from_os_error(error, path) from error


def read_safetensors(path: str | os.PathLike) -> Tensors:
    """Name -> array of a .safetensors file; raises UserError if it is missing or damaged."""
    try:
        content = safetensors.deserialize(Path(path).read_bytes())
    except OSError as error:
        raise from_os_error(error, path) from error
    except Exception as error:  # the library's exception derives directly from Exception
        raise pickles.damaged(path, f"broken safetensors file, {error}") from error
    tensors = {}
    for name, view in content:
        element = _SAFETENSORS_TYPES.get(view["dtype"])
        if element is None:
            raise UserError(f"tensor {name} is of type {view['dtype']}", where=path, todo="save it as float32")
        tensors[name] = element.to_array(view["data"]).reshape(view["shape"])
    return tensors


def state_dict(content: Any, path: object) -> Tensors:
    """The only mapping of names to arrays in a checkpoint, without the rest (optimizer, epoch, author).

    Raises UserError if there is none, or several of which none is under one of STATE_DICT_KEYS.
    """
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise UserError(f"the file holds a {kind}, not named tensors", where=path, todo="save the model's state_dict()")
    found = {str(key): tensors for key, value in content.items() if (tensors := _tensors_only(value))}
    for tensors in (_tensors_only(content), *(found.get(key, {}) for key in STATE_DICT_KEYS)):
        if tensors:
            return tensors
    if len(found) == 1:
        return next(iter(found.values()))
    keys = ", ".join(sorted(map(str, content))[:8]) or "nothing"
    raise UserError(f"no state dict among the entries {keys}", where=path, todo="store it under 'model'")


def _tensors_only(value: Any) -> Tensors:
    """`value` if it is a mapping of names to arrays, else {}.

    The notes __author__, matching_heuristics etc., and Detectron's optimizer state *_momentum, are dropped.
    """
    if not isinstance(value, Mapping):
        return {}
    named = {str(key): item for key, item in value.items()}
    notes = {key for key in named if key.startswith("__") or key.endswith("_momentum") or key == "matching_heuristics"}
    tensors = {key: item for key, item in named.items() if key not in notes}
    return tensors if all(isinstance(item, np.ndarray) for item in tensors.values()) else {}


def _refuse_other_kinds(head: bytes, path: Path) -> None:
    if not head:
        raise UserError("the file is empty", where=path, todo="download or copy it again")
    if head.startswith(b"version https://git-lfs"):
        raise UserError("a Git LFS pointer, not the weights", where=path, todo="fetch them: git lfs pull")
    if head.lstrip()[:1] == b"<":
        raise UserError("a web page, not the weights", where=path, todo="download the file again")
    if not head.startswith((b"\x80", b"(", b"}", b"]", b"c")):
        raise UserError("not a weights file", where=path, todo="give a .pkl, .pth or .safetensors file")
