"""Names, IDs and whole numbers in files."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

from elk_jax.errors import UserError

_UNKNOWN = frozenset({"", "nan", "none", "null", "<na>", "n/a", "#n/a"})
"""Spellings of a missing value in tables, in upper or lower case."""


def checked_text(value: Any, name: str, where: object) -> str:
    """A name or ID from a file as text, without surrounding blanks; "" for none (null, NaN, or a spelling of these).

    A whole number becomes text without ".0". UserError for anything else. name: what it is, for the error.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and abs(value) < 1 << 53:  # beyond this, neighbouring integers share a float
        value = value if (number := whole_number(value)) is None else number
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{name} is {value!r}", where=where, todo="write a text or a whole number")
    text = unicodedata.normalize("NFC", str(value)).strip()
    if not is_plain(text):
        raise UserError(f"{name} is {text!r}, which has unprintable characters", where=where, todo="write plain text")
    return "" if text.casefold() in _UNKNOWN else text


def look(text: str) -> str:
    """The visible part of a name: the text without case, blanks and invisible characters."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in text if not c.isspace() and unicodedata.category(c) != "Cf")


def whole_number(value: Any) -> int | None:
    """A whole number from a file; tables with gaps write it as 3.0. None for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def is_plain(text: str) -> bool:
    """Whether a text has neither control characters nor lone surrogates, so that it can be written and hashed."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)
