"""Number formats: float32 parameters, bfloat16 or float32 compute, never less than float32 for boxes and losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def at_least_float32(x: jax.Array) -> jax.Array:
    """Promote to float32 and leave wider floats alone, so that a float64 run stays float64 throughout."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
