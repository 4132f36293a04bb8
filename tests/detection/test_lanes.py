from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.detection import lanes


@pytest.mark.parametrize("count", [1, 32, 75])
def test_rows_and_their_gradients_are_those_of_plain_indexing(count):
    random = np.random.default_rng(0)
    table, index = random.normal(size=(count, 4)).astype(np.float32), random.integers(0, count, 9)
    table[index[0]] = np.nan, np.inf, -1, 0
    np.testing.assert_array_equal(lanes.take(jnp.asarray(table), index), table[index])
    of_sum = jax.grad(lambda table, take: (take(table, index) * np.arange(36.0).reshape(9, 4)).sum())
    plain = of_sum(jnp.asarray(table), lambda table, index: table[index])
    np.testing.assert_array_equal(of_sum(jnp.asarray(table), lanes.take), plain)


def test_tables_follow_each_other():
    tables = [jnp.arange(8.0).reshape(2, 4), jnp.arange(12.0).reshape(3, 4)]
    np.testing.assert_array_equal(lanes.concatenate(tables), np.concatenate(tables))


def test_tables_of_cells_follow_each_other_column_by_column():
    random = np.random.default_rng(0)
    tables = [random.normal(size=(cells * 3, 4)).astype(np.float32) for cells in (4, 1, 2)]
    tables[0][1] = np.nan, np.inf, -1, 0
    np.testing.assert_array_equal(lanes.by_columns([jnp.asarray(x) for x in tables], 3), np.concatenate(tables))
    weights = random.normal(size=(21, 4)).astype(np.float32)
    gradients = jax.grad(lambda tables: (lanes.by_columns(tables, 3) * weights).sum())(
        [jnp.ones(x.shape) for x in tables]
    )
    np.testing.assert_array_equal(np.concatenate(gradients), weights)


@pytest.mark.parametrize("shape", [(3, 4), (3,), (1, 4)])
def test_rows_of_a_short_table_are_those_of_plain_indexing(shape):
    """What is not finite stays in its own row; types are kept."""
    random = np.random.default_rng(0)
    index = random.integers(0, shape[0], 9).astype(np.int32)
    for kind in (np.float32, np.int32):
        table = random.integers(-9, 9, shape).astype(kind)
        if kind == np.float32:
            table[0] = np.nan
        found = lanes.spread(jnp.asarray(table), index)
        assert found.dtype == kind
        np.testing.assert_array_equal(found, table[index])
        columns = [jnp.asarray(values) for values in np.atleast_2d(table.T)]
        compared = lanes._compared(columns, jnp.asarray(index))  # as on a TPU
        assert {values.dtype for values in compared} == {np.dtype(kind)}
        np.testing.assert_array_equal(np.stack(compared, -1).reshape(found.shape), table[index])
    assert not np.any(lanes.spread(jnp.zeros((0, *shape[1:])), index))
