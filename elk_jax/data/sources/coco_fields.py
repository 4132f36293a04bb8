"""Fields of the entries of a COCO file, each read into its type, with a UserError for any other."""

from __future__ import annotations

import math
from typing import Any

from elk_jax.errors import UserError
from elk_jax.images.names import checked_text, is_plain, whole_number


def given(entry: dict, name: str, where: object) -> Any:
    if name not in entry:
        raise UserError(f"the field '{name}' is missing", where=where, todo="add it")
    return entry[name]


def text_id(entry: dict, name: str, where: object) -> str:
    """An id as text: "1" and 1 are the same."""
    value = checked_text(given(entry, name, where), f"'{name}'", where)
    if not value:
        raise UserError(f"'{name}' is {entry[name]!r}", where=where, todo="write a text or a whole number")
    return value


def whole(entry: dict, name: str, where: object) -> int:
    value = whole_number(given(entry, name, where))
    if value is None:
        raise UserError(f"'{name}' is {entry[name]!r}, not a whole number", where=where, todo="correct it")
    return value


def flag(entry: dict, name: str, where: object) -> bool:
    """A field that is 0 or 1; null counts as missing."""
    value = entry.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    if whole_number(value) not in (0, 1):
        todo = "write 1 for a box that is neither lesion nor background, else 0, or omit the field"
        raise UserError(f"{name} is {value!r}", where=where, todo=todo)
    return bool(value)


def file_name_of(image: dict, where: object) -> str:
    name = given(image, "file_name", where)
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"file_name is {name!r}", where=where, todo="name the image file")
    if not is_plain(name):
        raise UserError(f"file_name is {name!r}, which is not a valid file name", where=where, todo="correct it")
    return name


def without_nan(value: Any, where: object) -> Any:
    """The same content with None for NaN, which tables exported to JSON contain. UserError for an infinite number."""
    if isinstance(value, dict):
        return {key: without_nan(inner, where) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner, where) for inner in value]
    if isinstance(value, float) and math.isinf(value):
        raise UserError("a field is infinite", where=where, todo="write null where the value is unknown")
    return None if isinstance(value, float) and math.isnan(value) else value
