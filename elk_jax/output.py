"""What the user reads in a terminal or a log: printing never fails, and foreign text is shown as text."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import unicodedata
from typing import IO, Any

import rich.console
from rich.text import Text

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories of characters that move the cursor, turn the direction of writing, or cannot be encoded."""


def visible(text: str, but: str = "") -> str:
    """`text` with control characters as they are escaped in Python: \\x1b, \\n, \\u202e. but: those that stay."""
    if text.isprintable():
        return text
    hidden = lambda char: char not in but and unicodedata.category(char) in _HIDDEN
    return "".join(char.encode("unicode_escape").decode() if hidden(char) else char for char in text)


class Console(rich.console.Console):
    """Prints strings as they are, without Rich's markup, and visibly: the names in them are somebody else's."""

    def __init__(self, **settings: Any):
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **settings})

    def render_str(self, text: str, **settings: Any) -> Text:  # type: ignore[override]
        return super().render_str(visible(text), **settings)


class _Lasting(io.FileIO):
    """A stream whose reader may leave, or whose disk may be full: the work continues, and its output is lost."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except BlockingIOError:
            raise
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(content)


def prepare() -> None:
    """Make the standard streams of a script safe: closed ones, readers that leave, and any character.

    Characters that the encoding of a stream lacks are escaped.
    """
    for number in range(3):  # a file that is opened later must not become the standard output
        with contextlib.suppress(OSError):
            if _is_closed(number):
                os.open(os.devnull, os.O_RDWR)
    sys.stdout = _lasting(sys.stdout, sys.__stdout__)
    sys.stderr = _lasting(sys.stderr, sys.__stderr__)


def _is_closed(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return True
    return False


def _lasting(stream: IO[str] | None, original: IO[str] | None) -> Any:
    """`stream`, made lasting where it is the process's own; one that somebody put in its place stays."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if stream is not original or not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    raw = _Lasting(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=True,
        write_through=stream.write_through,
    )
