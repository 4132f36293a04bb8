"""The settings of a sweep: rows of a list, or the product of the values of `--over`.

  --over=detector.steps=100,200 --over=detector.ema_decay=0.9,0.99      four settings
  --over="stages.real.train_on=('a',),('a','b')"                        commas in brackets do not separate values
  --over="data.real.spec='phantom:size=64,count=24','coco:x.json'"      quote strings that contain commas or brackets

A list is a Python file that defines `ROWS`, a tuple of `Row`, or `get_rows(variant)`, which returns one for
FILE.py:VARIANT; or a JSON file with a list of objects of the same fields.
Rows with a number on an axis are also plotted over it, and so are those of a product over one key with numeric values.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from elk_jax import fields, files
from elk_jax.errors import UserError

OPENING, CLOSING, QUOTES = "([{", ")]}", "'\""
LONGEST = 80
"""Longest name of a setting's folder, in characters."""


@dataclass(frozen=True)
class Row:
    """One row of a table of settings, as plain data.

    name: in the table. overrides: dotted key of the configuration -> value. config: FILE[:VARIANT], the configuration
    that it changes instead of that of the sweep. published: metric -> value in a paper, shown next to the row's own; a
    metric is named as in the table, such as "mean_sensitivity", or "MODEL/mean_sensitivity" if it belongs to one model.
    against: the name of the row that it is compared with unless `--against` is given; "" for the first row that is run.
    note: printed with the row. not_run: why the row is not run here, such as "needs a GPU"; only its published values
    are printed then.
    """

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    against: str = ""
    not_run: str = ""
    at: float | None = None
    axis: str = ""
    line: str = ""
    config: str = ""

    def published_of(self, model: str) -> Mapping[str, float]:
        """The published values of a model by metric, and those that do not name a model."""
        own = {key.removeprefix(f"{model}/"): value for key, value in self.published.items() if model}
        return {**self.published, **own}

    @property
    def folder(self) -> str:
        """The name of the row's folder: its own name, with a hash if that is not a valid folder name."""
        plain = re.sub(r"[^A-Za-z0-9.=,_+-]+", "_", self.name)
        if plain == self.name and len(plain) <= LONGEST and not plain.startswith((".", "-")):
            return plain
        digest = hashlib.sha256(self.name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        return f"{plain[: LONGEST - 9].strip('.-')}-{digest}"


Values = Mapping[tuple[str, str], Any]
"""(key, text of a value) -> the value, for every `--over`."""


@dataclass(frozen=True)
class Over:
    """One `--over`: a key of the configuration and the texts of its values."""

    key: str
    texts: tuple[str, ...]

    @property
    def flag(self) -> str:
        return f"--over={self.key}"


def read_over(text: str) -> Over:
    """KEY=VALUE,VALUE,... as an `Over`. UserError for a missing key or value, a repeated value, and unbalanced
    brackets."""
    key, equals, values = text.partition("=")
    where = f"--over={text}"
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", key):
        raise UserError("not KEY=VALUE,VALUE", where=where, todo="write, for example, --over=detector.steps=100,200")
    texts = tuple(_unquoted(part.strip(), where) for part in _split(values, where))
    again = next((value for position, value in enumerate(texts) if value in texts[:position]), None)
    if again is not None:
        raise UserError(f"the value {again} occurs twice", where=where, todo="give each value once")
    return Over(key, texts)


def product(overs: Sequence[Over], values: Values) -> tuple[Row, ...]:
    """A row for every combination; the last key changes fastest.

    Rows are named KEY=VALUE, with as many of the last parts of each key as are needed to distinguish it. UserError for
    a repeated key, and for two strings with the same value.
    """
    keys = [over.key for over in overs]
    for over in overs:
        if keys.count(over.key) > 1:
            todo = f"write --over={over.key}=" + ",".join(t for o in overs if o.key == over.key for t in o.texts)
            raise UserError("the key occurs twice", where=over.flag, todo=todo)
    short, axis = _short(keys), _axis(overs, values)
    rows = []
    for texts in itertools.product(*(over.texts for over in overs)):
        named = {key: f"{short[key]}={text}" for key, text in zip(keys, texts)}
        row = Row(",".join(named.values()), {key: values[key, text] for key, text in zip(keys, texts)})
        if axis:
            line = ",".join(text for key, text in named.items() if key != axis)
            row = replace(row, at=float(row.overrides[axis]), axis=short[axis], line=line)
        rows.append(row)
    return checked(rows, "--over")


def _axis(overs: Sequence[Over], values: Values) -> str:
    """The only key with at least two values that are all numbers; "" if there is none or several."""
    of_numbers = [
        over.key
        for over in overs
        if len(over.texts) > 1 and all(fields.Range().takes(values[over.key, text]) for text in over.texts)
    ]
    return of_numbers[0] if len(of_numbers) == 1 else ""


def read_rows(path: Path, variant: str = "") -> tuple[Row, ...]:
    """The rows of a list file, Python or JSON. variant: of a Python file with `get_rows`. UserError, with the file and
    the row, for anything else."""
    if path.suffix == ".json" and variant:
        raise UserError("a JSON file has no variants", where=f"{path}:{variant}", todo=f"give {path}")
    if path.suffix == ".json":
        entries = files.read_json(path)
        if not isinstance(entries, list):
            raise UserError("not a list of rows", where=path, todo='write [{"name": ..., "overrides": {...}}, ...]')
        rows = [_row(entry, f"{path}, row {number}") for number, entry in enumerate(entries, 1)]
    else:
        rows = _rows_of_python(path, variant)
    return checked(rows, str(path))


def checked(rows: Sequence[Row], where: str) -> tuple[Row, ...]:
    """The rows. UserError if none is run, if two have the same name or the same values, and if one is compared with a
    row that is not run."""
    running = [row for row in rows if not row.not_run]
    if not running:
        raise UserError("no setting to run", where=where, todo="give at least one row without not_run")
    names = [row.name for row in rows]
    for row in rows:
        if names.count(row.name) > 1:
            raise UserError(f"two rows have the name '{row.name}'", where=where, todo="give each row its own name")
    for row in running:
        if row.against and row.against not in [one.name for one in running]:
            what = f"'{row.name}' is compared with '{row.against}', which is not run"
            raise UserError(what, where=where, todo="name a row without not_run")
    for row, other in itertools.combinations(running, 2):
        if row.config == other.config and _normal(row.overrides) == _normal(other.overrides):
            what = f"'{row.name}' and '{other.name}' are the same setting"
            raise UserError(what, where=where, todo="leave one of them out")
    return tuple(rows)


def baselines(rows: Sequence[Row], against: str, values: Values) -> dict[str, str]:
    """Name of each row -> name of the row that it is compared with, for all rows except these baselines.

    against: the name of a row; or KEY=VALUE,... of a product: each row is compared with the one that has these values
    and all others as its own; "" for the row that each names itself, else the first that is run. values: as in
    `product`. UserError if it names no row.
    """
    running = [row for row in rows if not row.not_run]
    if not against:
        found = {row.name: row.against or running[0].name for row in running}
        return {name: other for name, other in found.items() if name != other}
    if any(row.name == against for row in running):
        return {row.name: against for row in running if row.name != against}
    wanted = _assigned(against, values)
    of = {repr(_normal(row.overrides)): row.name for row in running}
    found = {row.name: of.get(repr(_normal({**row.overrides, **wanted})), "") for row in running}
    if not wanted or "" in found.values():
        todo = f"name one of {'; '.join(of.values())}"
        raise UserError(f"no setting '{against}'", where=f"--against={against}", todo=todo)
    return {name: other for name, other in found.items() if name != other}


def _assigned(text: str, values: Values) -> dict[str, Any]:
    """Key -> value, for KEY=VALUE,... of the values of `--over`, written as there; {} for anything else."""
    short = _short(list({key: None for key, _ in values}))
    known = {f"{name}={value}": (key, value) for key, value in values for name in (key, short[key])}
    where = f"--against={text}"
    pairs = [part.strip().partition("=") for part in _split(text, where)]
    parts = [f"{name}={_unquoted(value, where)}" for name, _, value in pairs]
    return {known[part][0]: values[known[part]] for part in parts} if all(part in known for part in parts) else {}


def _normal(overrides: Mapping[str, Any]) -> dict[str, str]:
    return {key: repr(value) for key, value in sorted(overrides.items())}


def _short(keys: Sequence[str]) -> dict[str, str]:
    """Key -> the fewest of its last parts that no other key ends with."""
    found = {}
    for key in keys:
        parts = key.split(".")
        tails = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        others = [f".{other}" for other in keys if other != key]
        found[key] = next((tail for tail in tails if not any(o.endswith(f".{tail}") for o in others)), key)
    return found


# ---- Texts -----------------------------------------------------------------------------------------------------------


def _split(text: str, where: str) -> list[str]:
    """The parts between the commas outside brackets and quotes."""
    parts, open_brackets, quote = [""], "", ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in QUOTES:
            quote = char
        elif char in OPENING:
            open_brackets += char
        elif char in CLOSING:
            if not open_brackets or OPENING.index(open_brackets[-1]) != CLOSING.index(char):
                raise UserError(
                    f"'{char}' has no opening bracket", where=where, todo="quote a string that contains brackets"
                )
            open_brackets = open_brackets[:-1]
        if char == "," and not open_brackets and not quote:
            parts.append("")
        else:
            parts[-1] += char
    if open_brackets or quote:
        left = open_brackets[-1:] or quote
        raise UserError(f"{left} is not closed", where=where, todo="close it, or quote a string that contains it")
    if not all(part.strip() for part in parts):
        raise UserError("a value is empty", where=where, todo="write '' for an empty string")
    return parts


def _unquoted(text: str, where: str) -> str:
    if text[:1] not in QUOTES or not text[:1]:
        return text
    try:
        return str(ast.literal_eval(text))
    except (ValueError, SyntaxError) as error:
        raise UserError(f"{text} is not a quoted string", where=where, todo="quote the whole value") from error


# ---- Files -----------------------------------------------------------------------------------------------------------


def _row(entry: Any, where: str) -> Row:
    if not isinstance(entry, dict):
        raise UserError("not a row", where=where, todo='write {"name": ..., "overrides": {...}}')
    known = list(Row.__dataclass_fields__)
    unknown = next((key for key in entry if key not in known), None)
    if unknown is not None or "name" not in entry:
        what = f"unknown field '{unknown}'" if unknown is not None else "the row has no name"
        raise UserError(what, where=where, todo=f"fields: {', '.join(known)}")
    return _check_row(Row(**entry), where)


def _check_row(row: Row, where: str) -> Row:
    for name in ("name", "note", "not_run", "axis", "line", "config"):
        if not isinstance(getattr(row, name), str):
            raise UserError(f"{name} is not a string", where=where, todo="quote it")
    if not row.name.strip() or not row.name.isprintable():
        raise UserError(f"the name of the row is {row.name!r}", where=where, todo="give it a plain name")
    for name, kind in (("overrides", "value"), ("published", "number")):
        value = getattr(row, name)
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise UserError(f"{name} is not an object of names and {kind}s", where=where, todo="correct it")
    if row.at is not None and not fields.Range().takes(row.at):
        raise UserError(f"at is {row.at!r}", where=where, todo="give a number, or leave it out")
    if (row.at is None) != (not row.axis):
        todo = "to plot the row, give both: at=16 and axis='shift, pixels'"
        raise UserError(f"at is {row.at!r} and axis {row.axis!r}", where=where, todo=todo)
    for metric, number in row.published.items():
        if not fields.Range().takes(number):
            raise UserError(f"the published {metric} is {number!r}", where=where, todo="give a number")
    return row


def _rows_of_python(path: Path, variant: str) -> list[Row]:
    text = files.read_text(path)  # refuses a missing file and a folder
    spec = importlib.util.spec_from_file_location("elk_jax_rows", path)
    if spec is None or spec.loader is None:
        raise UserError("not a Python or JSON file", where=path, todo="give a .py file with ROWS, or a .json file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up the module of their fields' types
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)
        rows = getattr(module, "ROWS", None)
        has_variants = rows is None and callable(getattr(module, "get_rows", None))
        if has_variants:
            rows = module.get_rows(variant)
    except Exception as error:
        todo = "correct the file, or choose another variant" if variant else "correct the file"
        raise UserError(f"{type(error).__name__}: {error}", where=path, todo=todo) from error
    if variant and not has_variants:
        raise UserError(f"the file has no variant '{variant}'", where=path, todo="leave it out, or define get_rows")
    if not isinstance(rows, Sequence) or not all(isinstance(row, Row) for row in rows):
        todo = "define ROWS, a tuple of elk_jax.sweeps.settings.Row"
        raise UserError("the file has no ROWS", where=path, todo=todo)
    return [_check_row(row, f"{path}, row '{row.name}'") for row in rows]
