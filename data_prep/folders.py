"""Output folders that appear only when they are complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from elk_jax.errors import UserError, from_os_error
from elk_jax.files import make_folder


@contextmanager
def new_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a hidden folder beside `path` to write into; it is renamed to `path` when the block succeeds.

    After an error or Ctrl-C, or if the disk is full, the hidden folder is removed and `path` is unchanged. UserError if
    `path` exists and is not an empty folder (unless `overwrite`), or is not writable.
    """
    path = Path(os.path.abspath(path))
    if path.exists() and not path.is_dir():
        raise UserError("this is a file, not a folder", where=path, todo="choose another folder")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise UserError("the output folder is not empty", where=path, todo="choose another one, or add --overwrite")
    make_folder(path.parent)
    hidden = make_folder(path.with_name(f".{path.name}.{os.getpid()}.partial"))
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        yield hidden
        if path.exists():
            os.replace(path, old)
        os.replace(hidden, path)
    except OSError as error:
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise from_os_error(error, path) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
