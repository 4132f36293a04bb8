"""Settings as dataclasses: the fields declare types, ranges and choices, and `build` checks a mapping against them.

    @dataclass(frozen=True)
    class Settings:
        steps: Annotated[int, AtLeast(1)] = 300
        flip: Annotated[float, SHARE] = 0.5
        norm: Literal["gn", "none"] = "none"
        sizes: tuple[Annotated[float, ABOVE_ZERO], ...] = ()

Rules that involve several fields (one divides another, for example) are checked by `__post_init__`, which raises a
UserError with the field's name as `where`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from elk_jax.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; `above`, `below`: excluding that end."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def holds(self, value: Any) -> bool:
        finite = isinstance(value, numbers.Real) and math.isfinite(value)  # NumPy numbers too
        if not finite:
            return value is None  # an optional number; its type says whether it may be absent
        low = value > self.low if self.above else value >= self.low
        return low and (value < self.high if self.below else value <= self.high)

    def takes(self, value: Any) -> bool:
        """Whether an argument is a finite number in the range. NumPy numbers count; a bool and None do not."""
        return not isinstance(value, bool | None) and self.holds(value)

    def __str__(self) -> str:
        low = "" if self.low == -math.inf else f"{'above' if self.above else 'from'} {_digits(self.low)}"
        high = "" if self.high == math.inf else f"{'below' if self.below else 'up to'} {_digits(self.high)}"
        if not high:
            return low.replace("from", "of at least")
        return f"{low} {high}".replace("up to", "to") if low else high


def _digits(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def AtLeast(low: float) -> Range:
    return Range(low)


def Between(low: float, high: float) -> Range:
    return Range(low, high)


SHARE = Range(0, 1)
"""A share or a probability."""
BELOW_ONE = Range(0, 1, below=True)
ABOVE_ZERO = Range(0, above=True)
EPSILON = Range(0, 1, above=True)
"""The epsilon that a norm adds to a variance."""
POSITIVE, NOT_NEGATIVE = Range(0, 1e6, above=True), Range(0, 1e6)
"""A count in a network: larger values come from damaged files, and can exceed JAX's integers."""
SIDE = Range(1, 8192)
"""Pixels along one side of an image."""


def impossible(settings: Any, name: str, todo: str) -> UserError:
    """The error for a dataclass whose field `name` does not fit the others."""
    return UserError(f"{name} is {getattr(settings, name)!r}", where=name, todo=todo)


@dataclass(frozen=True)
class NotEmpty:
    """A tuple with at least one entry."""

    def holds(self, value: Any) -> bool:
        return len(value) > 0

    def __str__(self) -> str:
        return "with at least one entry"


NOT_EMPTY = NotEmpty()


@dataclass(frozen=True)
class OneOf:
    """One of the values listed in a table of another module: `OneOf(tuple(TABLE))`."""

    values: tuple[Any, ...]

    def holds(self, value: Any) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.values))}"


@dataclass(frozen=True)
class ByName:
    """A section whose field `name` selects its dataclass: `Annotated[Any, ByName(kinds)]`.

    kinds: a module-level function that returns the dataclasses by name; it is called when a section is built.
    """

    kinds: Callable[[], Mapping[str, type]]

    def holds(self, value: Any) -> bool:
        return isinstance(value, tuple(self.kinds().values()))

    def __str__(self) -> str:
        return f"one of {', '.join(self.kinds())}"


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """The types of the fields of a dataclass; not to be changed. Cached: a sweep builds the same classes in each of its
    runs, and Python compiles every annotation anew."""
    return typing.get_type_hints(kind, include_extras=True)


def build(kind: type[T], settings: Mapping[str, Any], where: str = "", *, complete: bool = False) -> T:
    """A dataclass from a mapping (a ConfigDict, or its JSON form); lists become tuples.

    Fields that are dataclasses, unions of dataclasses distinguished by their field `name`, or tuples and mappings of
    dataclasses, are built as well. where: the section's name, such as `config.detector`; "" for the outermost.
    complete: fields with a default must be given too, here and in every section, as in a file that was written in full.
    UserError for an unknown or missing field, and for a value of the wrong type or outside its range; its `where` is
    the dotted name of the field.
    """
    values = as_dict(settings, where)
    hints = _hints(kind)  # type: ignore[arg-type]
    wanted = [field for field in dataclasses.fields(kind) if field.init]  # type: ignore[arg-type]
    known = {field.name for field in wanted}
    unknown = sorted(map(str, set(values) - known))
    if unknown:
        todo = f"choose one of {', '.join(sorted(known))}"
        raise UserError(f"no setting '{unknown[0]}'", where=_dotted(where, unknown[0]), todo=todo)
    for name, value in values.items():
        values[name] = _built(hints[name], value, _dotted(where, name), complete)
    check_types(kind, values, where)
    for field in wanted:
        needed = complete or field.default is field.default_factory is dataclasses.MISSING
        if field.name not in values and needed:
            todo = f"give {described(hints[field.name])}"
            raise UserError(f"{field.name} is missing", where=_dotted(where, field.name), todo=todo)
    try:
        return kind(**values)
    except UserError as error:
        raise (error.within(where) if where else error) from error


def build_named(kinds: Mapping[str, type], settings: Mapping[str, Any], where: str, *, complete: bool = False) -> Any:
    """Like `build`, for the one of `kinds` that the field `name` selects. UserError for an unknown name."""
    return build(_named(kinds, settings, where), settings, where, complete=complete)


def check(settings: Any) -> None:
    """Check the fields, for a `__post_init__` with checks of its own. UserError for the first impossible field."""
    check_types(type(settings), {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)})


class Checked:
    """Base of settings that are also built by hand: UserError for the first impossible field."""

    def __post_init__(self) -> None:
        check(self)


def check_types(kind: type, values: Mapping[str, Any], where: str = "") -> None:
    """UserError for the first of `values` that does not have the type or range of its field of `kind`."""
    hints = _hints(kind)
    for name, value in values.items():
        if name in hints and not fits(value, hints[name]):
            raise UserError(f"{name} is {value!r}", where=_dotted(where, name), todo=f"give {described(hints[name])}")


def fits(value: Any, hint: Any) -> bool:
    """Whether `value` has the type `hint`: a plain type, a tuple, a Literal, a union, or one of these Annotated.

    A bool is not an int, and a float is finite.
    """
    kind = typing.get_origin(hint)
    if kind is Annotated:
        inner, *limits = typing.get_args(hint)
        return fits(value, inner) and all(limit.holds(value) for limit in limits)
    if kind is types.UnionType or kind is typing.Union:
        return any(fits(value, one) for one in typing.get_args(hint))
    if kind is typing.Literal:
        return any(value == one and type(value) is type(one) for one in typing.get_args(hint))
    if kind is tuple:
        return isinstance(value, tuple) and _fit(value, typing.get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is Any:
        return True
    if kind is Mapping:
        one, other = typing.get_args(hint)
        return isinstance(value, Mapping) and all(fits(k, one) and fits(v, other) for k, v in value.items())
    return isinstance(value, kind or hint) and not (hint is int and isinstance(value, bool))


def described(hint: Any) -> str:
    """A type in words: `int of at least 1`, `((int, int), ...)`, `float or None`."""
    kind = typing.get_origin(hint)
    if kind is Annotated:
        inner, *limits = typing.get_args(hint)
        choices = [str(limit) for limit in limits if isinstance(limit, OneOf | ByName)]
        return choices[0] if choices else " ".join([described(inner), *map(str, limits)])
    if kind is types.UnionType or kind is typing.Union:
        return " or ".join(described(one) for one in typing.get_args(hint))
    if kind is typing.Literal:
        return " or ".join(repr(one) for one in typing.get_args(hint))
    if kind is tuple:
        return f"({', '.join('...' if one is ... else described(one) for one in typing.get_args(hint))})"
    if kind is Mapping:
        return "a section of settings"
    return "None" if hint is type(None) else hint.__name__


def as_dict(settings: Any, where: str = "") -> dict[str, Any]:
    """A mapping or ConfigDict as a plain dict; its sections stay as they are. UserError for anything else."""
    if not _is_section(settings):
        raise UserError(f"{settings!r} is not a section of settings", where=where)
    return dict(settings.items())


def _is_section(value: Any) -> bool:
    """Whether a value is a mapping, or a ConfigDict, which is not one."""
    return isinstance(value, Mapping) or hasattr(value, "items")


def _dotted(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _built(hint: Any, value: Any, where: str, complete: bool) -> Any:
    """A field's value from plain data: sections become dataclasses, lists tuples; other types stay as they are."""
    section = _section(hint, value, where)
    if section is not None:
        return build(section, value, where, complete=complete)
    inner = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    kind, arguments = typing.get_origin(inner), typing.get_args(inner)
    if kind is tuple and arguments[1:] == (...,) and isinstance(value, list | tuple):
        return tuple(_built(arguments[0], one, f"{where}[{index}]", complete) for index, one in enumerate(value))
    if kind is Mapping and _is_section(value):
        return {name: _built(arguments[1], one, _dotted(where, str(name)), complete) for name, one in value.items()}
    return _tuples(value)


def _section(hint: Any, value: Any, where: str) -> type | None:
    """The dataclass that a field's value describes; None for a plain value."""
    if not _is_section(value):
        return None
    if typing.get_origin(hint) is Annotated:
        hint, *limits = typing.get_args(hint)
        for limit in limits:
            if isinstance(limit, ByName):
                return _named(limit.kinds(), value, where)
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    sections: list[type] = [kind for kind in kinds if dataclasses.is_dataclass(kind)]  # type: ignore[misc]
    if not sections:
        return None
    if len(sections) == 1:
        return sections[0]
    return _named({typing.get_args(typing.get_type_hints(k)["name"])[0]: k for k in sections}, value, where)


def _named(kinds: Mapping[str, type], value: Any, where: str) -> type:
    name = value.get("name")
    if not isinstance(name, str) or name not in kinds:
        raise UserError(f"name is {name!r}", where=f"{where}.name", todo=f"choose one of {', '.join(kinds)}")
    return kinds[name]


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list | tuple) else value


def _fit(values: tuple[Any, ...], hints: tuple[Any, ...]) -> bool:
    if hints[-1:] == (...,):
        return all(fits(value, hints[0]) for value in values)
    return len(values) == len(hints) and all(fits(value, hint) for value, hint in zip(values, hints))
