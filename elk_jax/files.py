"""Atomic writes of files, and checks that folders are writable."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from elk_jax.errors import UserError, from_os_error


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


def read_json(path: str | os.PathLike) -> Any:
    """Read JSON; UserError for a missing, unreadable or malformed file."""
    try:
        return json.loads(Path(path).read_text())
    except OSError as error:
        raise from_os_error(error, path) from error
    except ValueError as error:
        raise UserError(f"not valid JSON: {error}", where=path, todo="repair or replace the file") from error


def fingerprint(folder: str | os.PathLike, pattern: str = "*") -> str:
    """Hash of the names and contents of the files in `folder` that match `pattern`: 16 hex digits; "" without any."""
    digest = hashlib.sha256()
    paths = sorted(path for path in Path(folder).glob(pattern) if path.is_file())
    for path in paths:
        with open(path, "rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode())
    return digest.hexdigest()[:16] if paths else ""
