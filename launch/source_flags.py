"""Flags of a data source, the same in all launch scripts; types, ranges, defaults and help come from SourceSpec."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import Annotated, Any

import command_line
from absl import flags

from elk_jax.data.sources.spec import OnError, SourceSpec

flags.disclaim_key_flags()  # they are listed in the help of the script that defines them

OF_TRAINING = ("train_where", "patients", "train_share", "train_share_of", "made_from")
"""Fields without a flag: they apply to training images only."""
_HELP = {field.name: field.metadata["help"] for field in dataclasses.fields(SourceSpec)}


@dataclass(frozen=True)
class SourceFlags:
    """The flags of one data source, by field of SourceSpec."""

    by_field: dict[str, flags.FlagHolder]

    def read(self) -> SourceSpec:
        """Their values. UserError, naming the flag, if the source is not given or a value is not possible."""
        if "spec" in self.by_field:
            command_line.required(self.by_field["spec"], "coco:FILE.json")
        values = {field: _value(flag) for field, flag in self.by_field.items()}
        try:
            return SourceSpec(**values)
        except command_line.UserError as error:
            raise command_line.UserError(
                error.what, where=f"--{self.by_field[error.where].name}", todo=error.todo
            ) from error


def define(name: str, what: str, prefix: str = "") -> SourceFlags:
    """Flags for a data source: --NAME is its location; the others are named after their fields, with the prefix.

    what: the images, for the help of --NAME. prefix: distinguishes the sources of a script that has several.
    """
    found = {"spec": flags.DEFINE_string(name, None, f"{what}: {_HELP['spec']}")}
    others = [field for field in _HELP if field not in ("spec", *OF_TRAINING)]
    return SourceFlags(found | {field: define_field(field, prefix) for field in others})


def define_decoding() -> SourceFlags:
    """The flags that control how image files are decoded, for files without annotations."""
    chosen = [field.name for field in dataclasses.fields(SourceSpec) if field.metadata.get("of_files")]
    return SourceFlags({field: define_field(field) for field in chosen})


def define_field(field: str, prefix: str = "") -> flags.FlagHolder:
    """The flag of one field of SourceSpec."""
    hint = typing.get_type_hints(SourceSpec, include_extras=True)[field]
    name, default, text = prefix + field, getattr(SourceSpec(), field), _HELP[field]
    kind, *limits = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    if kind is str:
        return flags.DEFINE_string(name, default, text)
    if kind is bool:
        return flags.DEFINE_bool(name, default, text)
    if kind in (int, float):
        low, high = (None if math.isinf(end) else end for end in (limits[0].low, limits[0].high))
        define_number = flags.DEFINE_integer if kind is int else flags.DEFINE_float
        return define_number(name, default, text, low, high)
    return command_line.define_numbers(name, list(default), text)


def define_on_error() -> flags.FlagHolder:
    return flags.DEFINE_enum(
        "on_error", "stop", typing.get_args(OnError), "What to do with an unreadable image: stop, or skip it."
    )


def _value(flag: flags.FlagHolder) -> Any:
    return tuple(flag.value) if isinstance(flag.value, list) else flag.value
