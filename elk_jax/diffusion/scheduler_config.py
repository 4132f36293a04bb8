"""Convert a scheduler_config.json of diffusers to our Schedule and SamplerConfig, and back, by pure functions.

The class named in the file selects the sampler if it is DDIM or DPM-Solver++ 2M. For every other class (PNDM, Euler,
UniPC, ...) the noise schedule and the prediction are read, and DPM-Solver++ 2M samples with the settings that carry
over, as with `DPMSolverMultistepScheduler.from_config` in diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elk_jax.diffusion.samplers import SamplerConfig
from elk_jax.diffusion.schedule import Schedule, make_schedule
from elk_jax.errors import UserError

SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
DDIM, DPM = "DDIMScheduler", "DPMSolverMultistepScheduler"
OTHER_METHODS = ("use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas")


def read_scheduler_config(
    config: Mapping[str, Any], where: object = "scheduler_config.json", steps: int = 50
) -> tuple[Schedule, SamplerConfig]:
    """(training schedule, sampler with `steps` steps). Absent keys take the defaults of diffusers.

    Raises UserError for schedules, predictions and options that are not supported.
    """
    schedule = read_schedule(config, where)
    kind = config.get("_class_name", DPM)
    if config.get("thresholding"):
        raise UserError("dynamic thresholding is not supported", where=where, todo="set thresholding to false")
    if kind == DDIM:
        return schedule, SamplerConfig(
            name="ddim",
            steps=steps,
            spacing=config.get("timestep_spacing", "leading"),
            steps_offset=config.get("steps_offset", 0),
            final_sigma="zero" if config.get("set_alpha_to_one", True) else "sigma_min",
            clip=config.get("clip_sample_range", 1.0) if config.get("clip_sample", True) else None,
        )
    if kind == DPM and config.get("algorithm_type", "dpmsolver++") != "dpmsolver++":
        raise UserError(
            f"algorithm_type '{config['algorithm_type']}' is not supported", where=where, todo="use 'dpmsolver++'"
        )
    for name in OTHER_METHODS:
        if kind == DPM and config.get(name):
            raise UserError(f"{name} is not supported", where=where, todo="set it to false, or use_karras_sigmas")
    lowest = config.get("lambda_min_clipped", -float("inf"))
    return schedule, SamplerConfig(
        name="dpmpp_2m",
        steps=steps,
        spacing=config.get("timestep_spacing", "linspace"),
        steps_offset=config.get("steps_offset", 0),
        karras=bool(config.get("use_karras_sigmas", False)),
        final_sigma=config.get("final_sigmas_type", "zero"),
        lower_order_final=config.get("lower_order_final", True),
        lambda_min=None if lowest == -float("inf") else float(lowest),
    )


def read_schedule(config: Mapping[str, Any], where: object = "scheduler_config.json") -> Schedule:
    """Only the noise schedule and the prediction."""
    name, prediction = config.get("beta_schedule", "linear"), config.get("prediction_type", "epsilon")
    betas = config.get("trained_betas")
    for value, known, key in ((name, SCHEDULES, "beta_schedule"), (prediction, PREDICTIONS, "prediction_type")):
        if value not in known and not (key == "beta_schedule" and betas is not None):
            raise UserError(f"{key} '{value}' is not supported", where=where, todo=f"use one of {', '.join(known)}")
    return make_schedule(
        SCHEDULES.get(name, "linear"),
        config.get("num_train_timesteps", 1000),
        config.get("beta_start", 0.0001),
        config.get("beta_end", 0.02),
        prediction=PREDICTIONS[prediction],
        zero_terminal_snr=bool(config.get("rescale_betas_zero_snr", False)),
        betas=betas,
    )


def to_scheduler_config(schedule: Schedule, sampler: SamplerConfig) -> dict[str, Any]:
    """The dictionary that diffusers reads; `read_scheduler_config` restores both from it, except eta and steps."""
    back = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    common = {
        "_class_name": DDIM if sampler.name == "ddim" else DPM,
        "num_train_timesteps": schedule.steps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": {ours: theirs for theirs, ours in SCHEDULES.items()}.get(schedule.name, "linear"),
        "trained_betas": _betas(schedule) if schedule.name == "betas" else None,
        "prediction_type": back[schedule.prediction],
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        "timestep_spacing": sampler.spacing,
        "steps_offset": sampler.steps_offset,
    }
    if sampler.name == "ddim":
        common |= {"set_alpha_to_one": sampler.final_sigma == "zero", "clip_sample": sampler.clip is not None}
        return common | ({} if sampler.clip is None else {"clip_sample_range": sampler.clip})
    common |= {
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "solver_type": "midpoint",
        "use_karras_sigmas": sampler.karras,
        "final_sigmas_type": sampler.final_sigma,
        "lower_order_final": sampler.lower_order_final,
    }
    return common | ({} if sampler.lambda_min is None else {"lambda_min_clipped": sampler.lambda_min})


def _betas(schedule: Schedule) -> list[float]:
    left = schedule.alphas_cumprod.astype(float)
    return [float(1 - left[0]), *(1 - left[1:] / left[:-1]).tolist()]
