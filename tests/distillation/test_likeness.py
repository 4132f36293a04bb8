"""Sums over batches against NumPy's statistics of all cells at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.distillation import likeness


def some(key, *shape):
    return np.asarray(jax.random.normal(jax.random.key(key), shape))


def summed(teacher, student, weights, *others, batches=((0, 3), (3, 5)), of=likeness.moments):
    parts = [of(*(jnp.asarray(x[a:b]) for x in (teacher, student, weights, *others))) for a, b in batches]
    return jax.tree.map(lambda *x: np.sum(np.asarray(x, np.float64), 0), *parts)


@pytest.fixture(scope="module")
def maps():
    teacher, noise = some(0, 5, 4, 3, 6) * np.arange(1, 7) + 2, some(1, 5, 4, 3, 6)
    weights = (some(2, 5, 4, 3) > -0.5).astype(np.float32)
    return teacher, (0.8 * teacher + noise).astype(np.float32), weights


def cells(maps):
    teacher, student, weights = maps
    return teacher[weights > 0], student[weights > 0]


def test_the_correlation_is_that_of_all_cells(maps):
    t, s = cells(maps)
    expected = np.mean([np.corrcoef(t[:, c], s[:, c])[0, 1] for c in range(6)])
    assert likeness.correlation(summed(*maps)) == pytest.approx(expected, abs=1e-5)
    assert likeness.correlation(summed(maps[0], maps[0], maps[2])) == pytest.approx(1, abs=1e-6)
    constant = np.zeros_like(maps[1])
    assert likeness.correlation(summed(maps[0], constant, maps[2])) == 0


def test_cosine_and_spread(maps):
    t, s = cells(maps)
    cosine = ((t * s).sum(1) / np.linalg.norm(t, axis=1) / np.linalg.norm(s, axis=1)).mean()
    assert likeness.mean_cosine(summed(*maps)) == pytest.approx(cosine, abs=1e-5)
    assert likeness.spread(summed(*maps)) == pytest.approx(s.std(0).mean() / t.std(0).mean(), rel=1e-4)
    assert likeness.spread(summed(maps[0], maps[0] * 0.05, maps[2])) == pytest.approx(0.05, rel=1e-3)


def test_the_effective_rank_is_the_number_of_directions(maps):
    alike = np.repeat(some(3, 5, 4, 3, 1), 6, -1)
    independent = some(4, 5, 40, 30, 6)
    teacher, student = likeness.effective_rank(summed(maps[0], alike, maps[2]))
    assert student == pytest.approx(1, abs=1e-3) and 1 < teacher < 6
    wide = likeness.effective_rank(summed(independent, independent, np.ones((5, 40, 30))))
    assert wide[0] == wide[1] == pytest.approx(6, abs=0.05)


def test_shuffled_pairs_do_not_belong_together(maps):
    teacher, _, weights = maps
    found = summed(teacher, teacher, np.ones_like(weights), np.arange(5), of=likeness.shuffled)
    rolled = np.concatenate([np.roll(teacher[a:b], 1, 0) for a, b in ((0, 3), (3, 5))]).reshape(-1, 6)
    expected = np.mean([np.corrcoef(rolled[:, c], teacher.reshape(-1, 6)[:, c])[0, 1] for c in range(6)])
    assert likeness.correlation(found) == pytest.approx(expected, abs=1e-5)
    only = summed(teacher, teacher, weights, np.arange(5), batches=((0, 1),), of=likeness.shuffled)
    assert only.weight == 0 and np.isnan(likeness.correlation(only)), "one image has no other"
    same = summed(teacher, teacher, weights, np.zeros(5), of=likeness.shuffled)
    assert same.weight == 0, "other views of a patient are not of another"
    some_of_one = summed(teacher, teacher, np.ones_like(weights), np.array([0, 0, 1, 2, 2]), of=likeness.shuffled)
    assert some_of_one.weight == 2 * 12, "the first after the third of its batch, and the third after the second"


def test_nothing_can_be_said_of_no_cells(maps):
    nothing = summed(*maps[:2], np.zeros_like(maps[2]))
    values = [f(nothing) for f in (likeness.correlation, likeness.mean_cosine, likeness.spread)]
    assert np.isnan([*values, *likeness.effective_rank(nothing)]).all()
