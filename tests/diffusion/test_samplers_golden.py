"""Step by step the images of diffusers' PyTorch schedulers; made by tests/golden/make_diffusion_schedulers.py."""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.diffusion import samplers, schedule
from elk_jax.diffusion.scheduler_config import read_sampler, read_schedule
from tests.refusals import refused

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
spec = importlib.util.spec_from_file_location("denoiser", GOLDEN / "denoiser.py")
denoiser = importlib.util.module_from_spec(spec)
spec.loader.exec_module(denoiser)
STORED = json.loads((GOLDEN / "diffusion_schedulers.json").read_text())
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "diffusion_schedulers.npz") as arrays:
        return dict(arrays)


@partial(jax.jit, static_argnums=(0, 1))
def one_step(prediction, clip, row, x, x0_before, x0_earlier, fresh):
    t = jnp.full(x.shape[:1], row.t)
    output = denoiser.function(x, t[0].astype(x.dtype), jnp.tanh, jnp.roll, jnp)
    return samplers.step(prediction, row, x, output, x0_before, fresh, x0_earlier, clip=clip)


def case_name(case):
    config = case["config"]
    wanted = ("prediction_type", "timestep_spacing", "use_karras_sigmas", "final_sigmas_type", "solver_order")
    parts = [config["_class_name"].removesuffix("Scheduler"), *(str(config[key]) for key in wanted if key in config)]
    return f"{case['name']}-{'-'.join(parts)}-{case['steps']}-{case['eta']}"


@pytest.mark.parametrize("case", STORED["cases"], ids=case_name)
def test_every_step_equals_diffusers(case, golden):
    training, config = read_schedule(case["config"]), read_sampler(case["config"], case["steps"], case["eta"] or 0.0)
    table = samplers.plan(training, config)
    np.testing.assert_array_equal(table.t, golden[f"{case['name']}/t"])
    x = jnp.asarray(denoiser.start())
    x0 = x0_before = jnp.zeros_like(x)
    path = []
    for index in range(len(table.t)):
        row = samplers.Plan(*(column[index].astype(np.float32) for column in table))
        fresh = denoiser.noise(index) if case["eta"] else np.zeros_like(x)
        answer = one_step(training.prediction, config.clip, row, x, x0, x0_before, fresh)
        x, x0, x0_before = *answer, x0
        path.append(np.asarray(x))
    stride = max(1, case["steps"] // 10) if case["steps"] > 20 else 1
    wanted = golden[f"{case['name']}/x"]
    np.testing.assert_allclose(np.stack(path[::stride]), wanted, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("name", STORED["schedules"])
def test_training_equals_diffusers(name, golden):
    training = read_schedule(STORED["schedules"][name])
    np.testing.assert_allclose(training.alphas_cumprod, golden[f"{name}/alphas_cumprod"], atol=1e-6, rtol=3e-6)
    x0, noise, times = denoiser.start(), denoiser.noise(0), jnp.asarray(denoiser.TIMES)
    every = jax.vmap(lambda t: schedule.add_noise(training, x0, noise, t))(times)
    np.testing.assert_allclose(every, golden[f"{name}/noisy"], atol=TOLERANCE)
    every = jax.vmap(lambda t: schedule.target(training, x0, noise, t))(times)
    np.testing.assert_allclose(every, golden[f"{name}/velocity"], atol=TOLERANCE)


@pytest.mark.parametrize("made", STORED["classes"], ids=lambda made: made["config"]["_class_name"])
def test_every_class_has_its_own_noise(made):
    """As diffusers saves it, and with all defaults left out."""
    config, kind = made["config"], made["config"]["_class_name"]
    for content in (config, {"_class_name": kind}):
        if made["alphas_cumprod"] is None:
            with refused(kind, where="scheduler_config.json"):
                read_schedule(content)
        else:
            found = read_schedule(content).alphas_cumprod[[0, 500, 999]]
            np.testing.assert_allclose(found, made["alphas_cumprod"], rtol=1e-5)


@pytest.mark.parametrize("steps", [3, 16])
def test_the_compiled_sampler_does_the_steps_of_the_third_order(steps):
    training, config = read_schedule({}), samplers.SamplerConfig(name="dpmpp_3m", steps=steps)
    denoise = lambda x, t: denoiser.function(x, t[0].astype(x.dtype), jnp.tanh, jnp.roll, jnp)
    x = jnp.asarray(denoiser.start())
    found = samplers.sample(denoise, training, config, x)
    x0 = x0_before = jnp.zeros_like(x)
    for row in zip(*samplers.plan(training, config)):
        row = samplers.Plan(*(np.float32(value) for value in row))
        x, x0, x0_before = *one_step("epsilon", None, row, x, x0, x0_before, jnp.zeros_like(x)), x0
    np.testing.assert_allclose(found, x, atol=1e-5)
