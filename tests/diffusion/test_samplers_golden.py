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
from elk_jax.diffusion.scheduler_config import read_schedule

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
def one_step(prediction, clip, row, x, x0_before, fresh):
    t = jnp.full(x.shape[:1], row.t)
    output = denoiser.function(x, t[0].astype(x.dtype), jnp.tanh, jnp.roll, jnp)
    return samplers.step(prediction, row, x, output, x0_before, fresh, clip=clip)


def case_name(case):
    config = case["config"]
    wanted = ("prediction_type", "timestep_spacing", "use_karras_sigmas", "final_sigmas_type")
    parts = [config["_class_name"].removesuffix("Scheduler"), *(str(config[key]) for key in wanted if key in config)]
    return f"{case['name']}-{'-'.join(parts)}-{case['steps']}-{case['eta']}"


def sampler_of(config, steps, eta):
    """Our sampler for a scheduler_config.json of diffusers."""
    if config["_class_name"] == "DDIMScheduler":
        return samplers.SamplerConfig(
            name="ddim",
            steps=steps,
            eta=eta,
            spacing=config.get("timestep_spacing", "leading"),
            steps_offset=config.get("steps_offset", 0),
            final_sigma="zero" if config.get("set_alpha_to_one", True) else "sigma_min",
            clip=config.get("clip_sample_range", 1.0) if config.get("clip_sample", True) else None,
        )
    return samplers.SamplerConfig(
        steps=steps,
        spacing=config.get("timestep_spacing", "linspace"),
        steps_offset=config.get("steps_offset", 0),
        karras=config.get("use_karras_sigmas", False),
        final_sigma=config.get("final_sigmas_type", "zero"),
        lower_order_final=config.get("lower_order_final", True),
        lambda_min=config.get("lambda_min_clipped"),
    )


@pytest.mark.parametrize("case", STORED["cases"], ids=case_name)
def test_every_step_equals_diffusers(case, golden):
    training, config = read_schedule(case["config"]), sampler_of(case["config"], case["steps"], case["eta"] or 0.0)
    table = samplers.plan(training, config)
    np.testing.assert_array_equal(table.t, golden[f"{case['name']}/t"])
    x = jnp.asarray(denoiser.start())
    x0, path = jnp.zeros_like(x), []
    for index in range(len(table.t)):
        row = samplers.Plan(*(column[index].astype(np.float32) for column in table))
        fresh = denoiser.noise(index) if case["eta"] else np.zeros_like(x)
        x, x0 = one_step(training.prediction, config.clip, row, x, x0, fresh)
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
