"""Number formats: float32 parameters, bfloat16 or float32 computation, float32 or wider for boxes and losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from elk_jax.errors import UserError

DTYPES = ("float32", "bfloat16", "float64")
"""Formats of the computation of networks."""


def check_dtype(name: str) -> None:
    """Raise UserError for an unsupported format of the computation."""
    if name not in DTYPES:
        raise UserError(f"dtype is {name!r}", where="dtype", todo=f"give one of {', '.join(DTYPES)}")


def at_least_float32(x: jax.Array) -> jax.Array:
    """Promote to float32; wider floats are unchanged, so that a float64 run stays float64 throughout."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
