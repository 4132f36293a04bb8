"""Brownian bridge: ends, marginals, the paper's posterior, exact recovery."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.diffusion import bridge
from elk_jax.diffusion.bridge import Bridge
from tests.refusals import refused

SHAPE = (2, 4, 4, 1)
X0, Y, NOISE = (jnp.asarray(np.random.RandomState(i).standard_normal(SHAPE), jnp.float32) for i in range(3))


def test_variance_is_an_arch():
    variance = Bridge(1000, 1.0).variance()
    assert variance[0] == variance[-1] == 0 and variance.argmax() == 500 and variance.max() == pytest.approx(0.5)
    assert np.all(np.diff(variance[:501]) > 0) and np.all(np.diff(variance[500:]) < 0)


def test_the_bridge_begins_at_x0_and_ends_at_y():
    ends = bridge.add_noise(Bridge(), X0, Y, NOISE, jnp.array([0, 1000]))
    np.testing.assert_array_equal(ends[0], X0[0])
    np.testing.assert_allclose(ends[1], Y[1], atol=1e-6)
    t = jnp.array([250, 900])
    x_t = bridge.add_noise(Bridge(), X0, Y, NOISE, t)
    np.testing.assert_allclose(x_t[0], 0.75 * X0[0] + 0.25 * Y[0] + np.sqrt(2 * (0.25 - 0.0625)) * NOISE[0], atol=1e-6)
    np.testing.assert_allclose(x_t - bridge.target(Bridge(), X0, Y, NOISE, t), X0, atol=1e-6)


def test_the_plan_is_the_papers_posterior():
    """Mean of p(x_{t-1} | x_t, x0, y), written as in eq. 8 and 9 of the paper."""
    whole = Bridge(50, 0.7)
    table = bridge.plan(whole, 50)
    m, d = whole.mean_share(), whole.variance()
    for row, t in enumerate(range(50, 0, -1)):
        if t == 50:
            continue  # d_T = 0
        step = d[t] - d[t - 1] * (1 - m[t]) ** 2 / (1 - m[t - 1]) ** 2
        assert table.keep[row] == pytest.approx(d[t - 1] / d[t] * (1 - m[t]) / (1 - m[t - 1]))
        assert table.clean[row] == pytest.approx((1 - m[t - 1]) * step / d[t])
        assert table.end[row] == pytest.approx(m[t - 1] - m[t] * (1 - m[t]) / (1 - m[t - 1]) * d[t - 1] / d[t])
        assert table.fresh[row] == pytest.approx(np.sqrt(step * d[t - 1] / d[t]))


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_every_step_has_the_bridges_marginals(eta):
    whole = Bridge(100, 2.0)
    table = bridge.plan(whole, 7, eta)
    variance = 0.0
    after = [*table.t[1:], 0]
    for row in range(7):
        m, m_next = whole.mean_share()[table.t[row]], whole.mean_share()[after[row]]
        variance = table.keep[row] ** 2 * variance + table.fresh[row] ** 2
        assert variance == pytest.approx(whole.variance()[after[row]], abs=1e-12)
        assert table.keep[row] * (1 - m) + table.clean[row] == pytest.approx(1 - m_next)
        assert table.keep[row] * m + table.end[row] == pytest.approx(m_next, abs=1e-12)


def test_a_perfect_denoiser_gives_the_image_back():
    make = jax.jit(lambda key: bridge.sample(lambda x, t: x - X0, Bridge(), Y, key, steps=20))
    np.testing.assert_allclose(make(jax.random.key(0)), X0, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_gaussian_pairs_come_out_with_their_mean_and_variance(eta):
    """x0 = 0.5 y + 0.3 e: the best answer is linear, so mean and variance of what comes out follow from the plan."""
    y, deviation = 0.8, 0.3
    errors = []
    for steps in (1000, 4000):
        whole = Bridge(steps)
        mean, variance = y, 0.0
        for row in (bridge.BridgePlan(*columns) for columns in zip(*bridge.plan(whole, steps, eta))):
            m, d = whole.mean_share()[row.t], whole.variance()[row.t]
            gain = (1 - m) * deviation**2 / ((1 - m) ** 2 * deviation**2 + d) if m < 1 else 0.0
            x0 = 0.5 * y + gain * (mean - (1 - m) * 0.5 * y - m * y)
            mean = row.keep * mean + row.clean * x0 + row.end * y
            variance = (row.keep + row.clean * gain) ** 2 * variance + row.fresh**2
        assert mean == pytest.approx(0.5 * y, abs=1e-9)
        errors.append(abs(np.sqrt(variance) - deviation))
    assert errors[0] < 0.011 and errors[1] < errors[0] / 2.5


def test_bad_settings_are_refused():
    with refused(1, where="steps"):
        Bridge(1)
    with refused(-1, where="max_variance"):
        Bridge(10, -1)
    with refused(11, 10, where="steps"):
        bridge.plan(Bridge(10), 11)
    with refused(1.5, where="eta"):
        bridge.plan(Bridge(10), 5, 1.5)
