"""The kinds of heads: the table of all.

A head gives log odds for features of images. It is plain arrays, which a model folder keeps, and knows which shapes
they have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from elk_jax.heads.kernel import Kernel
from elk_jax.heads.linear import Linear


class Head(Protocol):
    """What all kinds can do; see `linear.Linear`."""

    def log_odds(self, features: Mapping[str, np.ndarray]) -> np.ndarray: ...

    def scaled(self, scale: float, shift: float) -> Head: ...

    def params(self) -> dict[str, Any]: ...


HEADS: dict[str, Any] = {"linear_head": Linear, "kernel_head": Kernel}
"""By the architecture that a model folder names. A new kind of head is a line here, and its fit in the task's `fit`."""


def architecture_of(head: Head) -> str:
    """Its architecture, as a model folder names it."""
    return next(name for name, kind in HEADS.items() if isinstance(head, kind))


def probability(log_odds: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-log odds)), without overflow."""
    return 0.5 * (1 + np.tanh(log_odds / 2))
