"""A process that is killed, or whose disk is full, at one of its changes to the files below a folder.

A change is what Python reports to audit hooks before it is made: a file opened for writing, a folder made, a name moved
or removed. Of a killed process, this and every later change are not made, so no clean-up is: `Killed` is raised.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
AT = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.rename": 2, "os.link": 2}
"""Event -> position of the descriptor of the folder that its path is relative to."""

REMOVING = ("os.remove", "os.rmdir")
"""What a full disk allows."""


class Killed(BaseException):
    """The process does nothing any more."""


class _Watch:
    folder = ""
    count = 0
    at = 0
    error: BaseException | None = None


_installed: list[_Watch] = []


def _path(event: str, arguments: tuple[Any, ...]) -> str:
    """The absolute path that an event is about to change; "" for other events."""
    if (event == "open" and not arguments[2] & WRITING) or (event != "open" and event not in AT):
        return ""
    path = arguments[0]
    if isinstance(path, int) or path is None:
        return ""
    path = os.fsdecode(path)
    folder = -1 if event == "open" else arguments[AT[event]]
    if not os.path.isabs(path) and folder >= 0:
        path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
    return os.path.abspath(path)


def _watch() -> _Watch:
    """The one watch of this Python; an audit hook cannot be removed."""
    if not _installed:
        watch = _Watch()

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if not watch.folder or (event != "open" and event not in AT):
                return
            if not _path(event, arguments).startswith(watch.folder):
                return
            watch.count += 1
            dead = isinstance(watch.error, Killed) and watch.count >= watch.at
            full = isinstance(watch.error, OSError) and watch.count == watch.at and event not in REMOVING
            if dead or full:
                raise watch.error

        sys.addaudithook(hook)
        _installed.append(watch)
    return _installed[0]


@contextlib.contextmanager
def _watching(folder: Path, at: int, error: BaseException | None) -> Iterator[_Watch]:
    watch = _watch()
    watch.folder, watch.count, watch.at, watch.error = str(folder.absolute()), 0, at, error
    try:
        yield watch
    finally:
        watch.folder = ""
        for name in os.listdir("/proc/self/fd"):  # the system releases the locks of a dead process
            with contextlib.suppress(OSError):
                place = os.readlink(f"/proc/self/fd/{name}")
                if place.startswith(str(folder.absolute())) and place.removesuffix(" (deleted)").endswith("/.lock"):
                    os.close(int(name))


def changes(folder: Path, act: Callable[[], object]) -> int:
    """The number of changes that `act` makes below `folder`."""
    with _watching(folder, 0, None) as watch:
        act()
        return watch.count


def killed(folder: Path, at: int, act: Callable[[], object]) -> None:
    """Run `act` in a process that is killed at its change number `at` (from 1) below `folder`."""
    with contextlib.suppress(Killed), _watching(folder, at, Killed()):
        act()


def on_full_disk(folder: Path, at: int, act: Callable[[], object]) -> None:
    """Run `act`; at its change number `at` (from 1) below `folder` the disk is full, unless it frees space. Raises what
    `act` raises."""
    with _watching(folder, at, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))):
        act()
