"""Running counts against a dense table."""

import numpy as np

from elk_jax.evaluation.running import running

PATIENTS, COLUMNS = 7, 11


def test_is_the_dense_table():
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, PATIENTS, 60), rng.integers(0, COLUMNS + 1, 60)
    table = np.zeros((PATIENTS, COLUMNS + 1))
    np.add.at(table, (rows, columns), 1)
    table = np.cumsum(table[:, :-1], axis=1)
    counts, weights = running(rows, columns, (PATIENTS, COLUMNS)), rng.integers(0, 4, (5, PATIENTS))
    np.testing.assert_array_equal(counts.weighted(weights), weights @ table)
    for column in range(COLUMNS):
        np.testing.assert_array_equal(counts.at(column), table[:, column])


def test_stores_events_only():
    """A table of all patients and scores of a large data set would take more memory than there is."""
    many = 1_000_000
    counts = running(np.array([3, 3, 9]), np.array([5, 5, many]), (many, many))
    np.testing.assert_array_equal(counts.events.data, [2])
    assert counts.at(many - 1)[3] == 2


def test_no_events_and_no_columns():
    none = np.zeros(0, int)
    np.testing.assert_array_equal(running(none, none, (2, 3)).weighted(np.ones((1, 2))), np.zeros((1, 3)))
    assert running(none, none, (2, 0)).weighted(np.ones((4, 2))).shape == (4, 0)
