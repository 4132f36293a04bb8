"""Names, IDs and whole numbers in files."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from elk_jax.errors import UserError

_UNKNOWN = frozenset({"", "nan", "none", "null", "<na>", "n/a", "#n/a"})
"""Spellings of a missing value in tables, in upper or lower case."""
_NUMBERS = re.compile(r"((?:(?<![^\s_=(,;])[-+\u2212])?[0-9]+(?:\.[0-9]+)*)")
"""Numbers in a name, with the numbers that dots join to them. A sign follows a separator: slice_-3, but not slice-3."""

_JOINED = re.compile(r"((?<![^\s_=(,;])[-+\u2212]|=)?(?<![0-9.])[0-9]+\.([0-9]+)(?!\.?[0-9])")
"""Two numbers that a dot joins: what marks them as a decimal (a sign, or =), and the digits behind the dot."""


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


def natural_keys(names: Sequence[str], where: object = "") -> list[tuple]:
    """Sort keys of names by the numbers in them: 2 before 10, -3.5 before -1, and 1.25 before 1.5.

    Names that differ in case or in zeros around a number have the same key. Two numbers joined by a dot are a decimal,
    unless the names count behind the dot: with 1.1 to 1.9 also 1.10. Where this changes the order, one of the names
    must show it: 1.10, or a decimal such as 1.05, -1.5 or z=1.5; else UserError.
    """
    by_value, by_parts = ([_key(name, decimals) for name in names] for decimals in (True, False))
    order = lambda keys: sorted(range(len(names)), key=lambda position: keys[position])
    if order(by_value) == order(by_parts):
        return by_value
    joined = [found for name in names for found in _JOINED.findall(name)]
    behind = [digits for _, digits in joined]
    counted = any(len(one) == 1 for one in behind) and any(len(one) > 1 and one.endswith("0") for one in behind)
    is_value = any(mark or (len(digits) > 1 and digits.startswith("0")) for mark, digits in joined)
    if counted == is_value:
        one, other = next(
            (names[i], names[k]) for i, k in zip(order(by_value), order(by_parts)) if by_value[i] != by_value[k]
        )
        what = f"the order of the names is not clear: {one} comes before {other} by decimals, after it by numbers"
        raise UserError(what, where=where, todo="write all with the same number of decimals, as in 1.25 and 1.50")
    return by_parts if counted else by_value


def _key(name: str, decimals: bool) -> tuple:
    """decimals: two numbers joined by a dot are one."""
    key: list[tuple] = []
    for position, part in enumerate(_NUMBERS.split(name.casefold())):
        if position % 2 == 0:
            key += [(0, part)] if part else []
            continue
        digits = part.lstrip("-+\u2212")
        sign, parts = (-1 if part[0] in "-\u2212" else 1), digits.split(".")
        whole = decimals and len(parts) == 2
        key.append((1, sign * Decimal(digits)) if whole else (1, *(sign * int(one) for one in parts)))
    return tuple(key)


def whole_number(value: Any) -> int | None:
    """A whole number from a file; tables with gaps write it as 3.0. None for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def is_plain(text: str) -> bool:
    """Whether a text has neither control characters nor lone surrogates, so that it can be written and hashed."""
    return text.isprintable() or not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text)
