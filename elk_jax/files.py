"""Atomic writes of files, checks that folders are writable, and reading files that come from elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

from elk_jax.errors import UserError, from_os_error

MOST_JSON = 1 << 31
"""Bytes of the largest JSON file that is read; it takes about ten times as much memory."""
MOST_DIGITS = 40
"""Digits of the largest whole number in JSON: those of 128 bits, as identifiers have them."""
MOST_NESTED = 100
"""Objects and lists within each other in JSON; functions that walk through the content are recursive."""


def make_folder(path: str | os.PathLike) -> Path:
    """Create `path` and its parents, and check that it is writable; raises UserError otherwise."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path):
            pass
    except FileExistsError as error:
        raise UserError("a file, not a folder", where=path, todo="choose another folder") from error
    except OSError as error:
        raise from_os_error(error, path) from error
    return path


def check_writable(path: str | os.PathLike) -> None:
    """Raise UserError unless the folder `path` is writable or can be created; creates nothing."""
    path = Path(path)
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=there):
            pass
    except NotADirectoryError as error:
        raise UserError("a file, not a folder", where=there, todo="choose another folder") from error
    except OSError as error:
        raise from_os_error(error, path) from error


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write a file atomically: a reader, or a crash, sees either the old content or the new one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise from_os_error(error, path) from error


def write_text(path: str | os.PathLike, content: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, content.encode())


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write JSON atomically, indented, with a newline at the end. ValueError for NaN and infinity."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a file that comes from elsewhere for reading: never a device or a pipe, which could have no end.

    Raises UserError for a missing or unreadable file, a folder, a device, a pipe, a socket, and an impossible name.
    """
    try:
        mode = os.stat(path).st_mode  # opening a device can already have an effect
        if stat.S_ISREG(mode):
            file = open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")  # noqa: SIM115 (the caller's)
            mode = os.fstat(file.fileno()).st_mode  # of what was opened, whatever has taken its name since
            if stat.S_ISREG(mode):
                return file
            file.close()
    except OSError as error:
        raise from_os_error(error, path) from error
    except ValueError as error:  # NUL, or a character that no file name can have
        raise UserError(f"not a file name: {str(path)!a}", todo="correct the name") from error
    kind = "a folder" if stat.S_ISDIR(mode) else "a device, pipe or socket"
    raise UserError(f"{kind}, not a file", where=path, todo="give a regular file")


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of a file. UserError as in `open_regular`."""
    with open_regular(path) as file:
        try:
            return file.read()
        except OSError as error:
            raise from_os_error(error, path) from error


def read_text(path: str | os.PathLike) -> str:
    """The content of a UTF-8 file, without a byte-order mark. UserError as in `open_regular`, and for other bytes."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError("not a text in UTF-8", where=path, todo="save it again as UTF-8") from error


def read_json(path: str | os.PathLike) -> Any:
    """Read JSON in UTF-8, UTF-16 or UTF-32, with or without a byte-order mark; NaN and Infinity are numbers.

    UserError for a missing, unreadable or malformed file, and for one beyond the limits above.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MOST_JSON:
            raise UserError(f"{size} bytes of JSON, at most {MOST_JSON} are read", where=path, todo="split the file")
        try:
            return parse_json(file.read(), path)
        except OSError as error:
            raise from_os_error(error, path) from error


def parse_json(content: str | bytes, where: object) -> Any:
    """The value of a JSON text. UserError, with `where`, as in `read_json`."""
    try:
        value = json.loads(content, parse_int=_whole)
    except RecursionError as error:
        raise _too_deep(where) from error
    except ValueError as error:
        raise UserError(f"not valid JSON: {error}", where=where, todo="repair or replace the file") from error
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MOST_NESTED):
        below = (node.values() if isinstance(node, dict) else node for node in level)
        level = [child for children in below for child in children if isinstance(child, dict | list)]
    if level:
        raise _too_deep(where)
    return value


def _too_deep(where: object) -> UserError:
    what = f"not usable JSON: more than {MOST_NESTED} objects and lists within each other"
    return UserError(what, where=where, todo="use another file")


def _whole(digits: str) -> int:
    """A whole number of JSON; ValueError for one with so many digits that no field holds it."""
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's content: 64 hex digits, as `sha256sum` prints it."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise from_os_error(error, path) from error


def fingerprint(folder: str | os.PathLike, pattern: str = "*") -> str:
    """Hash of the names and contents of the files in `folder` that match `pattern`: 16 hex digits; "" without any."""
    digest = hashlib.sha256()
    paths = sorted(path for path in Path(folder).glob(pattern) if path.is_file())
    for path in paths:
        digest.update(f"{path.name} {sha256(path)} ".encode())
    return digest.hexdigest()[:16] if paths else ""
