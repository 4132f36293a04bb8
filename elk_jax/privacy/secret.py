"""What an adversary must not know: the origin of all noise and of all batches of a private training.

Whoever knows it subtracts the noise. It comes from the operating system, is kept in the checkpoints of its training,
which only their owner can read, and nowhere else: not in a configuration, a model, a metric or a report. Programs get
it as an argument, since compiled programs, with their constants, are cached on disk.

All noise is drawn by JAX's Threefry, whose keys have 64 bits, in float32; which units are in a batch by NumPy's PCG64,
from words of their own. Attacks on the rounding of floating-point noise (Mironov 2012) are not defended against.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import jax
import numpy as np

from elk_jax.errors import UserError
from elk_jax.randomness import Purpose

NOISE_GENERATOR = "threefry2x32"
"""Of the noise, whatever JAX draws other numbers by: the quicker ones are not made to be unpredictable."""
WORDS = 8
"""Of 32 bits: two for the noise, two for the draws of the loss, four for batches and augmentations."""


@dataclass(frozen=True)
class Secret:
    """words: numbers of 32 bits. known: not a secret at all, but a number of the configuration."""

    words: tuple[int, ...] = field(repr=False)
    known: bool = False

    def keys(self) -> np.ndarray:
        """For the device, [2, 2] uint32: data of the key of the noise, and of that of the loss."""
        return np.asarray(self.words[:4], np.uint32).reshape(2, 2)

    def noise_key(self) -> jax.Array:
        """The key of the noise, for what is released at once."""
        return jax.random.wrap_key_data(self.keys()[0], impl=NOISE_GENERATOR)

    def generator(self, purpose: Purpose, *indices: int) -> np.random.Generator:
        """A random stream on the host; see `randomness.generator`."""
        return np.random.default_rng([*self.words[4:], *purpose.words(*indices)])

    def text(self) -> str:
        """For the checkpoint."""
        return np.asarray(self.words, "<u4").tobytes().hex()


def fresh() -> Secret:
    """From the entropy of the operating system."""
    return Secret(_words(os.urandom(4 * WORDS)))


def known(seed: int) -> Secret:
    """The same for the same number, for tests."""
    return Secret(tuple(map(int, np.random.SeedSequence(seed).generate_state(WORDS))), known=True)


def read(text: str, where: object) -> Secret:
    """The secret of a checkpoint, from its `text`. UserError where it is damaged."""
    try:
        content = bytes.fromhex(text)
    except (TypeError, ValueError):
        content = b""
    if len(content) != 4 * WORDS:
        todo = "remove this checkpoint to resume from an earlier one"
        raise UserError("the secret of the private training is damaged", where=where, todo=todo)
    return Secret(_words(content))


def _words(content: bytes) -> tuple[int, ...]:
    return tuple(map(int, np.frombuffer(content, "<u4")))
