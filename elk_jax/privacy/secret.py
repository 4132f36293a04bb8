"""The secret of private training, from which all its noise and batches are derived.

Anyone who knows it can subtract the noise. It comes from the operating system and is stored only in the checkpoints of
its training run, which only their owner can read: never in a configuration, a model, a metric or a report. Programs
receive it as an argument, since compiled programs, with their constants, are cached on disk.

All noise is drawn in float32 by JAX's Threefry (`privacy.noise`), whose keys have 64 bits; the units of a batch are
drawn by NumPy's PCG64, from separate words.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import jax
import numpy as np

from elk_jax.errors import UserError
from elk_jax.randomness import Purpose

NOISE_GENERATOR = "threefry2x32"
"""Generator of the noise, whatever JAX uses for other numbers: faster generators are not designed to be
unpredictable."""
WORDS = 8
"""Number of 32-bit words: two for the noise, two for the draws of the loss, four for batches and augmentations."""


@dataclass(frozen=True)
class Secret:
    """words: 32-bit numbers. known: not a secret at all, but a number from the configuration."""

    words: tuple[int, ...] = field(repr=False)
    known: bool = False

    def keys(self) -> np.ndarray:
        """For the device, [2, 2] uint32: key data for the noise and for the loss."""
        return np.asarray(self.words[:4], np.uint32).reshape(2, 2)

    def noise_key(self) -> jax.Array:
        """The key of the noise, for a one-time release."""
        return jax.random.wrap_key_data(self.keys()[0], impl=NOISE_GENERATOR)

    def generator(self, purpose: Purpose, *indices: int) -> np.random.Generator:
        """A random stream on the host; see `randomness.generator`."""
        return np.random.default_rng([*self.words[4:], *purpose.words(*indices)])

    def text(self) -> str:
        """The secret as text, for the checkpoint."""
        return np.asarray(self.words, "<u4").tobytes().hex()


def fresh() -> Secret:
    """A new secret from the entropy of the operating system."""
    return Secret(_words(os.urandom(4 * WORDS)))


def known(seed: int) -> Secret:
    """A reproducible secret from a number, for tests."""
    return Secret(tuple(map(int, np.random.SeedSequence(seed).generate_state(WORDS))), known=True)


def read(text: str, where: object) -> Secret:
    """The secret of a checkpoint, from its `text`. UserError if it is damaged."""
    try:
        content = bytes.fromhex(text)
    except (TypeError, ValueError):
        content = b""
    if len(content) != 4 * WORDS:
        todo = "remove this checkpoint to resume from an earlier one"
        raise UserError("the secret of private training is damaged", where=where, todo=todo)
    return Secret(_words(content))


def _words(content: bytes) -> tuple[int, ...]:
    return tuple(map(int, np.frombuffer(content, "<u4")))
