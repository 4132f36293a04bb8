"""The position of every example: arithmetic that all batches share, a stateless function of the seed and numbers.

A slot is the place of an example in the whole stream: batch `number` of B examples has the slots number * B to
(number + 1) * B - 1, whatever the hosts and however often the training was interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from elk_jax.errors import UserError
from elk_jax.randomness import Purpose, generator, random_order


def host_rows(batch_size: int, process_index: int = 0, process_count: int = 1) -> slice:
    """Rows of the global batch that this host loads. UserError if hosts would get different numbers of rows."""
    if batch_size % process_count:
        raise UserError(
            f"batch size {batch_size} cannot be divided among {process_count} hosts",
            where="batch_size",
            todo=f"choose a multiple of {process_count}",
        )
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


def blank(shapes: Mapping[str, tuple[int, ...]], **dtypes: Any) -> dict[str, np.ndarray]:
    """Arrays of zeros that take no memory, for the shapes of a batch; float32, except for those named in `dtypes`."""
    return {key: np.broadcast_to(np.zeros((), dtypes.get(key, np.float32)), shape) for key, shape in shapes.items()}


@dataclass(frozen=True)
class Shuffle:
    """Slot -> one of `count` items: each once an epoch, in a new order every epoch.

    of: indices of the random purpose that precede the epoch, such as the number of a stratum.
    """

    count: int
    seed: int
    purpose: Purpose
    of: tuple[int, ...] = ()

    def __call__(self, slot: int) -> int:
        epoch, place = divmod(slot, self.count)
        return int(random_order(self.count, self.seed, self.purpose, *self.of, epoch)[place])


@dataclass(frozen=True)
class Augmenting:
    """Slot -> training example, augmented with the random numbers of the slot.

    example: (number of the example, random numbers) -> its arrays. purpose: of the random numbers, indexed by slot.
    """

    example: Callable[[int, np.random.Generator], Mapping[str, Any]]
    shuffle: Shuffle
    seed: int
    purpose: Purpose

    def __call__(self, slot: int) -> Mapping[str, Any]:
        return self.example(self.shuffle(slot), generator(self.seed, self.purpose, slot))


def filled_rows(count: int, size: int) -> np.ndarray:
    """Rows [size] that fill a batch with `count` examples: 0 to count - 1, then the last one repeated."""
    return np.minimum(np.arange(size), count - 1)


def stack(examples: Sequence[Mapping[str, Any]], size: int) -> dict[str, np.ndarray]:
    """A batch of `size` examples: the given ones, then copies of the last one whose `valid` is False."""
    rows = filled_rows(len(examples), size)
    batch = {key: np.stack([examples[row][key] for row in rows]) for key in examples[0]}
    return batch | {"valid": np.arange(size) < len(examples)}


def batch_count(count: int, batch_size: int) -> int:
    """Batches that hold `count` examples; the last one is padded."""
    return -(-count // batch_size)


@dataclass(frozen=True)
class Stacked:
    """Batch number -> its examples, stacked. All examples have the same shapes.

    example: slot -> arrays of one example. rows: of this host; None: all. count: total examples; None: endless.
    """

    example: Callable[[int], Mapping[str, Any]]
    batch_size: int
    rows: slice | None = None
    count: int | None = None

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        first = number * self.batch_size
        slots = range(first, first + self.batch_size)[self.rows or slice(None)]
        there = slots if self.count is None else [slot for slot in slots if slot < self.count]
        return stack([self.example(slot) for slot in there], len(slots))
