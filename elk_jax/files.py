"""Atomic writes, checks and locks of folders, and safe reading of foreign files."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import itertools
import json
import math
import os
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from io import BufferedReader
from pathlib import Path
from typing import Any

from elk_jax.errors import UserError, from_os_error

MOST_NAME = 255
"""Longest file name, in bytes."""
PARTIAL = ".partial"
"""Suffix of files that are being written; they are hidden."""
MOVED = ".moved"
"""File with the names of what a command moves into a folder: it is there from before the first move to the end."""
LOCK = ".lock"

MOST_JSON = 1 << 31
"""Largest JSON file that is read, in bytes; parsed, it takes about ten times as much memory."""
MOST_DIGITS = 40
"""Digits of the largest whole number in JSON: 128 bits, as identifiers have."""
MOST_NESTED = 100
"""Deepest nesting of objects and lists in JSON; functions that walk through the content are recursive."""
_LFS = b"version https://git-lfs"


def make_folder(path: str | os.PathLike) -> Path:
    """Create `path` and its parents, and check that it is writable; raises UserError otherwise."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except FileExistsError as error:
        raise UserError("a file, not a folder", where=path, todo="choose another folder") from error
    except OSError as error:
        raise from_os_error(error, path) from error
    return path


def hide(path: Path) -> None:
    """Let only the owner read a file or a folder."""
    try:
        path.chmod(0o700 if path.is_dir() else 0o600)
    except OSError as error:
        raise from_os_error(error, path) from error


def check_writable(path: str | os.PathLike) -> None:
    """Raise UserError unless the folder `path` is writable or can be created. Creates nothing."""
    path = Path(path)
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except NotADirectoryError as error:
        raise UserError("a file, not a folder", where=there, todo="choose another folder") from error
    except OSError as error:
        raise from_os_error(error, path) from error


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike, last: str) -> Iterator[Path]:
    """A temporary place for the content of a new or empty folder; its content moves into the folder at the end.

    last: the name that is moved last, so that a folder that contains it is complete. After an error nothing remains.
    UserError for a folder that is not empty, except for what a killed command left, and for one that another process
    is writing into.
    """
    folder = Path(path)
    made = not folder.exists()
    folder = make_folder(folder)
    place, moved = folder / PARTIAL, folder / MOVED
    with locked(folder):
        names = read_object(moved, "names")["names"] if moved.is_file() else []
        left = [one for one in folder.iterdir() if one.name in names]
        if any(one not in (folder / LOCK, place, moved, *left) for one in folder.iterdir()):
            raise UserError("the folder is not empty", where=folder, todo="choose a new folder")
        try:
            _delete(*left, place, moved)
            yield make_folder(place)
            written = sorted(place.iterdir(), key=lambda one: one.name == last)
            left = [folder / one.name for one in written]
            write_json(moved, {"names": [one.name for one in written]})
            for one in written:
                os.replace(one, folder / one.name)
            place.rmdir()
            moved.unlink()
        except BaseException as error:
            _delete(folder) if made else _delete(*left, place, moved)
            if isinstance(error, OSError):
                raise from_os_error(error, folder) from error
            raise


@contextlib.contextmanager
def new_results(
    folder: str | os.PathLike, last: str, earlier: Sequence[str], inputs: Sequence[str | os.PathLike] = ()
) -> Iterator[Path]:
    """A temporary place for results, which at the end replace those of an earlier command in `folder`; it is locked.

    last: the result that is removed first and moved last, so that a folder that contains it is complete. earlier:
    patterns of all files that such a command may have written. They are removed if the folder contains `last`, since
    they would be taken for a part of the new results. inputs: files that stay. After an error or a kill before the end,
    the earlier results are unchanged; after a kill during the move, the next command removes what is there.
    """
    folder = make_folder(folder)
    place, moved = folder / PARTIAL, folder / MOVED
    with locked(folder):
        try:
            _delete(place)
            yield make_folder(place)
            written = [one.relative_to(place) for one in place.rglob("*") if one.is_file()]
            replaced = moved.is_file() or (folder / last).is_file()  # or a command was killed during the move
            write_json(moved, {"names": [name.as_posix() for name in written]})
        except BaseException as error:
            _delete(place)
            if isinstance(error, OSError):
                raise from_os_error(error, folder) from error
            raise
        try:
            if replaced:
                (folder / last).unlink(missing_ok=True)
                _remove(folder, earlier, inputs)
            for name in sorted(written, key=lambda name: name == Path(last)):
                make_folder((folder / name).parent)
                os.replace(place / name, folder / name)
            _delete(place, moved)
        except OSError as error:
            raise from_os_error(error, folder) from error


def _delete(*paths: Path) -> None:
    """Delete files and folders that may be there."""
    for path in paths:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _remove(folder: Path, patterns: Sequence[str], inputs: Sequence[str | os.PathLike]) -> None:
    """Remove the files in `folder` that match a pattern, except `inputs`, and folders that are then empty."""
    kept = {Path(one).resolve() for one in inputs}
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        if path.is_file() and path.resolve() not in kept:
            path.unlink()
            if path.parent != folder and not any(path.parent.iterdir()):
                path.parent.rmdir()


def check_name(path: str | os.PathLike) -> None:
    """Raise UserError if the last part of `path` is longer than a file name can be. Opens nothing."""
    size = len(os.fsencode(Path(path).name))
    if size > MOST_NAME:
        what = f"a file name of {size} bytes, the limit is {MOST_NAME}"
        raise UserError(what, where=path, todo="shorten the name of the file that it is named after")


def write_private(path: str | os.PathLike, content: bytes) -> None:
    """`write_bytes` of a file that only its owner can ever read (mode 0600)."""
    write_bytes(path, content, mode=0o600)


def write_bytes(path: str | os.PathLike, content: bytes, mode: int = 0o666) -> None:
    """Write a file atomically: readers see either the old content or the new one, also after a crash.

    Links are not followed: a link at `path` is replaced, and the temporary file has an unpredictable name. A temporary
    file left by a crash is hidden, and removed by the next `locked`.
    """
    _write(path, (content,), mode)


def _write(path: str | os.PathLike, parts: Iterable[bytes], mode: int = 0o666) -> None:
    """`write_bytes` of content that is never in memory as a whole."""
    path = Path(path)
    check_name(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}{PARTIAL}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        with open(os.open(temporary, flags, mode), "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise from_os_error(error, path) from error
        raise


def write_text(path: str | os.PathLike, content: str) -> None:
    """Write UTF-8 text atomically. Bytes of file names in other encodings are escaped, as in \\udce4."""
    write_bytes(path, content.encode(errors="backslashreplace"))


_JSON = json.JSONEncoder(indent=2, allow_nan=False)


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write JSON atomically, indented, with a final newline. ValueError for NaN and infinity."""
    _write(path, _joined(itertools.chain(_JSON.iterencode(content), ("\n",))))


def write_json_list(path: str | os.PathLike, entries: Iterable[Any]) -> None:
    """`write_json` of a list whose entries are in memory one at a time: there may be millions."""

    def lines() -> Iterator[str]:
        start = "[\n  "
        for entry in entries:
            yield start + _JSON.encode(entry).replace("\n", "\n  ")  # texts in JSON have no line breaks
            start = ",\n  "
        yield "[]\n" if start.startswith("[") else "\n]\n"

    _write(path, _joined(lines()))


def _joined(parts: Iterator[str]) -> Iterator[bytes]:
    """Texts, many of them short, as fewer pieces of bytes."""
    while piece := "".join(itertools.islice(parts, 10_000)):
        yield piece.encode()


@contextlib.contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Lock `folder` for this process, and remove unfinished files of killed processes, two levels deep.

    UserError, with process, host and time, if another process holds it. It is a lock of the operating system (flock),
    which ends with its process, however that ends, and applies to all hosts of a shared file system. If a file system
    has no such locks, the file in the folder is the lock; that of a process that has ended on this host is taken over.
    """
    folder = Path(folder)
    path = folder / LOCK
    try:
        descriptor = _take(path)
    except OSError as error:
        raise from_os_error(error, path) from error
    try:
        for depth in ("", "*/", "*/*/"):
            for left in folder.glob(f"{depth}.*{PARTIAL}"):
                left.unlink(missing_ok=True)
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: the next process to open it creates a new one
        os.close(descriptor)


def _take(path: Path) -> int:
    """The open lock file. UserError if another process holds it."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    while True:
        descriptor = os.open(path, flags, 0o666)
        holder = _holder(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            alive = error.errno in (errno.EWOULDBLOCK, errno.EAGAIN)
            if alive or not _has_ended(holder):
                os.close(descriptor)
                raise _held(holder, path, alive) from error
        try:
            same = os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
        except FileNotFoundError:
            same = False
        if same:
            break
        os.close(descriptor)  # its holder removed it after we opened it and before we locked it
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    content = {"process": os.getpid(), "host": socket.gethostname(), "since": now}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(content).encode(), 0)
    return descriptor


def _holder(descriptor: int) -> dict[str, Any]:
    """The content of a lock file; {} if it is still empty."""
    try:
        content = json.loads(os.pread(descriptor, 1000, 0))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _has_ended(holder: dict[str, Any]) -> bool:
    """Whether the process named in a lock file is known to have ended; known for this host only."""
    if not holder:
        return True
    number = holder.get("process")
    if holder.get("host") != socket.gethostname() or type(number) is not int or not 0 < number < 1 << 22:
        return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return number == os.getpid()


def _held(holder: dict[str, Any], path: Path, alive: bool) -> UserError:
    """alive: the operating system confirms the holder; otherwise only the lock file names it."""
    named = f"process {holder.get('process')} on {holder.get('host')}, since {holder.get('since')}"
    what = f"another process is writing into this folder: {named if holder else 'it has just started'}"
    gone = "" if alive else f"; if you are sure that it has ended, remove {path}"
    return UserError(what, where=path.parent, todo=f"wait until it ends, or choose another folder{gone}")


def open_regular(path: str | os.PathLike) -> BufferedReader:
    """Open a foreign file for reading: never a device or a pipe, which may never end.

    Raises UserError for a missing or unreadable file, a folder, a device, a pipe, a socket and an invalid name.
    """
    try:
        mode = os.stat(path).st_mode  # merely opening a device can have an effect
        if stat.S_ISREG(mode):
            file = open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")  # noqa: SIM115 (the caller's)
            mode = os.fstat(file.fileno()).st_mode  # of the opened file, even if the name now refers to another
            if stat.S_ISREG(mode):
                return file
            file.close()
    except OSError as error:
        raise from_os_error(error, path) from error
    except ValueError as error:  # NUL, or a character that file names cannot contain
        raise UserError(f"not a file name: {str(path)!a}", todo="correct the name") from error
    kind = "a folder" if stat.S_ISDIR(mode) else "a device, pipe or socket"
    raise UserError(f"{kind}, not a file", where=path, todo="give a regular file")


def below(folder: str | os.PathLike) -> list[Path]:
    """All files below a folder, and links to nothing, sorted. Links to folders are followed, unless to one that they
    are in. UserError for a folder that cannot be read."""

    def found(place: Path, above: frozenset[Path]) -> Iterator[Path]:
        with os.scandir(place) as entries:
            for entry in entries:
                path = place / entry.name
                kind = path if entry.is_symlink() else entry  # an entry knows its kind without asking the disk again
                if not kind.is_dir():
                    if kind.is_file() or not path.exists():
                        yield path
                elif (real := path.resolve()) not in above:
                    yield from found(path, above | {real})

    try:
        return sorted(found(Path(folder), frozenset({Path(folder).resolve()})))
    except OSError as error:
        raise from_os_error(error) from error


def check_there(content: bytes, path: object) -> None:
    """UserError for a file without content, and for one that only names its content, which Git LFS holds.

    content: the beginning of the file.
    """
    if not content:
        raise UserError("the file is empty", where=path, todo="fetch it again, or leave it out")
    if content.startswith(_LFS):
        raise UserError("a Git LFS pointer, not the file itself", where=path, todo="fetch it: git lfs pull")


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of a file. UserError as in `open_regular`."""
    with open_regular(path) as file:
        try:
            return file.read()
        except OSError as error:
            raise from_os_error(error, path) from error


def read_text(path: str | os.PathLike) -> str:
    """The content of a UTF-8 file, without byte-order mark. UserError as in `open_regular`, and for invalid UTF-8."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError("not UTF-8 text", where=path, todo="save it as UTF-8") from error


def read_table(path: str | os.PathLike, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(place for errors, row) of a CSV file with at least these columns; blanks around values are stripped.

    UserError for a missing or duplicate column, a truncated row, and a file that is empty or not such a table.
    """
    text = read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        lines = [(reader.line_num, line) for line in reader if line]
    except csv.Error as error:
        raise UserError(f"not a CSV file: {error}", where=path, todo="save it as CSV") from error
    check_there(text.lstrip()[:100].encode(), path)
    names = [name.strip() for name in lines[0][1]]
    if missing := [name for name in columns if name not in names]:
        todo = f"give a table with the columns {', '.join(columns)}"
        if len(names) == 1 and any(between in names[0] for between in ";\t"):
            todo = "separate the columns by commas"
        raise UserError(f"no column {', '.join(missing)}", where=path, todo=todo)
    if twice := next((name for name in columns if names.count(name) > 1), None):
        raise UserError(f"two columns are called {twice}", where=path, todo="keep one of them")
    for number_of_line, line in lines[1:]:
        where = f"{path}, line {number_of_line}"
        if len(line) != len(names):
            raise UserError(f"{len(line)} values for {len(names)} columns", where=where, todo="repair the row")
        yield where, {name: value.strip() for name, value in zip(names, line, strict=True)}


def number(row: Mapping[str, str], name: str, where: str) -> float:
    """A finite number in a row of a table. UserError for anything else."""
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{name} is {row[name]!r}, not a finite number", where=where, todo="correct it")
    return value


def read_json(path: str | os.PathLike) -> Any:
    """Read JSON in UTF-8, UTF-16 or UTF-32, with or without a byte-order mark; NaN and Infinity are numbers.

    UserError for a missing, unreadable, empty or malformed file, and for one beyond the limits above.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MOST_JSON:
            raise UserError(f"{size} bytes of JSON, the limit is {MOST_JSON}", where=path, todo="split the file")
        try:
            return parse_json(file.read(), path)
        except OSError as error:
            raise from_os_error(error, path) from error


def read_object(path: str | os.PathLike, *keys: str) -> dict[str, Any]:
    """Read JSON that elk_jax wrote: an object with these `keys`. UserError as in `read_json`, and for anything else."""
    content = read_json(path)
    lacking = [key for key in keys if key not in content] if isinstance(content, dict) else ["{...}"]
    if lacking:
        todo = "restore the file, or remove the folder of its stage to rerun that stage"
        raise UserError(f"damaged: it has no {lacking[0]}", where=path, todo=todo)
    return content


def parse_json(content: str | bytes, where: object) -> Any:
    """The value of a JSON text. UserError, with `where`, as in `read_json`."""
    head = content.lstrip()[:100]
    check_there(head.encode(errors="replace") if isinstance(head, str) else head, where)
    try:
        value = json.loads(content, parse_int=_whole, object_pairs_hook=_object)
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
    what = f"not usable JSON: objects and lists nested more than {MOST_NESTED} deep"
    return UserError(what, where=where, todo="use another file")


def _whole(digits: str) -> int:
    """A whole number in JSON; ValueError for one with more digits than any field holds."""
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError for a duplicate key, since readers differ in which of the values they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in found if keys.count(key) > 1)!a} occurs twice in an object")
    return found


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's content: 64 hex digits, as printed by `sha256sum`."""
    with open_regular(path) as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise from_os_error(error, path) from error


def fingerprint(folder: str | os.PathLike, pattern: str = "*") -> str:
    """Hash of the names and contents of the files in `folder` that match `pattern`: 16 hex digits; "" if none match.

    Hidden files do not count: they are locks, or were left by killed processes.
    """
    digest = hashlib.sha256()
    paths = sorted(path for path in Path(folder).glob(pattern) if path.is_file() and not path.name.startswith("."))
    for path in paths:
        digest.update(os.fsencode(path.name) + f" {sha256(path)} ".encode())
    return digest.hexdigest()[:16] if paths else ""
