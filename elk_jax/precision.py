"""Number formats: float32 parameters, bfloat16 or float32 compute, never less than float32 for boxes and losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from elk_jax.errors import UserError

DTYPES = ("float32", "bfloat16", "float64")
"""What networks can compute in."""


def check_dtype(name: str) -> None:
    """Raise UserError for a format that networks do not compute in."""
    if name not in DTYPES:
        raise UserError(f"dtype is {name!r}", todo=f"give one of {', '.join(DTYPES)}")


def at_least_float32(x: jax.Array) -> jax.Array:
    """Promote to float32 and leave wider floats alone, so that a float64 run stays float64 throughout."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
