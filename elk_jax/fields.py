"""Whether the values of a dataclass are of the types that its fields name."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any

from elk_jax.errors import UserError


def check_types(kind: type, values: Mapping[str, Any], where: str) -> None:
    """Raise UserError for the first of `values` that is of another type than its field of the dataclass `kind`.

    where: the section's name, such as `loader`. Values that are no fields are left to others.
    """
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        if name in hints and not fits(value, hints[name]):
            raise UserError(f"{name} is {value!r}", where=f"{where}.{name}", todo=f"give {described(hints[name])}")


def fits(value: Any, hint: Any) -> bool:
    """Whether `value` is of the type `hint`: a plain type, a tuple, a Literal or a union of those. A bool is no int."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return any(fits(value, one) for one in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and _fit(value, typing.get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def described(hint: Any) -> str:
    """A type in words: `int`, `((int, int), ...)`, `float or None`."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " or ".join(described(one) for one in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(repr(one) for one in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"({', '.join('...' if one is ... else described(one) for one in typing.get_args(hint))})"
    return "None" if hint is type(None) else hint.__name__


def _fit(values: tuple[Any, ...], hints: tuple[Any, ...]) -> bool:
    if hints[-1:] == (...,):
        return all(fits(value, hints[0]) for value in values)
    return len(values) == len(hints) and all(fits(value, hint) for value, hint in zip(values, hints))
