"""Types of settings, as their dataclass names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from elk_jax.errors import UserError
from elk_jax.fields import check_types


@dataclass
class Settings:
    count: int = 1
    rate: float = 0.5
    name: str = ""
    on: bool = False
    limit: float | None = None
    side: Literal["first", "last"] = "last"
    range: tuple[float, float] = (0.0, 1.0)
    sizes: tuple[int, ...] = ()
    pairs: tuple[tuple[str, float], ...] = ()


@pytest.mark.parametrize(
    "values",
    [
        {"count": -1, "rate": 2, "name": "a", "on": True, "limit": None, "side": "first"},
        {"limit": 1, "range": (0, 1.5), "sizes": (), "pairs": (("a", 1), ("b", 0.5))},
        {"sizes": (1, 2, 3), "something else": object()},
    ],
)
def test_values_of_their_types(values):
    check_types(Settings, values, "section")


@pytest.mark.parametrize(
    "name, value, wanted",
    [
        ("count", 1.0, "int"),
        ("count", True, "int"),
        ("rate", "half", "float"),
        ("rate", False, "float"),
        ("name", None, "str"),
        ("on", 1, "bool"),
        ("limit", "x", "float or None"),
        ("side", "middle", "'first' or 'last'"),
        ("range", (1.0,), "(float, float)"),
        ("range", 1.0, "(float, float)"),
        ("sizes", (1, "2"), "(int, ...)"),
        ("sizes", 3, "(int, ...)"),
        ("pairs", ("a", 1.0), "((str, float), ...)"),
        ("pairs", (("a",),), "((str, float), ...)"),
    ],
)
def test_another_type_is_named(name, value, wanted):
    with pytest.raises(UserError) as error:
        check_types(Settings, {name: value}, "section")
    assert str(error.value) == f"{name} is {value!r} (section.{name}). give {wanted}"
