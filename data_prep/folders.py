"""Output folders that appear only when they are complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from elk_jax.errors import UserError, from_os_error
from elk_jax.files import make_folder


@contextmanager
def new_folder(
    path: str | Path, part: str, overwrite: bool = False, inputs: Sequence[str | Path] = ()
) -> Iterator[Path]:
    """Yield a hidden folder beside `path` to write into; it is renamed to `path` when the block succeeds.

    part: a file in every folder that the script builds: with `overwrite`, only such a folder is replaced. inputs: what
    the script reads. After an error or Ctrl-C, or if the disk is full, the hidden folder is removed and `path` is
    unchanged. UserError if `path` is not writable, or exists and is not an empty folder, unless it is to be replaced;
    also if that would delete an input, or a folder that something else has written.
    """
    path = Path(os.path.abspath(path))
    if path.exists() and not path.is_dir():
        raise UserError("this is a file, not a folder", where=path, todo="choose another folder")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise UserError("the output folder is not empty", where=path, todo="choose another one, or add --overwrite")
    if path.is_dir() and any(path.iterdir()):
        if not (path / part).is_file():
            what = f"--overwrite replaces only what this script has built, and the folder has no {part}"
            raise UserError(what, where=path, todo="choose another folder")
        if read := next((one for one in inputs if Path(one).resolve().is_relative_to(path.resolve())), None):
            raise UserError(f"--overwrite would delete the input {read}", where=path, todo="choose another folder")
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
