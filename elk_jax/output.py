"""Output to terminals and logs: printing never fails, and foreign text cannot act as control characters."""

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
"""Unicode categories of characters that move the cursor, change the writing direction, or cannot be encoded."""


def visible(text: str, but: str = "") -> str:
    """`text` with control characters escaped as in Python: \\x1b, \\n, \\u202e. but: characters to leave."""
    if text.isprintable():
        return text
    hidden = lambda char: char not in but and unicodedata.category(char) in _HIDDEN
    return "".join(char.encode("unicode_escape").decode() if hidden(char) else char for char in text)


class Console(rich.console.Console):
    """Prints strings literally, without Rich's markup, and makes control characters visible: names are foreign text."""

    def __init__(self, **settings: Any):
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **settings})

    def render_str(self, text: str, **settings: Any) -> Text:  # type: ignore[override]
        return super().render_str(visible(text), **settings)


class _Lasting(io.FileIO):
    """A stream whose reader may close it, or whose disk may be full: the work continues and the output is lost."""

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
    """Make the standard streams of a script safe against closed streams, readers that close them, and any character.

    Characters that the encoding of a stream lacks are escaped.
    """
    for number in range(3):  # a file opened later must not become the standard output
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
    """`stream`, made lasting if it is the process's own; a replaced stream stays."""
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
