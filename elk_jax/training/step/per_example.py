"""The sum of clipped gradients from the gradient of every unit, computed with jax_privacy.

Shapes: R rows, each a unit or padding, M of which are computed at once; with n micro-batches, row r is in number r % n.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from elk_jax.privacy.settings import Clipping, Normalised
from elk_jax.training.model import Params


def clipped_sum(
    loss: Callable[..., jax.Array],
    clipping: Clipping,
    clip_norm: jax.Array | float,
    micro_batch: int,
    trained: Params,
    examples: Any,
    keys: jax.Array,
    padding: jax.Array,
) -> tuple[Params, jax.Array]:
    """(the sum of the clipped gradients, their norms [R] before clipping).

    loss: (trained, examples of a unit, key) -> scalar. examples, keys: [R, ...]. padding: [R], true for rows without a
    unit, which add nothing, whatever they contain. Non-finite entries of a gradient count as 0.
    """
    from jax_privacy.clipping import clipped_grad  # the import takes seconds, and most training runs do not need it

    def transform(grads: Params) -> Params:
        if not isinstance(clipping, Normalised):
            return grads
        return optax.tree.scale(1 / (optax.tree.norm(grads) + clipping.stability), grads)

    gradient = clipped_grad(
        loss,
        batch_argnums=(1, 2),
        keep_batch_dim=False,
        l2_clip_norm=clip_norm,
        pre_clipping_transform=transform,
        microbatch_size=micro_batch,
        return_grad_norms=True,
    )
    total, found = gradient(trained, examples, keys, is_padding_example=padding)
    return total, found.grad_norms
