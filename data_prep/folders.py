"""Output folders that appear only when they are complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from elk_jax.errors import UserError, from_os_error
from elk_jax.files import PARTIAL, locked, make_folder


@contextmanager
def new_folder(
    path: str | Path, part: str, overwrite: bool = False, inputs: Sequence[str | Path] = ()
) -> Iterator[Path]:
    """Yield a hidden folder beside `path` to write into; it is renamed to `path` when the block succeeds.

    part: a file in every folder that the script builds: with `overwrite`, only such a folder is replaced. inputs: what
    the script reads. After an error or Ctrl-C, or if the disk is full, the hidden folder is removed and `path` is
    unchanged. What a killed script left is removed by the next one; if it was killed between the two renames, the
    earlier `path` is put back first. UserError if `path` is not writable, or exists and is not an empty folder, unless
    it is to be replaced; also if that would delete an input, or a folder that something else has written; and if
    another process is building it.
    """
    path = Path(os.path.abspath(path))
    make_folder(path.parent)
    place = make_folder(path.with_name(f".{path.name}{PARTIAL}"))
    new, old = place / "new", place / "old"
    with locked(place):
        try:
            if old.exists() and not path.exists():
                os.replace(old, path)
            _check_replaceable(path, part, overwrite, inputs)
            for left in (new, old):
                shutil.rmtree(left, ignore_errors=True)
            yield make_folder(new)
            if path.exists():
                os.replace(path, old)
            os.replace(new, path)
        except OSError as error:
            raise from_os_error(error, path) from error
        finally:
            if old.exists() and not path.exists():
                os.replace(old, path)
            shutil.rmtree(place, ignore_errors=True)


def _check_replaceable(path: Path, part: str, overwrite: bool, inputs: Sequence[str | Path]) -> None:
    """UserError unless there is nothing at `path`, or what may be replaced; see `new_folder`."""
    if path.exists() and not path.is_dir():
        raise UserError("this is a file, not a folder", where=path, todo="choose another folder")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not overwrite:
        raise UserError("the output folder is not empty", where=path, todo="choose another one, or add --overwrite")
    if not (path / part).is_file():
        what = f"--overwrite replaces only what this script has built, and the folder has no {part}"
        raise UserError(what, where=path, todo="choose another folder")
    if read := next((one for one in inputs if Path(one).resolve().is_relative_to(path.resolve())), None):
        raise UserError(f"--overwrite would delete the input {read}", where=path, todo="choose another folder")
