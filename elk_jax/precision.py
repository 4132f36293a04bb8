"""Number formats: float32 parameters, bfloat16 or float32 computation, float32 or wider for boxes and losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp

DTYPES = ("float32", "bfloat16", "float64")
"""Number formats in which networks compute."""


def at_least_float32(x: jax.Array) -> jax.Array:
    """Promote to float32; wider floats are unchanged, so that a float64 run stays float64 throughout."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
