"""Batches of pairs of tiles (`data/sources/pairs.py`), for translating one image into the other.

Shapes: B batch, S side of a tile. A batch is a function of (seed, batch number) only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict, cast

import numpy as np

from elk_jax.data.batches.shuffle import Augmenting, Shuffle, Stacked, batch_count, blank, host_rows
from elk_jax.data.batches.stream import Reading, Stream, digest, finite
from elk_jax.data.flips import random_flip
from elk_jax.data.sources.pairs import PARTNER, Pairs
from elk_jax.data.tiles import MAX_BLACK
from elk_jax.fields import SHARE, AtLeast
from elk_jax.randomness import Purpose
from elk_jax.spread import spread


class PairBatch(TypedDict):
    """One batch of pairs, a plain dict of arrays."""

    low_energy: np.ndarray  # [B, S, S, 1] float32 in [0, 1]
    subtracted: np.ndarray  # [B, S, S, 1] float32 in [0, 1]
    index: np.ndarray  # [B] int32, position of the pair
    valid: np.ndarray  # [B] bool, False for examples that only fill the last batch


@dataclass(frozen=True)
class PairConfig(Reading):
    """How pairs become tiles and batches.

    stride: pixels from one tile to the next in images larger than S; 0: S. max_black: largest black share of a tile of
    the low-energy image. batch_size: of the GLOBAL batch, over all hosts. horizontal_flip,
    vertical_flip: probabilities, of both images together.
    """

    stride: Annotated[int, AtLeast(0)] = 0
    max_black: Annotated[float, SHARE] = MAX_BLACK
    batch_size: Annotated[int, AtLeast(1)] = 8
    horizontal_flip: Annotated[float, SHARE] = 0.5
    vertical_flip: Annotated[float, SHARE] = 0.5


def train_pairs(
    pairs: Pairs, config: PairConfig, seed: int, process_index: int = 0, process_count: int = 1
) -> Stream[PairBatch]:
    """Endless batches: every pair once an epoch, in a new order, mirrored at random (both images alike)."""
    make = shuffled(pairs, config, seed, process_index, process_count)
    return cast(Stream[PairBatch], Stream(make, digest(config, seed, records(pairs)), config))


def shuffled(pairs: Pairs, config: PairConfig, seed: int, process_index: int = 0, process_count: int = 1) -> Stacked:
    """Batch number -> the batch of `train_pairs`."""
    example = Augmenting(
        Augmented(pairs, config), Shuffle(len(pairs), seed, Purpose.PAIR_ORDER), seed, Purpose.PAIR_FLIPS
    )
    return Stacked(example, config.batch_size, host_rows(config.batch_size, process_index, process_count))


def eval_pairs(pairs: Pairs, config: PairConfig, count: int = 0) -> Iterator[PairBatch]:
    """`count` pairs (0: all), spread over the whole collection, in order and unchanged.

    The last batch is filled with copies whose `valid` is False.
    """
    chosen = tuple(spread(len(pairs), count or len(pairs)).tolist())
    make = Stacked(_Evaluation(pairs, chosen), config.batch_size, count=len(chosen))
    return cast(Iterator[PairBatch], finite(make, batch_count(len(chosen), config.batch_size), config))


def blank_batch(batch_size: int, size: int) -> PairBatch:
    """A batch of black pairs; it takes no memory. size: S."""
    tile, numbers = (batch_size, size, size, 1), (batch_size,)
    shapes = {"low_energy": tile, "subtracted": tile, "index": numbers, "valid": numbers}
    return cast(PairBatch, blank(shapes, index=np.int32, valid=bool) | {"valid": np.broadcast_to(True, numbers)})


def records(pairs: Pairs) -> list[Any]:
    """What identifies the pairs, for JSON."""
    return [
        (info.image_id, info.file_name, str(info.meta.get(PARTNER, "")), window)
        for info, (_, window) in zip(pairs.infos, pairs.places)
    ]


@dataclass(frozen=True)
class Augmented:
    """Number of a pair -> example, both images mirrored alike by the random numbers."""

    pairs: Pairs
    config: PairConfig

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        flip = random_flip(rng, self.config.horizontal_flip, self.config.vertical_flip)
        return _example(self.pairs, index, flip)


@dataclass(frozen=True)
class _Evaluation:
    """Number of a chosen pair -> example."""

    pairs: Pairs
    chosen: tuple[int, ...]

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        return _example(self.pairs, self.chosen[number])


def _example(pairs: Pairs, index: int, flip: tuple[slice, ...] = ()) -> dict[str, np.ndarray]:
    low, subtracted = pairs[index]
    return {"low_energy": low[flip], "subtracted": subtracted[flip], "index": np.asarray(index, np.int32)}
