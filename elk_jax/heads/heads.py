"""The table of all kinds of heads.

A head computes log odds from features of images. It consists of plain arrays, stored in a model folder, and defines
their shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from elk_jax.heads.kernel import Kernel
from elk_jax.heads.linear import Linear


class Head(Protocol):
    """The interface of all kinds; see `linear.Linear`."""

    def log_odds(self, features: Mapping[str, np.ndarray]) -> np.ndarray: ...

    def scaled(self, scale: float, shift: float) -> Head: ...

    def params(self) -> dict[str, Any]: ...


HEADS: dict[str, Any] = {"linear_head": Linear, "kernel_head": Kernel}
"""Kinds by the architecture in a model folder. A new kind of head is a line here, and its fit in the task's `fit`."""


def architecture_of(head: Head) -> str:
    """The architecture of a head, as stored in a model folder."""
    return next(name for name, kind in HEADS.items() if isinstance(head, kind))


def probability(log_odds: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-log odds)), without overflow."""
    return 0.5 * (1 + np.tanh(log_odds / 2))
