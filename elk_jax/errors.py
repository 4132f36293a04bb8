"""Errors in the user's input: a single line on stderr, exit code 2, no traceback."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from elk_jax.output import prepare, visible


class UserError(Exception):
    """An error that the user can correct. One line: `what` is wrong, `where`, and what to do (`todo`)."""

    def __init__(self, what: str, *, where: object = "", todo: str = ""):
        self.what, self.where, self.todo = what, str(where), todo
        parts = [what.strip().rstrip(".")]
        if where:
            parts[0] += f" ({where})"
        if todo:
            parts.append(todo.strip().rstrip("."))
        super().__init__(visible(" ".join(". ".join(parts).split())))

    def within(self, section: str) -> UserError:
        """The same error for a field of `section`: `config.detector` and `steps` give `config.detector.steps`."""
        return UserError(self.what, where=f"{section}.{self.where}" if self.where else section, todo=self.todo)


def from_os_error(error: OSError, where: object = "") -> UserError:
    """The UserError for an operating-system error while reading or writing `where`."""
    where = where or error.filename or ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError("the disk is full", where=where, todo="free some space and rerun the same command")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError("permission denied", where=where, todo="choose another folder or change its permissions")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return UserError("no such file or folder", where=where, todo="check the path")
    if error.errno == errno.EFBIG:
        todo = "raise the limit of file sizes (ulimit -f), or choose another file system"
        return UserError("the file would be larger than the system allows", where=where, todo=todo)
    if error.errno == errno.ELOOP:
        return UserError("a symbolic link is in the way", where=where, todo="remove it")
    return UserError(os.strerror(error.errno) if error.errno else str(error), where=where)


def run_main(main: Callable[..., object], *args: object) -> None:
    """Call `main(*args)` and exit: 0 when it returns, 2 with one line on stderr for a UserError, 130 on Ctrl-C.

    With several processes, an error exits at once: JAX's own exit would wait minutes for the other processes, which in
    turn wait for this one.
    """
    prepare()
    try:
        main(*args)
    except KeyboardInterrupt:
        print("interrupted: rerun the same command to resume where possible", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        line = _one_line(error)
        if not line and not _has_peers():
            raise
        print(f"error: {line}" if line else traceback.format_exc(), file=sys.stderr)
        _leave(2 if line else 1)


def _one_line(error: Exception) -> str:
    """The message for the user; "" for a bug, whose traceback is needed."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return str(from_os_error(error))
    if is_out_of_memory(error):
        return str(_from_out_of_memory(error))
    if _has_peers() and re.search("closed by peer|reset by peer", str(error)):
        return str(UserError("another process of this run has ended", todo="see its output"))
    return ""


def _leave(code: int) -> NoReturn:
    if not _has_peers():
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _has_peers() -> bool:
    """Whether this process has joined others. JAX is not imported, which takes seconds: without it there are none."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether JAX ran out of device memory. Compares names to avoid importing JAX."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"JaxRuntimeError", "XlaRuntimeError"}) and "RESOURCE_EXHAUSTED" in str(error)


def _from_out_of_memory(error: BaseException) -> UserError:
    size = re.search(r"allocat\w*\s+(\d[\d.]*\s?\w+)", str(error))
    return UserError(
        f"out of device memory{f' while allocating {size[1]}' if size else ''}",
        todo="lower loader.batch_size or loader.buckets, or set model.backbone.remat=(2,3) in the recipe",
    )
