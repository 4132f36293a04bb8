"""Types, ranges and sections of settings, as their dataclass names them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from ml_collections import ConfigDict

from elk_jax.errors import UserError
from elk_jax.fields import (
    ABOVE_ZERO,
    BELOW_ONE,
    NOT_EMPTY,
    SHARE,
    AtLeast,
    Between,
    ByName,
    OneOf,
    build,
    check,
    check_types,
)


@dataclass(frozen=True)
class Cosine:
    name: Literal["cosine"] = "cosine"
    base: Annotated[float, ABOVE_ZERO] = 1e-3


@dataclass(frozen=True)
class Constant:
    name: Literal["constant"] = "constant"
    base: Annotated[float, ABOVE_ZERO] = 1e-3
    warmup: int = 0


@dataclass(frozen=True)
class Inner:
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        check(self)
        if self.low > self.high:
            raise UserError(f"low is {self.low}", where="low", todo="give at most high")


@dataclass(frozen=True)
class Named:
    name: Literal["named"] = "named"


def named() -> dict[str, type]:
    return {"named": Named}


@dataclass(frozen=True)
class Settings:
    count: int = 1
    steps: Annotated[int, AtLeast(1)] = 1
    bits: Annotated[int, Between(0, 16)] = 0
    depth: Annotated[int, OneOf((18, 34))] = 18
    decay: Annotated[float, BELOW_ONE] = 0.0
    share: Annotated[float, SHARE] | None = None
    rate: float = 0.5
    name: str = ""
    on: bool = False
    side: Literal["first", "last"] = "last"
    range: tuple[float, float] = (0.0, 1.0)
    sizes: Annotated[tuple[Annotated[float, ABOVE_ZERO], ...], NOT_EMPTY] = (1.0,)
    pairs: tuple[tuple[str, float], ...] = ()
    inner: Inner = field(default_factory=Inner)
    schedule: Cosine | Constant = field(default_factory=Cosine)
    model: Annotated[Any, ByName(named)] = field(default_factory=Named)


@pytest.mark.parametrize(
    "values",
    [
        {"count": -1, "rate": 2, "name": "a", "on": True, "share": None, "side": "first"},
        {"share": 1, "range": (0, 1.5), "sizes": (2,), "pairs": (("a", 1), ("b", 0.5))},
        {"steps": 1, "bits": 16, "decay": 0.999, "share": 0.0, "something else": object()},
    ],
)
def test_values_of_their_types(values):
    check_types(Settings, values, "section")


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("count", 1.0, "int"),
        ("count", True, "int"),
        ("steps", 0, "int of at least 1"),
        ("bits", 17, "int from 0 to 16"),
        ("depth", 20, "one of 18, 34"),
        ("decay", 1.0, "float from 0 below 1"),
        ("decay", float("nan"), "float from 0 below 1"),
        ("share", 1.5, "float from 0 to 1 or None"),
        ("share", "x", "float from 0 to 1 or None"),
        ("rate", "half", "float"),
        ("rate", False, "float"),
        ("rate", float("inf"), "float"),
        ("name", None, "str"),
        ("on", 1, "bool"),
        ("side", "middle", "'first' or 'last'"),
        ("range", (1.0,), "(float, float)"),
        ("range", 1.0, "(float, float)"),
        ("sizes", (1, "2"), "(float above 0, ...)"),
        ("sizes", (1.0, 0.0), "(float above 0, ...)"),
        ("sizes", (), "at least one"),
        ("pairs", ("a", 1.0), "((str, float), ...)"),
        ("pairs", (("a",),), "((str, float), ...)"),
        ("schedule", 3, "Cosine or Constant"),
        ("model", 3, "named"),
    ],
)
def test_an_impossible_value_is_named(name, value, words):
    with pytest.raises(UserError) as error:
        build(Settings, {name: value}, "config.section")
    assert error.value.where == f"config.section.{name}"
    assert repr(value) in error.value.what and words in error.value.todo


def test_sections_are_built_with_lists_as_tuples():
    mapping = ConfigDict(
        {
            "sizes": [1, 2.5],
            "pairs": [["a", 1.0]],
            "inner": {"low": 0.5},
            "schedule": {"name": "constant", "warmup": 3},
            "model": {"name": "named"},
        }
    )
    built = build(Settings, mapping, "config")
    assert built.sizes == (1, 2.5) and built.pairs == (("a", 1.0),)
    assert built.inner == Inner(0.5) and built.schedule == Constant(warmup=3) and built.model == Named()


@pytest.mark.parametrize(
    "mapping, where",
    [
        ({"inner": {"lwo": 1.0}}, "config.inner.lwo"),
        ({"inner": {"low": 2.0}}, "config.inner.low"),
        ({"inner": {"low": "x"}}, "config.inner.low"),
        ({"schedule": {"name": "linear"}}, "config.schedule.name"),
        ({"schedule": {"base": 1.0}}, "config.schedule.name"),
        ({"schedule": {"name": "cosine", "warmup": 3}}, "config.schedule.warmup"),
        ({"schedule": {"name": "cosine", "base": 0.0}}, "config.schedule.base"),
        ({"model": {"name": "other"}}, "config.model.name"),
        ({"stpes": 1}, "config.stpes"),
    ],
)
def test_an_impossible_section_is_named(mapping, where):
    with pytest.raises(UserError) as error:
        build(Settings, mapping, "config")
    assert error.value.where == where


def test_a_missing_field_is_named():
    @dataclass(frozen=True)
    class Needy:
        base: float

    with pytest.raises(UserError) as error:
        build(Needy, {}, "config.schedule")
    assert error.value.where == "config.schedule.base" and "float" in error.value.todo


def test_settings_that_are_built_by_hand_are_checked_as_well():
    with pytest.raises(UserError) as error:
        Inner(low=2.0, high=1.0)
    assert error.value.where == "low"
