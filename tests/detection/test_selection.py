"""The selection of TPUs, by counting, against `jax.lax.top_k`, which every other platform uses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.detection.selection import SORTED_WHOLE, by_counting, choose, top_k
from tests.tpu import compiled, tpu_mesh

RNG = np.random.default_rng(0)
N = 700
SCORES = [  # [9, N]: one image each
    RNG.normal(size=N),
    RNG.integers(-5, 5, N) / 4,  # with ties
    np.zeros(N),
    np.where(RNG.random(N) < 0.9, -np.inf, RNG.normal(size=N)),
    np.full(N, -np.inf),
    RNG.normal(size=N) * 10.0 ** RNG.integers(-37, 37, N),
    np.where(np.arange(N) > N - 4, 1.0, -1.0),  # the best in the last row of lanes
    np.where(np.arange(N) < 3, 1.0, -1.0),
    -np.arange(N) // 128,
]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("k", [1, 3, 350, N - 1])
def test_counting_chooses_what_sorting_does(k, dtype):
    scores = jnp.asarray(np.stack(SCORES), dtype)
    found = jax.vmap(lambda one: by_counting(one, k))(scores)
    assert np.array_equal(found, np.sort(jax.lax.top_k(scores, k)[1], -1))


@pytest.mark.parametrize("count", [5, 128])
def test_a_row_of_lanes_or_less(count):
    scores = jnp.asarray(SCORES[0][:count], jnp.float32)
    assert np.array_equal(by_counting(scores, 2), np.sort(jax.lax.top_k(scores, 2)[1]))


@pytest.mark.parametrize("count", [10, SORTED_WHOLE + 1])
def test_here_the_choice_is_that_of_jax(count):
    scores = jnp.asarray(RNG.integers(0, 50, count), jnp.float32)
    best, index = jax.lax.top_k(scores, 7)
    assert np.array_equal(choose(scores, 7), index)
    assert all(map(np.array_equal, top_k(scores, 7), (best, index)))


def test_a_tpu_sorts_the_chosen_alone():
    mesh = tpu_mesh("v5e:1x1")
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    scores = jax.ShapeDtypeStruct((2, 20_000), jnp.float32, sharding=replicated)
    text = compiled(jax.jit(jax.vmap(lambda one: top_k(one, 300))).lower(scores)).as_text()
    sorts = [line for line in text.splitlines() if " sort(" in line]
    assert sorts and not any("20000" in line for line in sorts)
