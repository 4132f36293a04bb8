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
