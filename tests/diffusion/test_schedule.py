"""Noise schedules: known values, identities between the predictions, bad settings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.diffusion import schedule
from elk_jax.diffusion.samplers import SamplerConfig
from elk_jax.diffusion.schedule import make_schedule
from elk_jax.diffusion.scheduler_config import read_sampler, read_schedule
from tests.refusals import refused

T = jnp.array([0, 3, 500, 999])
X0, NOISE = (np.random.RandomState(i).standard_normal((4, 2, 2, 3)) for i in (0, 1))


@pytest.mark.parametrize("name", schedule.NAMES)
@pytest.mark.parametrize("zero", [False, True])
def test_schedules_fall_from_near_one_towards_zero(name, zero):
    left = make_schedule(name, prediction="v", zero_terminal_snr=zero).alphas_cumprod
    assert left.dtype == np.float32 and left.shape == (1000,)
    assert 0.99 < left[0] < 1 and np.all(np.diff(left) < 0)
    assert left[-1] == 0 if zero else 0 < left[-1] < 0.01


def test_stable_diffusions_schedule_by_hand():
    left = make_schedule().alphas_cumprod
    assert left[0] == pytest.approx(1 - 0.00085) and left[-1] == pytest.approx(0.0047, abs=1e-4)
    second = ((0.00085**0.5 * 998 + 0.012**0.5) / 999) ** 2
    assert left[1] == pytest.approx((1 - 0.00085) * (1 - second), rel=1e-6)


def test_zero_terminal_snr_keeps_the_first_step():
    plain, zero = make_schedule(prediction="v"), make_schedule(prediction="v", zero_terminal_snr=True)
    assert zero.alphas_cumprod[0] == plain.alphas_cumprod[0]
    assert float(schedule.snr(zero, jnp.array(999))) == 0


@pytest.mark.parametrize("prediction", schedule.PREDICTIONS)
def test_the_true_answer_gives_image_and_noise_back(prediction):
    training = make_schedule(prediction=prediction)
    with jax.enable_x64(True):
        x0, noise = jnp.asarray(X0), jnp.asarray(NOISE)
        x_t = schedule.add_noise(training, x0, noise, T)
        answer = schedule.target(training, x0, noise, T)
        assert x_t.dtype == jnp.float64
        rates = schedule.rates(training, T, x_t)
        np.testing.assert_allclose(schedule.x0_of(prediction, answer, x_t, *rates), X0, atol=1e-12)
        np.testing.assert_allclose(schedule.epsilon_of(prediction, answer, x_t, *rates), NOISE, atol=1e-11)


def test_noise_keeps_the_variance():
    training = make_schedule()
    signal, noise_rate = schedule.rates(training, T, jnp.asarray(X0, jnp.float32))
    assert signal.shape == (4, 1, 1, 1)
    np.testing.assert_allclose(signal**2 + noise_rate**2, 1, rtol=1e-6)
    np.testing.assert_allclose(schedule.snr(training, T), jnp.squeeze(signal**2 / noise_rate**2), rtol=1e-5)


def test_bfloat16_images_keep_float32_arithmetic():
    training = make_schedule()
    x0, noise = jnp.asarray(X0, jnp.bfloat16), jnp.asarray(NOISE, jnp.bfloat16)
    x_t = jax.jit(lambda x, e: schedule.add_noise(training, x, e, T))(x0, noise)
    assert x_t.dtype == jnp.float32
    wide = schedule.add_noise(training, x0.astype(jnp.float32), noise.astype(jnp.float32), T)
    np.testing.assert_allclose(x_t, wide, atol=1e-6)


@pytest.mark.parametrize(
    "settings, where, word",
    [
        ({"name": "quadratic"}, "name", "'quadratic'"),
        ({"prediction": "score"}, "prediction", "'score'"),
        ({"zero_terminal_snr": True}, "zero_terminal_snr", "epsilon"),
        ({"beta_end": 1.5}, "beta_end", 1.5),
        ({"beta_start": -1.0}, "beta_start", -1.0),
        ({"steps": 1}, "steps", 1),
        ({"betas": [0.1, 2.5], "steps": 2}, "betas", 2.5),
    ],
)
def test_bad_settings_are_refused(settings, where, word):
    with refused(word, where=where):
        make_schedule(**settings)


STABLE_DIFFUSION_15 = {  # its scheduler_config.json
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def test_schedules_are_read_as_diffusers_writes_them():
    training = read_schedule(STABLE_DIFFUSION_15)
    np.testing.assert_array_equal(training.alphas_cumprod, make_schedule().alphas_cumprod)
    training = read_schedule({**STABLE_DIFFUSION_15, "trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3})
    np.testing.assert_allclose(training.alphas_cumprod, [0.9, 0.72, 0.504], rtol=1e-6)


@pytest.mark.parametrize("betas", [[], [0.1, 0.2]])
def test_a_beta_for_each_step(betas):
    with refused(f"{len(betas)} betas", 1000, where="scheduler_config.json.betas"):
        read_schedule({**STABLE_DIFFUSION_15, "trained_betas": betas})


@pytest.mark.parametrize(
    "change, words",
    [
        ({"beta_schedule": "sigmoid"}, ["beta_schedule 'sigmoid'"]),
        ({"prediction_type": "flow_prediction"}, ["prediction_type 'flow_prediction'"]),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, ["FlowMatchEulerDiscreteScheduler"]),
        ({"_class_name": ["DDIMScheduler"]}, ["DDIMScheduler"]),
        ({"rescale_betas_zero_snr": True}, ["rescale_betas_zero_snr", "PNDMScheduler"]),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, ["timestep_type 'continuous'"]),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, ["use_flow_sigmas True"]),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, ["variance_type 'learned_range'"]),
        ({"snr_shift_scale": 3.0}, ["snr_shift_scale 3.0"]),
        *(({"num_train_timesteps": value}, ["num_train_timesteps"]) for value in ("1000", 1000.0, True, 1, 10**12)),
        *(({"beta_end": value}, ["beta_end"]) for value in ("0.01", float("nan"), None, [0.1])),
        *(({"trained_betas": value}, ["trained_betas"]) for value in (["a"], 0.1, [[0.1]])),
    ],
)
def test_unsupported_scheduler_configs_are_named(change, words):
    with refused(*words, where="scheduler_config.json"):
        read_schedule({**STABLE_DIFFUSION_15, **change})


DPM, DDIM = "DPMSolverMultistepScheduler", "DDIMScheduler"


@pytest.mark.parametrize(
    "kind, key, value",
    [
        ("PNDMScheduler", "", None),
        (DPM, "solver_order", 4),
        (DPM, "solver_order", True),
        (DPM, "solver_type", "logrho"),
        (DPM, "algorithm_type", "sde-dpmsolver++"),
        (DPM, "final_sigmas_type", "last"),
        (DPM, "timestep_spacing", "even"),
        (DPM, "use_beta_sigmas", True),
        (DPM, "use_exponential_sigmas", True),
        (DPM, "use_lu_lambdas", True),
        (DPM, "lambda_min_clipped", "-5.1"),
        (DPM, "euler_at_final", 1),
        (DPM, "thresholding", True),
        (DDIM, "thresholding", True),
        (DDIM, "steps_offset", 0.5),
    ],
)
def test_what_no_sampler_does_is_refused_by_class_and_key(kind, key, value):
    with refused(kind, key, where="scheduler_config.json"):
        read_sampler({"_class_name": kind, key: value}, 20)


def test_samplers_are_read_with_the_defaults_of_their_class():
    assert read_sampler({"_class_name": DPM, "lambda_min_clipped": float("-inf")}, 20) == SamplerConfig(steps=20)
    ddim = SamplerConfig(name="ddim", steps=20, spacing="leading", clip=1.0)
    assert read_sampler({"_class_name": DDIM, "dynamic_thresholding_ratio": 0.9}, 20) == ddim
