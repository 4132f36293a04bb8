"""Reading rows of a few numbers, such as boxes, from long tables.

The memory of a TPU stores the last axis in lanes of 128 numbers: a table [N, 4] takes, and moves, 32 times its content.
As [N / 32, 128] it takes no more than its content.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

LANES = 128


def concatenate(tables: list[jax.Array]) -> jax.Array:
    """[N_1 + N_2 + ..., n] from tables [N_i, n], by way of one long row."""
    return jnp.concatenate([table.reshape(-1) for table in tables]).reshape(-1, tables[0].shape[-1])


def by_columns(tables: Sequence[jax.Array], each: int) -> jax.Array:
    """Like `concatenate`, for tables [N_i, n] in which `each` rows are the channels of one cell of a map.

    Column by column: code that reads columns, such as the box coder, never sees a table of rows.
    """
    width = tables[0].shape[-1]
    maps = [table.reshape(-1, each * width) for table in tables]
    columns = [jnp.concatenate([cells[:, i::width].reshape(-1) for cells in maps]) for i in range(width)]
    return jnp.stack(columns, -1)


def spread(table: jax.Array, index: jax.Array) -> jax.Array:
    """table[index] for a short table [M, n] or [M], such as lesions, and a long index [N] int: [N, n] or [N].

    Indices are in [0, M); without rows, the result is 0. A TPU gathers row by row, so it compares instead; on a CPU
    comparing is a hundred times slower.
    """
    if not len(table):
        return jnp.zeros((*index.shape, *table.shape[1:]), table.dtype)
    columns = [table] if table.ndim == 1 else list(table.T)
    found = jax.lax.platform_dependent(columns, index, tpu=_compared, default=_gathered)
    return found[0] if table.ndim == 1 else jnp.stack(found, -1)


def _compared(columns: list[jax.Array], index: jax.Array) -> list[jax.Array]:
    chosen = index == jnp.arange(len(columns[0]), dtype=index.dtype)[:, None]  # [M, N]: the long axis is in lanes
    return [jnp.where(chosen, values[:, None], 0).sum(0, dtype=values.dtype) for values in columns]


def _gathered(columns: list[jax.Array], index: jax.Array) -> list[jax.Array]:
    return [jnp.take(values, index, mode="clip") for values in columns]


def take(table: jax.Array, index: jax.Array) -> jax.Array:
    """table[index] for a table [N, n], n a divisor of LANES, and index [S] int: [S, n]. Indices are in [0, N)."""
    count, width = table.shape
    each = LANES // width
    packed = jnp.pad(table.reshape(-1), (0, -count % each * width)).reshape(-1, LANES)
    read = packed[index // each].reshape(-1, each, width)
    wanted = index[:, None] % each == jnp.arange(each, dtype=jnp.int32)
    return jnp.where(wanted[..., None], read, 0).sum(1)
