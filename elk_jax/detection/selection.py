"""The best of many scores. N scores, K of them chosen; for one image (map over the batch).

A TPU's compiler needs ten seconds or more for every sort of tens of thousands of scores. There, the K-th best score is
found bit by bit, each bit by a count, and only the chosen scores are sorted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

LANES = 128
SORTED_WHOLE = 4096
"""Number of scores up to which a sort is compiled quickly."""


@jax.named_scope("top_k")
def top_k(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The K = `k` highest of scores[N], descending, and their indices [K] int32; equal scores by ascending index.

    The result equals `jax.lax.top_k` on every platform. No score may be NaN, and k is at most N.
    """

    def sort_chosen(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
        index = by_counting(scores, k)
        best, place = jax.lax.top_k(scores[index], k)
        return best, index[place]

    return _on_platform(scores, k, sort_chosen, lambda scores: tuple(jax.lax.top_k(scores, k)))


@jax.named_scope("top_k")
def choose(scores: jax.Array, k: int) -> jax.Array:
    """The indices of `top_k`, in an order that depends on the platform.

    Equal scores are by ascending index everywhere, so that a stable sort of the chosen ones has a unique result.
    """
    return _on_platform(scores, k, lambda scores: by_counting(scores, k), lambda scores: jax.lax.top_k(scores, k)[1])


def _on_platform(scores: jax.Array, k: int, counting: Callable[..., Any], sorting: Callable[..., Any]) -> Any:
    if len(scores) <= SORTED_WHOLE or len(scores) == k:
        return sorting(scores)
    return jax.lax.platform_dependent(scores, tpu=counting, default=sorting)


def by_counting(scores: jax.Array, k: int) -> jax.Array:
    """The indices of the `k` highest, ascending."""
    ranked = _in_order(scores)
    ranked = jnp.pad(ranked, (0, -len(ranked) % LANES)).reshape(-1, LANES)
    bits = jnp.iinfo(ranked.dtype).bits

    def add_bit(turn: jax.Array, least: jax.Array) -> jax.Array:
        higher = least | (least.dtype.type(1) << (bits - 1 - turn).astype(least.dtype))
        return jnp.where((ranked >= higher).sum() >= k, higher, least)

    # Start from a value that shares the scores' type in every respect (also under shard_map).
    least = jax.lax.fori_loop(0, bits, add_bit, ranked[0, 0] & 0)
    above, equal = ranked > least, ranked == least
    counted, before = _counts(equal)
    chosen = above | (equal & (counted + before[:, None] <= k - above.sum()))

    counted, before = _counts(chosen)
    nth = jnp.arange(k)
    row = (before[None, 1:] <= nth[:, None]).sum(-1)
    lane = (counted[row] <= (nth - before[row])[:, None]).sum(-1)
    return (row * LANES + lane).astype(jnp.int32)


def _in_order(scores: jax.Array) -> jax.Array:
    """Unsigned numbers in the order of floating-point scores; at least 1 for all but NaN."""
    bits = jnp.finfo(scores.dtype).bits
    unsigned = jax.lax.bitcast_convert_type(scores, jnp.dtype(f"uint{bits}"))
    sign = unsigned.dtype.type(1 << (bits - 1))
    return jnp.where(unsigned & sign, ~unsigned, unsigned | sign)


def _counts(mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For mask[R, LANES]: how many are set in the row up to and including each, and in all previous rows [R] int32."""
    up_to = jnp.triu(jnp.ones((LANES, LANES), jnp.bfloat16))
    counted = jnp.dot(mask.astype(jnp.bfloat16), up_to, preferred_element_type=jnp.float32).astype(jnp.int32)
    of_row = counted[:, -1]
    return counted, jnp.cumsum(of_row) - of_row
