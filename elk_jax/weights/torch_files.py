"""Read both file formats of PyTorch without PyTorch: the zip archive (since 1.6) and the older pickle stream."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from typing import Any, BinaryIO

import numpy as np

from elk_jax.budget import Budget
from elk_jax.errors import UserError
from elk_jax.weights import pickle_machine, pickles

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001


def read_zip(file: BinaryIO, budget: Budget) -> Any:
    """The object in a zip archive: `<name>/data.pkl` and one member `<name>/data/<key>` per storage.

    Members are read by their exact name and never unpacked to disk, so paths in the archive are harmless.
    Compressed members, which PyTorch never writes, are refused, since they could be zip bombs.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return _read_archive(archive, os.fstat(file.fileno()).st_size, budget)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error) as error:
        raise pickles.damaged(budget.where, f"broken zip archive, {error}") from error


def _read_archive(archive: zipfile.ZipFile, size: int, budget: Budget) -> Any:
    path = budget.where
    members = {member.filename: member for member in archive.infolist()}
    if len(members) < len(archive.infolist()):
        raise pickles.damaged(path, "two members with the same name in the zip archive")
    roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1 or roots[0].count("/") != 1:
        raise UserError("a zip archive, but not of PyTorch", where=path, todo="give the weights file")
    root = roots[0]
    if f"{root}constants.pkl" in members:
        raise UserError("a TorchScript program", where=path, todo="save the model's state_dict() instead")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
        raise pickles.damaged(path, "it is compressed, unlike the files of PyTorch")
    if any(member.file_size > size for member in members.values()):
        raise pickles.damaged(path, "a member of the zip archive is larger than the file")
    order = archive.read(f"{root}byteorder") if f"{root}byteorder" in members else b"little"
    if order not in (b"little", b"big"):
        raise pickles.damaged(path, f"the byte order {order[:10]!r}")
    big_endian = order == b"big"

    def read_storage(storage: pickles.StorageRef) -> np.ndarray:
        name = f"{root}data/{storage.key}"
        count = storage.numel * storage.element.dtype.itemsize
        if name not in members or members[name].file_size != count or storage.start:
            raise pickles.damaged(path, f"storage {storage.key!r} is missing or does not have {count} bytes")
        budget.spend(count, f"storage {storage.key!r}")
        storage.element.spend(budget, storage.numel, f"storage {storage.key!r}")
        return storage.element.to_array(archive.read(name), big_endian)

    pickled = archive.read(f"{root}data.pkl")
    value, _ = pickle_machine.load(io.BytesIO(pickled), len(pickled), budget)
    return pickles.to_arrays(value, read_storage, budget)


def read_legacy(file: BinaryIO, budget: Budget) -> Any:
    """The object in a file of the older format; `file` is positioned after the pickled magic number.

    It is followed by pickles of the protocol number, the properties of the writing machine, the object and the list of
    storage keys; then, for each key, the number of elements (8 bytes) and the elements.
    """
    path, size = budget.where, os.fstat(file.fileno()).st_size
    (protocol, _), (system, _) = (pickle_machine.load(file, size, budget) for _ in range(2))
    if protocol != LEGACY_PROTOCOL or not isinstance(system, dict):
        raise pickles.damaged(path, "unknown version of PyTorch's older format")
    big_endian = system.get("little_endian") is False
    value, elements = pickle_machine.load(file, size, budget)
    keys, _ = pickle_machine.load(file, size, budget)
    if not isinstance(keys, list) or not all(isinstance(key, str | int) for key in keys):
        raise pickles.damaged(path, "its list of storages is not a list")
    if set(map(str, keys)) != set(elements):
        raise pickles.damaged(path, "its list of storages does not match its tensors")
    raw: dict[str, np.ndarray] = {}
    for key in map(str, keys):
        (numel,) = struct.unpack(">q" if big_endian else "<q", _exactly(file, 8, path))
        content = _exactly(file, numel * elements[key].dtype.itemsize, path)
        elements[key].spend(budget, numel, f"storage {key!r}")
        raw[key] = elements[key].to_array(content, big_endian)

    def read_storage(storage: pickles.StorageRef) -> np.ndarray:
        part = raw[storage.key][max(storage.start, 0) :][: max(storage.numel, 0)]
        if part.size != storage.numel or storage.start < 0:
            raise pickles.damaged(path, f"storage {storage.key!r} is too short")
        return part

    return pickles.to_arrays(value, read_storage, budget)


def _exactly(file: BinaryIO, size: int, path: object) -> bytes:
    """The next `size` bytes; never allocates more than the rest of the file."""
    if not 0 <= size <= os.fstat(file.fileno()).st_size - file.tell():
        raise pickles.damaged(path, "it ends too early")
    return file.read(size)
