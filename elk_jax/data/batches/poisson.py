"""Batches for private training: every unit is in every batch independently with the same probability (Poisson).

Shapes: R rows of a batch, one for each of its units, plus padding; K examples of a unit: images times views.

A unit (a patient or an image) is what privacy protects: its examples are in one row. The units in batch `number`
depend on the secret and the number only, not on their data or the devices. The rows suffice for all but one batch in
10^12; a batch with more units is an error, since the accounting does not cover dropped units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from elk_jax.data.batches.shuffle import host_rows
from elk_jax.data.batches.stream import Reading, Stream, digest
from elk_jax.data.sources import patients
from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo
from elk_jax.privacy.accounting import Unit
from elk_jax.privacy.secret import Secret
from elk_jax.randomness import Purpose

OVERFLOW = 1e-12
"""Probability that a batch has more units than rows."""

Example = Callable[[int, np.random.Generator], Mapping[str, Any]]
"""(number of the example, random numbers for its augmentation) -> its arrays, always of the same shapes."""
Members = tuple[tuple[int, ...], ...]
"""The examples of every unit: [N] numbers each, at least one."""


class UnitBatch(TypedDict):
    """One batch of units."""

    examples: dict[str, np.ndarray]  # of the task, [R, K, ...], with `valid` [R, K]; False for what a unit lacks
    unit: np.ndarray  # [R] int32, -1 for rows without a unit


def members(infos: Sequence[ImageInfo], unit: Unit) -> Members:
    """The positions in `infos` by patient, or by image: several tiles of one image are one unit.

    UserError if the unit is a patient and some images have no patient ID.
    """
    if unit == "patient":
        named = patients.named(infos)
        unnamed = [info for info in infos if info.patient_id not in named]
        if unnamed:
            todo = "give every image a patient ID, or set unit=image"
            raise UserError(
                f"{len(unnamed)} images have no patient ID, for example {unnamed[0].file_name or unnamed[0].image_id}",
                where="privacy.unit",
                todo=todo,
            )
    found: dict[Any, list[int]] = {}
    for position, info in enumerate(infos):
        own = patients.patient_key(info.patient_id) if unit == "patient" else (info.source, info.image_id)
        found.setdefault(own, []).append(position)
    return tuple(map(tuple, found.values()))


def row_count(units: int, rate: float, multiple: int) -> int:
    """R: enough rows for the units of a batch (`OVERFLOW`), a multiple of `multiple`."""
    from scipy import stats  # the import takes seconds, and most training runs do not need it

    most = int(stats.binom.isf(OVERFLOW, units, rate)) if rate < 1 else units
    return multiple * max(1, -(-most // multiple))


def expected_rows(expected: int, multiple: int) -> int:
    """R for batches with this expected number of units, whatever the total: at least `row_count` of any total."""
    from scipy import stats  # as above

    return multiple * -(-int(stats.poisson.isf(OVERFLOW, expected)) // multiple)


def drawn_units(secret: Secret, number: int, units: int, rate: float) -> np.ndarray:
    """The units in batch `number`, ascending."""
    return np.flatnonzero(secret.generator(Purpose.PRIVATE_BATCH, number).random(units) < rate)


@dataclass(frozen=True)
class PoissonBatches:
    """Batch number -> the rows of this host.

    rate: probability that a unit is in a batch. rows: R. images, views: K = images * views. lanes: devices, over which
    the units are spread evenly: each has R / lanes rows and fills the first ones. shapes: of the arrays of `example`.
    """

    example: Example
    members: Members
    secret: Secret
    rate: float
    rows: int
    images: int
    views: int
    lanes: int
    share: slice
    shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]]

    def __call__(self, number: int) -> UnitBatch:
        chosen = drawn_units(self.secret, number, len(self.members), self.rate)
        if len(chosen) > self.rows:
            raise UserError(
                f"batch {number} has {len(chosen)} units but only {self.rows} rows",
                where="private batches",
                todo="start in a new workdir: the probability of so large a batch is 10^-12",
            )
        places = np.arange(len(chosen))
        unit = np.full(self.rows, -1, np.int32)
        unit[places % self.lanes * (self.rows // self.lanes) + places // self.lanes] = chosen
        unit = unit[self.share]
        examples = self.blank(len(unit))
        for row in np.flatnonzero(unit >= 0):
            for place, found in enumerate(self._examples(number, int(unit[row]))):
                for name in self.shapes:
                    examples[name][row, place] = found[name]
                examples["valid"][row, place] = True
        return {"examples": examples, "unit": unit}

    def blank(self, rows: int) -> dict[str, np.ndarray]:
        """The examples of rows without units."""
        count = rows, self.images * self.views
        shapes = {**self.shapes, "valid": ((), np.dtype(bool))}
        return {name: np.zeros((*count, *shape), dtype) for name, (shape, dtype) in shapes.items()}

    def _examples(self, number: int, unit: int) -> list[Mapping[str, Any]]:
        """The examples of one unit: all of its images, or `images` of them at random, each with its views."""
        rng = self.secret.generator(Purpose.PRIVATE_UNIT, number, unit)
        own = np.asarray(self.members[unit])
        if len(own) > self.images:
            own = rng.choice(own, self.images, replace=False)
        return [self.example(int(index), rng) for index in own for _ in range(self.views)]


def private_batches(
    example: Example,
    members: Members,
    secret: Secret,
    rate: float,
    reading: Reading,
    *,
    images: int = 1,
    views: int = 1,
    micro_batch: int = 1,
    lanes: int = 1,
    process_index: int = 0,
    process_count: int = 1,
    public: Callable[[int], Mapping[str, Any]] | None = None,
    releases: int = 1,
    identity: Any = None,
) -> tuple[Stream[UnitBatch], dict[str, np.ndarray]]:
    """(endless batches of units, the examples [1, K, ...] of a row without a unit).

    images: most images of a unit; capped at those of the largest unit. micro_batch: units on a device at once.
    lanes: devices of all processes. public: batch number -> this host's part of a batch of examples that need no
    protection, which becomes the entry `public`. releases: batches of a step, each drawn separately; their rows are
    interleaved: the first row of each, the second of each, and so on. identity: what else the examples depend on, for
    JSON.
    """
    rows = row_count(len(members), rate, lanes * micro_batch)
    images = min(images, max(map(len, members)))
    first = example(members[0][0], np.random.default_rng(0))
    shapes = {name: (np.shape(x), np.asarray(x).dtype) for name, x in first.items() if name != "valid"}
    share = host_rows(rows, process_index, process_count)
    make = PoissonBatches(example, members, secret, rate, rows, images, views, lanes, share, shapes)
    whole: Callable[[int], Any] = make if public is None else _WithPublic(make, public)
    depends = [identity, members, rate, images, views]
    if releases > 1:
        whole = _InTurn(whole, releases)
        depends.append(releases)
    return Stream(whole, digest(reading, *depends), reading), make.blank(1)


@dataclass(frozen=True)
class _WithPublic:
    """Batch number -> the units, and the public examples."""

    units: PoissonBatches
    public: Callable[[int], Mapping[str, Any]]

    def __call__(self, number: int) -> dict[str, Any]:
        return {**self.units(number), "public": self.public(number)}


@dataclass(frozen=True)
class _InTurn:
    """Step number -> its batches, with interleaved rows."""

    make: Callable[[int], Mapping[str, Any]]
    count: int

    def __call__(self, number: int) -> dict[str, Any]:
        return in_turn([self.make(number * self.count + place) for place in range(self.count)])


def in_turn(parts: Sequence[Any]) -> Any:
    """Arrays [R, ...], or dicts of them, as one of [count * R, ...]."""
    if isinstance(parts[0], Mapping):
        return {name: in_turn([part[name] for part in parts]) for name in parts[0]}
    stacked = np.stack(parts, axis=1)
    return stacked.reshape(-1, *stacked.shape[2:])
