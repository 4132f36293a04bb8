"""Noise of private sums: normal far into its tails, and rounded so that no candidate for a sum can be ruled out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from elk_jax.privacy import noise

COUNT = 1 << 22


@pytest.fixture(scope="module")
def drawn():
    return np.asarray(noise.gaussian(jax.random.key(0), COUNT), np.float64)


def test_numbers_are_normal_far_into_their_tails(drawn):
    assert stats.kstest(drawn, "norm").pvalue > 1e-3
    for low in (2.0, 3.0, 4.0, 4.5):
        for found in (np.sum(drawn > low), np.sum(drawn < -low)):
            expected = COUNT * stats.norm.sf(low)
            assert abs(found - expected) < 4 * np.sqrt(expected)


def test_numbers_are_not_a_few_values_that_recur(drawn):
    """Float32 has 8 million values from 3 to 6, of which 11,000 draws share a few. Of 23 bits, 22,000 are beyond 3."""
    tail = np.abs(drawn[np.abs(drawn) > 3])
    assert len(tail) > 10_000 and len(np.unique(tail)) > 0.99 * len(tail)


def test_the_two_numbers_of_a_pair_are_unrelated(drawn):
    one, other = drawn.reshape(2, -1)
    for power in (1, 2):
        assert abs(np.corrcoef(one**power, other**power)[0, 1]) < 4 / np.sqrt(COUNT / 2)


@pytest.mark.parametrize("first, radius", [(0, 7.4), (2**32 - 1, 0.0)])
def test_the_ends_of_the_bits_are_finite(monkeypatch, first, radius):
    bits = jnp.array([[first], [255 if first else 0]], jnp.uint32)
    monkeypatch.setattr(jax.random, "bits", lambda *_: bits)
    found = np.asarray(noise.gaussian(jax.random.key(0), 2))
    assert np.linalg.norm(found) == pytest.approx(radius, abs=0.2)


def test_a_noisy_sum_of_any_shape_is_on_a_grid_that_hides_the_digits_of_the_sum():
    rng = np.random.default_rng(0)
    for total, deviation in ((rng.normal(size=(3, 5)), 2.5), (np.float64(0.3), 0.7), (1000 * rng.normal(size=3), 0.3)):
        found = np.asarray(jax.jit(noise.noisy)(total, deviation, jax.random.key(1)), np.float64)
        assert found.shape == total.shape
        np.testing.assert_allclose(found / (deviation / 256), np.round(found / (deviation / 256)), rtol=1e-6)
        np.testing.assert_array_less(np.abs(found - total), 6 * deviation)


def test_the_grid_does_not_move_the_mean_or_the_deviation():
    total = np.full(1_000_000, 0.123456)
    found = np.asarray(noise.noisy(total, 3.0, jax.random.key(2)), np.float64)
    assert found.mean() == pytest.approx(0.123456, abs=4 * 3 / 1000) and found.std() == pytest.approx(3.0, rel=3e-3)


def test_without_noise_a_sum_is_left_alone():
    total = np.float32([0.1, -3.3])
    np.testing.assert_array_equal(jax.jit(noise.noisy)(total, jnp.float32(0), jax.random.key(0)), total)
