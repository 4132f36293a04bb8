"""Losses by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.gan import objectives
from elk_jax.gan.objectives import LeastSquares, NonSaturating, Wasserstein
from tests.refusals import refused

REAL, MADE, KEY = jnp.array([0.0, 2.0]), jnp.array([1.0, -1.0]), jax.random.key(3)


def logistic(x):
    return 1 / (1 + np.exp(-x))


def test_cross_entropy_is_that_of_the_probability():
    for target in (0.0, 0.3, 1.0, 1.2):
        p = logistic(0.7)
        expected = -(target * np.log(p) + (1 - target) * np.log(1 - p))
        np.testing.assert_allclose(objectives.cross_entropy(jnp.array(0.7), target), expected, rtol=1e-5)


def test_without_smoothing_the_discriminator_has_the_plain_cross_entropy():
    found = objectives.discriminator_loss(NonSaturating(real=(1.0, 1.0)), REAL, MADE, KEY)
    expected = -np.log(logistic(np.array([0.0, 2.0]))).mean() - np.log(1 - logistic(np.array([1.0, -1.0]))).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_only_real_patches_have_smooth_targets():
    """A real score of x adds log(1 + e^x) - t x: with the scores known, so are the targets, of real patches alone."""
    scores = jnp.ones(4000)
    found = objectives.discriminator_loss(NonSaturating(), scores, MADE, KEY)
    of_made = objectives.cross_entropy(MADE, 0.0).mean()
    target = np.log(1 + np.e) + float(of_made) - float(found)
    assert target == pytest.approx((0.7 + 1.2) / 2, abs=0.01)
    each = jax.vmap(lambda key: objectives.discriminator_loss(NonSaturating(), jnp.ones(1), MADE, key))
    targets = np.log(1 + np.e) + float(of_made) - np.asarray(each(jax.random.split(KEY, 400)))
    assert 0.7 <= targets.min() + 1e-5 < 0.72 and 1.18 < targets.max() < 1.2 + 1e-5


def test_the_generator_wants_to_be_taken_for_real():
    expected = -np.log(logistic(np.array([1.0, -1.0]))).mean()
    np.testing.assert_allclose(objectives.generator_loss(NonSaturating(), MADE), expected, rtol=1e-5)
    assert objectives.generator_loss(LeastSquares(), MADE) == pytest.approx((0 + 4) / 2 / 2)
    assert objectives.generator_loss(Wasserstein(), jnp.array([1.0, 2.0])) == -1.5


def test_least_squares_and_wasserstein_by_hand():
    assert objectives.discriminator_loss(LeastSquares(), REAL, MADE, KEY) == pytest.approx((1 + 1) / 4 + (1 + 1) / 4)
    assert objectives.discriminator_loss(Wasserstein(), REAL, MADE, KEY) == -1.0


def test_the_penalty_is_on_slopes_other_than_one():
    """Of a linear score the slope is the norm of its weights, wherever it is taken; of a square, between both sets."""
    weights = jnp.zeros((4, 4, 1)).at[0, 0].set(3.0).at[1, 2].set(4.0)
    real, made = jnp.ones((5, 4, 4, 1)), jnp.zeros((5, 4, 4, 1))
    linear = lambda x: (x * weights).sum((1, 2, 3))
    np.testing.assert_allclose(objectives.slope_penalty(linear, real, made, KEY), (5 - 1) ** 2, rtol=1e-5)
    square = lambda x: (x[:, 0, 0, 0] ** 2) / 2
    share = np.sqrt([objectives.slope_penalty(square, real[:1], made[:1], key) for key in jax.random.split(KEY, 50)])
    assert (share >= 0).all() and (share <= 1).all() and np.ptp(share) > 0.8
    gradient = jax.grad(lambda s: objectives.slope_penalty(lambda x: s * linear(x), real, made, KEY))(1.0)
    np.testing.assert_allclose(gradient, 2 * (5 - 1) * 5, rtol=1e-4)


@pytest.mark.parametrize("real", [(1.2, 0.7), (0.7, 3.0), (-1.0, 0.5)])
def test_impossible_targets_are_refused(real):
    with refused("real", where="real" if real[0] >= 0 else ""):
        NonSaturating(real=real)
