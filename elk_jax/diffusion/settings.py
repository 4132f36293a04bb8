"""A model's configuration from JSON written by diffusers or transformers."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from elk_jax.errors import UserError
from elk_jax.fields import described, fits

Config = TypeVar("Config")


def from_json(
    kind: type[Config],
    settings: Mapping[str, Any],
    defaults: Mapping[str, Any],
    accepted: Mapping[str, tuple[Any, ...]],
    where: str = "",
) -> Config:
    """The configuration `kind` (a dataclass) from `settings`: its fields by name, lists as tuples.

    defaults: of the library that wrote the settings, used for absent fields; for settings not listed, None or False.
    Every setting that is not a field must have its default, be private (_name) or have one of its `accepted` values (()
    accepts any), so that it requires nothing that the model does not do. Raises UserError for any other setting, and
    for a value that does not fit the type or range of its field.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    values: dict[str, Any] = {}
    for name, value in {**{k: v for k, v in defaults.items() if k in hints}, **settings}.items():
        if name in hints:
            values[name] = tuple(value) if isinstance(value, list) else value
            if not fits(values[name], hints[name]):
                todo = f"give {described(hints[name])}"
                raise UserError(f"{name} = {value!r} is not supported", where=where, todo=todo)
        elif not name.startswith("_") and accepted.get(name) != ():
            allowed = (*accepted.get(name, ()), *((defaults[name],) if name in defaults else ()))
            if value not in allowed and (name in defaults or not (value is None or value is False)):
                todo = "use a Stable Diffusion 1.x or 2.x model"
                raise UserError(f"{name} = {value!r} is not supported", where=where, todo=todo)
    try:
        return kind(**values)
    except UserError as error:
        if not where:
            raise
        raise error.within(where) from error
