"""From a configuration's sections to the dataclasses that they describe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from elk_jax.errors import UserError
from elk_jax.fields import check_types


def build(kind: type, settings: Mapping[str, Any], where: str) -> Any:
    """A dataclass from a mapping; lists become tuples. UserError for an unknown field and for a value of another type.

    where: the section's name.
    """
    known = {field.name for field in dataclasses.fields(kind)}
    values = as_dict(settings)
    unknown = sorted(set(values) - known)
    if unknown:
        raise UserError(f"no setting '{unknown[0]}'", where=where, todo=f"there are {', '.join(sorted(known))}")
    values = {key: _as_tuples(value) for key, value in values.items()}
    check_types(kind, values, where)
    return kind(**values)


def named(where: str, check: Callable[[Any], Any], value: Any) -> None:
    """`check(value)`, whose UserError says where the value stands."""
    try:
        check(value)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def as_dict(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A plain dict, of a ConfigDict too."""
    return settings.to_dict() if hasattr(settings, "to_dict") else dict(settings)


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value
