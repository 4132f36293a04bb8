"""Losses: by hand, by the equivalence of the predictions, and under padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.diffusion import losses, schedule
from elk_jax.diffusion.schedule import make_schedule

T = jnp.array([5, 200, 700, 990])
X0, NOISE, WRONG = (jnp.asarray(np.random.RandomState(i).standard_normal((4, 3, 3, 2)), jnp.float32) for i in range(3))


def test_squared_error_by_hand():
    prediction = jnp.zeros((2, 1, 2, 1)).at[1].set(3.0)
    loss, per_example = losses.denoising_loss(prediction, jnp.ones((2, 1, 2, 1)))
    np.testing.assert_allclose(per_example, [1, 4])
    assert float(loss) == 2.5


def test_min_snr_by_hand():
    training = make_schedule(prediction="v")
    ratio = np.asarray(schedule.snr(training, T))
    assert ratio[0] > 5 > ratio[1]
    np.testing.assert_allclose(losses.min_snr_weight(training, T), np.minimum(ratio, 5) / (ratio + 1), rtol=1e-6)
    assert np.all(np.asarray(losses.min_snr_weight(make_schedule(), T))[1:] == 1)


@pytest.mark.parametrize("prediction", schedule.PREDICTIONS)
def test_min_snr_is_the_same_loss_for_every_prediction(prediction):
    """A wrong x0, told as epsilon, v or x0, costs min(SNR, gamma) times its squared error."""
    training = make_schedule(prediction=prediction)
    x_t = schedule.add_noise(training, X0, NOISE, T)
    signal, noise_rate = schedule.rates(training, T, x_t)
    told = schedule.target(training, WRONG, (x_t - signal * WRONG) / noise_rate, T)
    weight = losses.min_snr_weight(training, T)
    loss, _ = losses.denoising_loss(told, schedule.target(training, X0, NOISE, T), weight=weight)
    wanted = jnp.minimum(schedule.snr(training, T), 5) * jnp.square(WRONG - X0).mean((1, 2, 3))
    assert float(loss) == pytest.approx(float(wanted.mean()), rel=1e-4)


def test_zero_terminal_snr_has_finite_weights():
    training = make_schedule(prediction="v", zero_terminal_snr=True)
    assert np.isfinite(losses.min_snr_weight(training, jnp.arange(1000))).all()


def test_mask_weight_counts_pixels_inside():
    mask = jnp.zeros((2, 3, 3, 1)).at[0, 1, 1].set(1).at[1, :2].set(1)
    error = jnp.square(WRONG - X0)[:2]
    _, inside = losses.denoising_loss(WRONG[:2], X0[:2], pixel_weight=losses.mask_weight(mask))
    np.testing.assert_allclose(inside, [error[0, 1, 1].mean(), error[1, :2].mean()], rtol=1e-5)
    _, alike = losses.denoising_loss(WRONG[:2], X0[:2], pixel_weight=losses.mask_weight(mask, outside=1.0))
    np.testing.assert_allclose(alike, error.mean((1, 2, 3)), rtol=1e-5)
    _, quarter = losses.denoising_loss(WRONG[:2], X0[:2], pixel_weight=losses.mask_weight(mask, outside=0.25))
    np.testing.assert_allclose(
        quarter[0], (error[0, 1, 1].sum() + 0.25 * (error[0].sum() - error[0, 1, 1].sum())) / (3 * 2), rtol=1e-5
    )


def test_an_empty_mask_gives_no_loss_and_no_nan():
    def loss(x):
        return losses.denoising_loss(x, X0, pixel_weight=losses.mask_weight(jnp.zeros((4, 3, 3, 1))))[0]

    value, gradient = jax.value_and_grad(loss)(WRONG)
    assert float(value) == 0 and not np.any(gradient)


def test_prior_preservation_is_a_sum_of_two_means():
    is_prior = jnp.array([False, True, True, True])
    error = jnp.square(WRONG - X0).mean((1, 2, 3))
    loss, _ = losses.denoising_loss(WRONG, X0, weight=losses.prior_weight(is_prior, 0.3))
    assert float(loss) == pytest.approx(float(error[0] + 0.3 * error[1:].mean()), rel=1e-5)
    loss, _ = losses.denoising_loss(WRONG, X0, weight=losses.prior_weight(jnp.zeros(4, bool)))
    assert float(loss) == pytest.approx(float(error.mean()), rel=1e-5)
    valid = jnp.array([True, True, True, False])
    weight = losses.prior_weight(is_prior, 0.3, valid)
    loss, _ = losses.denoising_loss(WRONG, X0, weight=weight, valid=valid)
    assert float(loss) == pytest.approx(float(error[0] + 0.3 * error[1:3].mean()), rel=1e-5)


@pytest.mark.parametrize("share", [0.2, 0.0, 1.0])
def test_the_prior_by_its_expected_share_weights_as_much_over_many_batches(share):
    is_prior = jnp.arange(1000) < 1000 * share
    weight = losses.expected_prior_weight(is_prior, 0.3, share)
    assert float(weight.sum()) / 1000 == pytest.approx((share < 1) + 0.3 * (share > 0), rel=1e-5)
    values = jnp.linspace(1, 2, 1000)
    exact = (values * losses.prior_weight(is_prior, 0.3)).mean()
    assert float((values * weight).mean()) == pytest.approx(float(exact), rel=1e-5)


def test_padded_examples_do_not_count_even_as_nan():
    valid = jnp.array([True, True, False, True])
    broken = WRONG.at[2].set(jnp.nan)
    loss, per_example = losses.denoising_loss(broken, X0, valid=valid)
    error = np.square(WRONG - X0).mean((1, 2, 3))
    assert float(loss) == pytest.approx(error[[0, 1, 3]].mean(), rel=1e-5) and float(per_example[2]) == 0
    assert float(losses.denoising_loss(broken, X0, valid=jnp.zeros(4, bool))[0]) == 0


def test_noise_offset_moves_the_mean_of_every_channel():
    key, shape = jax.random.key(0), (200, 8, 8, 2)
    plain, moved = losses.draw_noise(key, shape), losses.draw_noise(key, shape, offset=0.5)
    moves = np.asarray(moved - plain)
    np.testing.assert_allclose(moves, np.broadcast_to(moves[:, :1, :1], shape), atol=1e-6)
    assert moves.std() == pytest.approx(0.5, abs=0.05)


def test_bfloat16_answers_are_compared_in_float32():
    loss, _ = losses.denoising_loss(WRONG.astype(jnp.bfloat16), X0.astype(jnp.bfloat16))
    assert loss.dtype == jnp.float32
    with jax.enable_x64(True):
        loss, _ = losses.denoising_loss(jnp.zeros((1, 1, 1, 1), jnp.float64), jnp.ones((1, 1, 1, 1)))
        assert loss.dtype == jnp.float64
