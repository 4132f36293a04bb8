"""diffusers' scheduler_config.json: the noise schedule of training, and the sampler of the pipeline.

An absent key has the default of its scheduler's class. A key at its default requires nothing. A setting that would give
a different schedule or different pictures than here is refused, with the names of class and key.

Source: the signatures and the `set_timesteps` and `step` of the schedulers of diffusers 0.42.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from elk_jax.diffusion.samplers import SamplerConfig
from elk_jax.diffusion.schedule import MOST_STEPS, Schedule, make_schedule
from elk_jax.errors import UserError
from elk_jax.fields import Between, OneOf, described, fits

SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}

_DDPM = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
_ZERO_SNR = _DDPM | {"rescale_betas_zero_snr": False}
_LATENT = _DDPM | {"beta_start": 0.00085, "beta_end": 0.012}
_CONSISTENCY = _LATENT | {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": False}

NOISE: Mapping[str, Mapping[str, Any]] = {
    **{f"{name}Scheduler": _ZERO_SNR for name in ("DDPM", "DDPMParallel", "DDIM", "DDIMParallel", "DDIMInverse")},
    **{f"{name}Scheduler": _ZERO_SNR for name in ("DPMSolverMultistep", "UniPCMultistep")},
    **{f"{name}Scheduler": _ZERO_SNR for name in ("EulerDiscrete", "EulerAncestralDiscrete")},
    **{f"{name}Scheduler": _DDPM for name in ("PNDM", "DEISMultistep", "SASolver", "LMSDiscrete")},
    **{f"{name}Scheduler": _DDPM for name in ("DPMSolverSinglestep", "DPMSolverMultistepInverse")},
    **{f"{name}Scheduler": _LATENT for name in ("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete")},
    "DPMSolverSDEScheduler": _LATENT,
    **{f"{name}Scheduler": _CONSISTENCY for name in ("LCM", "TCD")},
}
"""The keys, with defaults, that define the training noise, for every class with the noise of DDPM."""

_TYPES: Mapping[str, Any] = {
    "num_train_timesteps": Annotated[int, Between(2, MOST_STEPS)],
    "beta_start": float,
    "beta_end": float,
    "beta_schedule": Annotated[str, OneOf(tuple(SCHEDULES))],
    "trained_betas": tuple[float, ...] | None,
    "prediction_type": Annotated[str, OneOf(tuple(PREDICTIONS))],
    "rescale_betas_zero_snr": bool,
}

_SAME_NOISE: Mapping[str, tuple[Any, ...]] = {
    "timestep_type": ("discrete",),
    "use_flow_sigmas": (False,),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
    "snr_shift_scale": (),
}
"""Values of other keys that do not affect the training noise or the model's output."""

_SPACING = Literal["linspace", "leading", "trailing"]
_DRAWING: Mapping[str, Mapping[str, tuple[Any, Any]]] = {
    "DDIMScheduler": {
        "timestep_spacing": ("leading", _SPACING),
        "steps_offset": (0, int),
        "set_alpha_to_one": (True, bool),
        "clip_sample": (True, bool),
        "clip_sample_range": (1.0, float),
        "thresholding": (False, Literal[False]),
    },
    "DPMSolverMultistepScheduler": {
        "timestep_spacing": ("linspace", _SPACING),
        "steps_offset": (0, int),
        "solver_order": (2, Literal[1, 2, 3]),
        "solver_type": ("midpoint", Literal["midpoint", "heun"]),
        "algorithm_type": ("dpmsolver++", Literal["dpmsolver++"]),
        "lower_order_final": (True, bool),
        "euler_at_final": (False, bool),
        "final_sigmas_type": ("zero", Literal["zero", "sigma_min"]),
        "lambda_min_clipped": (-math.inf, Any),
        "use_karras_sigmas": (False, bool),
        "use_exponential_sigmas": (False, Literal[False]),
        "use_beta_sigmas": (False, Literal[False]),
        "use_lu_lambdas": (False, Literal[False]),
        "thresholding": (False, Literal[False]),
    },
}
"""Classes that draw here as in diffusers: the keys that change the pictures, with default and possible types."""


def read_schedule(config: Mapping[str, Any], where: object = "scheduler_config.json") -> Schedule:
    """The training schedule and the prediction type.

    UserError for a class whose noise is not that of DDPM (flow matching, EDM), and for a schedule or a prediction that
    is not supported.
    """
    kind = config.get("_class_name")
    defaults = _ZERO_SNR if kind is None else NOISE.get(kind) if isinstance(kind, str) else None
    if defaults is None:
        todo = "use a model that was trained with the noise of DDPM, with one of its schedulers: DDIMScheduler"
        raise UserError(f"the scheduler {kind} is not supported: its noise differs", where=where, todo=todo)
    for key in sorted(set(_ZERO_SNR) - set(defaults)):
        if config.get(key):
            what = f"{key} {config[key]!r}, which {kind} does not know"
            raise UserError(what, where=where, todo="use DDIMScheduler, which knows it, or set it to false")
    for key, same in _SAME_NOISE.items():
        if key in config and config[key] not in same:
            raise _unsupported(kind, key, config[key], "use a model without it", where)
    found = _values(config, {key: (default, _TYPES[key]) for key, default in defaults.items()}, kind, where)
    try:
        return make_schedule(
            SCHEDULES[found["beta_schedule"]],
            found["num_train_timesteps"],
            found["beta_start"],
            found["beta_end"],
            prediction=PREDICTIONS[found["prediction_type"]],
            zero_terminal_snr=found.get("rescale_betas_zero_snr", False),
            betas=found["trained_betas"],
        )
    except UserError as error:
        raise error.within(str(where)) from error


def draws_here(config: Mapping[str, Any]) -> bool:
    """Whether the scheduler's class draws here as in diffusers, so that `read_sampler` reads it."""
    return config.get("_class_name") in _DRAWING


def read_sampler(
    config: Mapping[str, Any], steps: int, eta: float = 0.0, where: object = "scheduler_config.json"
) -> SamplerConfig:
    """The sampler that draws the pictures of the scheduler. eta: of DDIM, which diffusers takes with every call.

    UserError for classes other than DDIM and multistep DPM-Solver++, and for keys that require unsupported features.
    """
    kind = config.get("_class_name")
    if not draws_here(config):
        raise UserError(f"{kind} is not implemented", where=where, todo=f"use one of {', '.join(_DRAWING)}")
    found = _values(config, _DRAWING[str(kind)], kind, where)
    shared = {"steps": steps, "spacing": found["timestep_spacing"], "steps_offset": found["steps_offset"]}
    if kind == "DDIMScheduler":
        return SamplerConfig(
            name="ddim",
            eta=eta,
            final_sigma="zero" if found["set_alpha_to_one"] else "sigma_min",
            clip=found["clip_sample_range"] if found["clip_sample"] else None,
            **shared,
        )
    lowest = found["lambda_min_clipped"]
    if not (fits(lowest, float | None) or lowest == -math.inf):
        raise _unsupported(kind, "lambda_min_clipped", lowest, "give a number", where)
    return SamplerConfig(
        name=f"dpmpp_{found['solver_order']}m",  # type: ignore[arg-type]
        karras=found["use_karras_sigmas"],
        solver=found["solver_type"],
        final_sigma=found["final_sigmas_type"],
        lower_order_final=found["lower_order_final"],
        euler_final=found["euler_at_final"],
        lambda_min=None if lowest == -math.inf else lowest,
        **shared,
    )


def _values(
    config: Mapping[str, Any], known: Mapping[str, tuple[Any, Any]], kind: object, where: object
) -> dict[str, Any]:
    """The values of the `known` keys (default, type) in `config`; UserError for one of another type."""
    found = {}
    for key, (default, hint) in known.items():
        value = config.get(key, default)
        found[key] = tuple(value) if isinstance(value, list) else value
        if not fits(found[key], hint):
            raise _unsupported(kind, key, value, f"give {described(hint)}", where)
    return found


def _unsupported(kind: object, key: str, value: Any, todo: str, where: object) -> UserError:
    return UserError(f"{key} {value!r} is not supported{f' of {kind}' if kind else ''}", where=where, todo=todo)
