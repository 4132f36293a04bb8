"""Sampling: a fixed number of positive and negative boxes for a loss. N boxes, S samples; one image, one key."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from elk_jax.detection.selection import top_k


class Samples(NamedTuple):
    """Positives first, then negatives, then empty slots (valid False, index 0)."""

    indices: jax.Array  # [S] int32 into the boxes
    is_positive: jax.Array  # [S] bool
    valid: jax.Array  # [S] bool


@jax.named_scope("sampling")
def sample(
    rng: jax.Array, labels: jax.Array, num: int, positive_fraction: float, valid: jax.Array | None = None
) -> Samples:
    """Draw S = `num` boxes uniformly without replacement, by their labels[N] (1 positive, 0 negative, others never).

    At most int(num * positive_fraction) positives are drawn, and negatives fill the remaining slots as far as possible
    (as in detectron2 and torchvision: few positives mean more negatives, few negatives leave slots empty). valid[N]:
    boxes that may be drawn at all. Give every image its own `rng`, or all images draw alike.
    """
    positive, negative = labels == 1, labels == 0
    if valid is not None:
        positive, negative = positive & valid, negative & valid
    size = labels.shape[0]
    if size == 0:
        return Samples(jnp.zeros(num, jnp.int32), jnp.zeros(num, bool), jnp.zeros(num, bool))
    cap = min(int(num * positive_fraction), size)
    # Random keys in [0, 1); boxes of the other kind get -1 and come last. float32 keys whatever the boxes' type.
    keys = jax.random.uniform(rng, (size,), jnp.float32)
    _, drawn_positive = top_k(jnp.where(positive, keys, -1), max(cap, 1))
    _, drawn_negative = top_k(jnp.where(negative, keys, -1), min(num, size))
    num_positive = jnp.minimum(positive.sum(), cap)
    num_negative = jnp.minimum(negative.sum(), num - num_positive)

    slot = jnp.arange(num)
    is_positive = slot < num_positive
    filled = slot < num_positive + num_negative
    from_positive = drawn_positive.at[slot].get(mode="clip")
    from_negative = drawn_negative.at[slot - num_positive].get(mode="clip")
    indices = jnp.where(filled, jnp.where(is_positive, from_positive, from_negative), 0)
    return Samples(indices.astype(jnp.int32), is_positive, filled)
