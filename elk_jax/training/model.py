"""What the loop must know of one model family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

Params = Any
"""A pytree of float32 arrays. Models keep no other state (no running statistics), so every task can be made private."""


@dataclass(frozen=True)
class Task:
    """A model family as pure functions.

    init:     rng -> params.
    loss:     (params, batch, rng) -> (scalar, metrics: dict of scalars). Means are over the GLOBAL batch.
    predict:  (params, batch) -> dict of arrays with leading axis B.
    frozen:   regular expressions (re.search on 'a/b/c' parameter paths) that are never trained, whatever the
              configuration says.
    """

    init: Callable[[jax.Array], Params]
    loss: Callable[[Params, Mapping[str, jax.Array], jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
    predict: Callable[[Params, Mapping[str, jax.Array]], dict[str, jax.Array]]
    frozen: tuple[str, ...] = ()
