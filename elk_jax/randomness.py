"""Random numbers on the host: the purpose of each stream, and the one way to open it.

A stream is named by (seed, purpose, indices). NumPy pads a short list of numbers with zeros, so that
`default_rng([42, 5])` and `default_rng([42, 5, 0, 0])` are the same stream. Therefore every purpose has its own number
and a fixed number of indices.
"""

from __future__ import annotations

from enum import Enum, unique
from functools import lru_cache
from typing import Annotated

import numpy as np

from elk_jax.errors import UserError
from elk_jax.fields import Between

WORD = 1 << 32
"""Seeds and indices are below this: NumPy splits larger numbers into two, and JAX uses only 32 bits of them."""

Seed = Annotated[int, Between(0, WORD - 1)]
"""A setting that is a seed."""


@unique
class Purpose(Enum):
    """The part of a stream's name after the seed: fixed numbers, and what each index counts.

    The seed of a phantom data set is not the seed of an experiment, so its purposes are numbered separately. Three
    pairs of an experiment's purposes share a number (PATIENTS with STRATUM_ORDER, CANVAS_ORDER with BUCKET_ORDER,
    PLACEMENT with BATCH_ORDER): their draws are unrelated, so sharing a stream is harmless. A new purpose takes a new
    number.
    """

    # of an experiment
    PATIENTS = (0,)  # for a few-shot subset, and for splits
    STRATUM_ORDER = 0, "stratum", "epoch"
    BUCKET_ORDER = 1, "bucket", "epoch"
    BATCH_ORDER = 2, 0, "epoch"
    AUGMENTATION = 3, "epoch", "slot"
    CLOSEUP = 4, "slot"
    CLOSEUP_ORDER = 5, "epoch"
    EVAL_CLOSEUP = 6, "lesion"
    CACHED_ORDER = 7, "epoch"
    GRAIN = 8, "lesion"
    PAIR_ORDER = 9, "epoch"
    PAIR_FLIPS = 10, "slot"
    REPORT_CLOSEUP = 12, "lesion"
    PRIVATE_BATCH = 13, "batch"
    PRIVATE_UNIT = 14, "batch", "unit"
    LABELLED_ORDER = 15, "epoch"
    LABELLED_VIEWS = 16, "slot"
    FOLDS = (17,)
    REPETITION = 18, "number"  # the seed of a repeated training run
    UNPAIRED = (20,)  # the seed of a second stream of images alongside the first
    MISPLACED_PAIR = 21, "pair"  # of data_prep
    PARTNERS = (22,)  # the order of patients whose partners are exchanged
    CANVAS_ORDER = 1, "epoch"
    PLACEMENT = 2, "lesion"
    # of a phantom data set
    PHANTOM_CHARACTER = 1, "patient"
    PHANTOM_PLANS = 2, "breast"
    PHANTOM_SHAPE = 3, "view"
    PHANTOM_TISSUE = 4, "view", "layer", "octave"
    PHANTOM_GLAND = 4, "view", 4
    PHANTOM_PLACES = 5, "view", "seed of the lesion"
    PHANTOM_BACKGROUND = 6, "view"
    PHANTOM_DISTRACTORS = 7, "view"
    PHANTOM_EXPOSURE = 8, "view"
    PHANTOM_NIPPLE = 9, "view"
    PHANTOM_HEALTHY = (11,)
    PHANTOM_SHEET = 12, "view", "sheet", "octave"
    PHANTOM_VOLUME = 13, "view", "part"
    # of one lesion of a phantom
    PHANTOM_LESION = (7,)

    @property
    def indices(self) -> tuple[str, ...]:
        """What the indices of its streams count."""
        return tuple(part for part in self.value if isinstance(part, str))

    def words(self, *indices: int) -> list[int]:
        """The numbers after the seed. ValueError for a wrong number of indices, or one outside 32 bits."""
        if len(indices) != len(self.indices) or not all(0 <= index < WORD for index in indices):
            raise ValueError(f"{self.name} is counted by {self.indices}, got {indices}")
        left = iter(indices)
        return [next(left) if isinstance(part, str) else part for part in self.value]


def check_seed(seed: object, where: object = "seed") -> None:
    """UserError unless `seed` is a whole number of 32 bits."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < WORD:
        raise UserError(f"seed is {seed!r}", where=where, todo=f"give a whole number from 0 to {WORD - 1}")


def generator(seed: int, purpose: Purpose, *indices: int) -> np.random.Generator:
    """The random stream for a purpose; UserError for a seed outside 32 bits."""
    check_seed(seed)
    return np.random.default_rng([seed, *purpose.words(*indices)])


@lru_cache(maxsize=16)
def random_order(count: int, seed: int, purpose: Purpose, *indices: int) -> np.ndarray:
    """0 to count - 1 in random order, [count] int64, read-only. Cached: an epoch asks for one entry at a time."""
    order = generator(seed, purpose, *indices).permutation(count)
    order.flags.writeable = False
    return order
