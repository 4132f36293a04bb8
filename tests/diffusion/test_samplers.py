"""Samplers: analytic cases, one compiled scan, guidance, known regions, bad settings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.diffusion import samplers, schedule
from elk_jax.diffusion.samplers import SamplerConfig, sample
from elk_jax.diffusion.schedule import make_schedule
from tests.refusals import refused

SHAPE = (2, 4, 4, 1)
X0 = jnp.asarray(np.random.RandomState(0).uniform(-1, 1, SHAPE), jnp.float32)
CONFIGS = {
    "dpm": SamplerConfig(steps=8),
    "karras": SamplerConfig(steps=8, karras=True),
    "trailing": SamplerConfig(steps=8, spacing="trailing"),
    "ddim": SamplerConfig("ddim", 8, "leading", 1),
    "ddpm": SamplerConfig("ddim", 8, "trailing", eta=1.0),
    "one": SamplerConfig(steps=1),
}


def answer_of(training, x0, x_t, t):
    """What a model answers that knows x0."""
    signal, noise_rate = schedule.rates(training, t, x_t)
    noise = (x_t - signal * x0) / noise_rate
    return schedule.target(training, x0, noise, t)


@pytest.mark.parametrize(
    "name, prediction",
    [*((name, "epsilon") for name in CONFIGS), ("dpm", "v"), ("karras", "x0"), ("ddim", "v"), ("ddpm", "x0")],
)
def test_a_perfect_denoiser_gives_the_image_back(name, prediction):
    training, config = make_schedule(prediction=prediction), CONFIGS[name]
    seen = samplers.plan(training, config)

    def denoise(x, t):
        if name != "karras":
            return answer_of(training, X0, x, t)
        row = jnp.argmin(jnp.abs(jnp.asarray(seen.t) - t[0]))  # its noise levels lie between the time steps
        signal, noise_rate = (jnp.asarray(column, x.dtype)[row] for column in (seen.signal, seen.noise_rate))
        noise = (x - signal * X0) / noise_rate
        return {"epsilon": noise, "x0": X0, "v": signal * noise - noise_rate * X0}[prediction]

    found = jax.jit(lambda key: sample(denoise, training, config, SHAPE, key))(jax.random.key(0))
    np.testing.assert_allclose(found, X0, atol=2e-5)


@pytest.mark.parametrize(
    "config, tolerance",
    [
        (SamplerConfig(steps=400), 0.01),  # its last step, from t = 2 to 0, shrinks a little
        (SamplerConfig(steps=30, karras=True), 0.01),
        (SamplerConfig("ddim", 250, "trailing"), 0.02),
        (SamplerConfig("ddim", 250, "trailing", eta=1.0), 0.03),
    ],
    ids=["dpm", "karras", "ddim", "ddpm"],
)
def test_gaussian_data_with_the_known_score_keeps_mean_and_variance(config, tolerance):
    mean, deviation = 0.7, 0.4
    training = make_schedule("scaled_linear", prediction="epsilon")

    def denoise(x, t):
        signal, noise_rate = schedule.rates(training, t, x)
        return noise_rate * (x - signal * mean) / (signal**2 * deviation**2 + noise_rate**2)

    count = 20_000
    start = np.random.RandomState(3).standard_normal(count)
    start = (start - start.mean()) / start.std()  # no sampling error in what goes in
    found = jax.jit(lambda x, key: sample(denoise, training, config, x, key))(
        jnp.asarray(start[:, None], jnp.float32), jax.random.key(1)
    )
    assert float(found.mean()) == pytest.approx(mean, abs=0.03)
    assert float(found.std()) == pytest.approx(deviation, abs=tolerance)


def test_dpm_solver_is_of_second_order():
    """For Gaussian data the exact answer is known: the error at half the steps is 4 times as large (first order: 2)."""
    training, mean, deviation = make_schedule(), 0.7, 0.4
    errors = {}
    for steps in (20, 40):
        seen = samplers.plan(training, SamplerConfig(steps=steps, karras=True, final_sigma="sigma_min"))
        for order in (1, 2):
            x, before = np.array([1.3, -0.4]), 0.0
            signal, noise_rate = seen.signal[0], seen.noise_rate[0]
            start = (x - signal * mean) / np.sqrt((signal * deviation) ** 2 + noise_rate**2)
            for row in (samplers.Plan(*columns) for columns in zip(*seen)):
                gain = row.signal * deviation**2 / ((row.signal * deviation) ** 2 + row.noise_rate**2)
                x0 = mean + gain * (x - row.signal * mean)
                x = row.keep * x + row.clean * x0 + row.before * (x0 if order == 1 else before)
                before = x0
            left = float(training.alphas_cumprod[0])
            exact = np.sqrt(left) * mean + start * np.sqrt(left * deviation**2 + 1 - left)
            errors[order, steps] = np.abs(x - exact).max()
    assert 3 < errors[2, 20] / errors[2, 40] < 5
    assert 1.7 < errors[1, 20] / errors[1, 40] < 2.3
    assert errors[2, 20] < errors[1, 40]


@pytest.mark.parametrize("name", ["dpm", "ddpm"])
def test_the_loop_is_one_scan(name):
    training, config = make_schedule(prediction="v"), CONFIGS[name]
    text = str(
        jax.make_jaxpr(lambda k: sample(lambda x, t: jnp.tanh(x), training, config, SHAPE, k))(jax.random.key(2))
    )
    assert text.count("tanh") == 1  # the model is traced once, whatever the number of steps


def test_an_image_depends_on_its_own_key_alone():
    training, config = make_schedule(), CONFIGS["ddpm"]
    keys = jax.random.split(jax.random.key(5))[jnp.array([0, 1, 0])]
    first, second, again = sample(lambda x, t: jnp.tanh(x), training, config, (3, 4, 4, 1), keys)
    np.testing.assert_array_equal(first, again)
    assert float(jnp.abs(first - second).max()) > 0.1
    with pytest.raises(ValueError, match="keys"):
        sample(lambda x, t: x, training, config, (2, 4, 4, 1), keys)


def test_bfloat16_noise_and_answers_keep_float32_arithmetic():
    training, config = make_schedule(prediction="x0"), SamplerConfig(steps=50)
    noise = jnp.asarray(np.random.RandomState(1).standard_normal(SHAPE), jnp.bfloat16)
    found = sample(lambda x, t: jnp.tanh(x).astype(jnp.bfloat16), training, config, noise)
    assert found.dtype == jnp.float32
    exact = sample(lambda x, t: jnp.tanh(x), training, config, noise.astype(jnp.float32))
    assert 0 < float(jnp.abs(found - exact).max()) < 0.02  # the answers were rounded, but no sum of theirs


def test_float64_stays_float64():
    training = make_schedule(prediction="v")
    with jax.enable_x64(True):
        x0 = jnp.asarray(X0, jnp.float64)
        found = sample(
            lambda x, t: answer_of(training, x0, x, t), training, SamplerConfig(steps=20), jnp.ones(SHAPE, jnp.float64)
        )
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, x0, atol=1e-12)


def test_gradients_and_vmap_run_through_the_scan():
    training, config = make_schedule(prediction="x0"), SamplerConfig(steps=3)

    def loss(w):
        return jnp.square(sample(lambda x, t: w * x, training, config, X0)).mean()

    gradients = jax.vmap(jax.grad(loss))(jnp.array([0.5, 0.9]))
    step = 1e-3
    numeric = (loss(0.9 + step) - loss(0.9 - step)) / (2 * step)
    assert float(gradients[1]) == pytest.approx(float(numeric), rel=1e-2)


def test_clipping_bounds_what_a_bad_denoiser_makes():
    training = make_schedule()
    config = SamplerConfig("ddim", 10, "leading", clip=1.0)
    found = sample(lambda x, t: 0.1 * x, training, config, 3 * X0)
    assert float(jnp.abs(found).max()) <= 1


def test_guidance_is_one_doubled_batch():
    batches = []

    def denoise(x, t, condition):
        batches.append(x.shape[0])
        assert t.shape == x.shape[:1]
        return x + condition["text"][:, None, None, None]

    x, t = X0, jnp.array([5, 5])
    condition, negative = {"text": jnp.array([1.0, 2.0])}, {"text": jnp.array([0.5, -1.0])}
    guided = samplers.classifier_free(denoise, condition, negative, 3.0)
    wanted = x + jnp.array([0.5 + 3 * 0.5, -1 + 3 * 3.0])[:, None, None, None]
    np.testing.assert_allclose(guided(x, t), wanted, atol=1e-5)
    np.testing.assert_allclose(samplers.classifier_free(denoise, condition, negative, 1.0)(x, t)[0], x[0] + 1)
    assert batches == [4, 2]


@pytest.mark.parametrize(
    "change, where, word",
    [
        ({"name": "euler"}, "name", "'euler'"),
        ({"spacing": "even"}, "spacing", "'even'"),
        ({"final_sigma": "max"}, "final_sigma", "'max'"),
        ({"steps": 0}, "steps", 0),
        ({"steps": 1000}, "steps", 1000),
        ({"name": "ddim", "karras": True}, "karras", "dpmpp_2m"),
        ({"eta": 0.5}, "eta", "ddim"),
        ({"name": "ddim", "eta": 2.0}, "eta", 2.0),
        ({"name": "ddim", "spacing": "leading", "steps": 1000, "steps_offset": 1}, "steps_offset", 1000),
    ],
)
def test_bad_settings_are_refused(change, where, word):
    with refused(word, where=where):
        samplers.plan(make_schedule(), SamplerConfig(**change))


def test_noise_without_a_key_is_refused():
    with pytest.raises(ValueError, match="rng"):
        sample(lambda x, t: x, make_schedule(), CONFIGS["dpm"], SHAPE)
    with pytest.raises(ValueError, match="rng"):
        sample(lambda x, t: x, make_schedule(), CONFIGS["ddpm"], X0)
