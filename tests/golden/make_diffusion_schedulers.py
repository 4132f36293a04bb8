"""Golden trajectories of diffusers' PyTorch schedulers, with a small nonlinear function in the model's place.

    python tests/golden/make_diffusion_schedulers.py        writes diffusion_schedulers.npz and .json beside itself

Ran with torch 2.13.0 (CPU) and diffusers 0.42.1. Every case is one scheduler configuration; stored are its time steps
and the image after every step (float32). The starting image, the noise of every step and the function come from
denoiser.py, so the tests need no torch.
"""

import json
import math
from pathlib import Path

import denoiser
import diffusers
import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

HERE = Path(__file__).parent
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
LINEAR = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
ZERO = {**SD, "rescale_betas_zero_snr": True}
EPSILON, V, SAMPLE = ({"prediction_type": name} for name in ("epsilon", "v_prediction", "sample"))


def ddim_cases():
    base = {"_class_name": "DDIMScheduler", "clip_sample": False}
    for kind in (EPSILON, V, SAMPLE):
        for spacing in ("leading", "linspace", "trailing"):
            for eta in (0.0, 0.6):
                yield {**base, **SD, **kind, "timestep_spacing": spacing, "steps_offset": 1}, 12, eta
    yield {**base, **SD, **EPSILON, "set_alpha_to_one": False, "steps_offset": 1}, 20, 0.0
    yield {**base, **LINEAR, **EPSILON, "clip_sample": True}, 10, 1.0
    yield {**base, **COSINE, **V, "timestep_spacing": "trailing"}, 10, 0.0
    yield {**base, **ZERO, **V, "timestep_spacing": "trailing"}, 10, 0.0
    yield {**base, **ZERO, **SAMPLE, "timestep_spacing": "trailing"}, 10, 0.9  # 1: its 0 is sqrt(1e-7)
    yield {**base, **SD, **V, "num_train_timesteps": 100}, 100, 0.0


def dpm_cases():
    base = {"_class_name": "DPMSolverMultistepScheduler"}
    for kind in (EPSILON, V, SAMPLE):
        for spacing in ("leading", "linspace", "trailing"):
            for karras in (False, True):
                yield {**base, **SD, **kind, "timestep_spacing": spacing, "use_karras_sigmas": karras}, 12
    for final in ("zero", "sigma_min"):
        for steps in (10, 20):
            for lower in (False, True):
                yield {**base, **SD, **EPSILON, "final_sigmas_type": final, "lower_order_final": lower}, steps
    yield {**base, **SD, **EPSILON, "timestep_spacing": "leading", "steps_offset": 1}, 50
    yield {**base, **SD, **EPSILON, "use_karras_sigmas": True}, 50
    yield {**base, **LINEAR, **EPSILON}, 15
    yield {**base, **COSINE, **EPSILON, "lambda_min_clipped": -5.1}, 20
    yield {**base, **LINEAR, **V, "use_karras_sigmas": True}, 12
    yield {**base, **ZERO, **V, "timestep_spacing": "trailing"}, 12
    yield {**base, **ZERO, **SAMPLE, "use_karras_sigmas": True}, 12
    yield {**base, **SD, **EPSILON}, 1
    for order in (1, 3):
        for extra in ({}, {"use_karras_sigmas": True}, {"final_sigmas_type": "sigma_min", "lower_order_final": False}):
            yield {**base, **SD, **EPSILON, "solver_order": order, **extra}, 12
    yield {**base, **SD, **V, "solver_order": 3, "timestep_spacing": "trailing"}, 20
    yield {**base, **SD, **EPSILON, "solver_order": 3}, 2
    heun, least = {"solver_type": "heun"}, {"final_sigmas_type": "sigma_min"}
    yield {**base, **SD, **EPSILON, **heun}, 12
    yield {**base, **SD, **EPSILON, **heun, **least}, 16
    yield {**base, **SD, **EPSILON, **least, "euler_at_final": True}, 16
    yield {**base, **SD, **SAMPLE, **least, "euler_at_final": True, "solver_order": 3}, 16


def model(x, t):
    return denoiser.function(x, int(t), torch.tanh, torch.roll, math)


def trajectory(config, steps, eta):
    kind = DDIMScheduler if eta is not None else DPMSolverMultistepScheduler
    scheduler = kind(**{key: value for key, value in config.items() if key != "_class_name"})
    scheduler.set_timesteps(steps)
    if eta is None:
        scheduler.set_begin_index(0)  # otherwise it starts too late where the first time steps are equal
    x, path = torch.tensor(denoiser.start()), []
    for index, t in enumerate(scheduler.timesteps):
        if eta is None:
            x = scheduler.step(model(x, t), t, x).prev_sample
        else:
            noise = torch.tensor(denoiser.noise(index)) if eta else None
            x = scheduler.step(model(x, t), t, x, eta=eta, variance_noise=noise).prev_sample
        path.append(x.numpy())
    return scheduler.timesteps.numpy().astype(np.int32), np.stack(path)


def training(config):
    scheduler = DDPMScheduler(**config)
    x0, noise = torch.tensor(denoiser.start()), torch.tensor(denoiser.noise(0))
    rows = [(torch.full(x0.shape[:1], t), t) for t in denoiser.TIMES]
    return {
        "alphas_cumprod": scheduler.alphas_cumprod.numpy(),
        "noisy": np.stack([scheduler.add_noise(x0, noise, t).numpy() for t, _ in rows]),
        "velocity": np.stack([scheduler.get_velocity(x0, noise, t).numpy() for t, _ in rows]),
    }


NO_BETAS = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "FlowMatchLCM", "EDMEuler", "EDMDPMSolverMultistep",
            "CogVideoXDDIM", "IPNDM", "UnCLIP", "ScoreSdeVe", "SCM")  # fmt: skip
BETAS = ("DDPM", "DDPMParallel", "DDIM", "DDIMParallel", "DDIMInverse", "DPMSolverMultistep", "UniPCMultistep",
         "EulerDiscrete", "EulerAncestralDiscrete", "PNDM", "DEISMultistep", "SASolver", "DPMSolverSinglestep",
         "DPMSolverMultistepInverse", "HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "LCM", "TCD",
         "LMSDiscrete")  # fmt: skip


def of_class(name):
    """What a scheduler of this class, made without arguments, saves, and its noise at three time steps."""
    scheduler = getattr(diffusers, f"{name}Scheduler")()
    noise = scheduler.alphas_cumprod[[0, 500, 999]].tolist() if name in BETAS else None
    return {"config": json.loads(scheduler.to_json_string()), "alphas_cumprod": noise}


def main():
    arrays, cases = {}, []
    for config, steps, eta in [*ddim_cases(), *((*case, None) for case in dpm_cases())]:
        name = f"case_{len(cases):02d}"
        arrays[f"{name}/t"], path = trajectory(config, steps, eta)
        arrays[f"{name}/x"] = path[:: max(1, steps // 10)] if steps > 20 else path
        cases.append({"name": name, "config": config, "steps": steps, "eta": eta})
    schedules = {}
    for name, config in {"scaled_linear": SD, "linear": LINEAR, "cosine": COSINE, "zero_terminal_snr": ZERO}.items():
        schedules[name] = {**config, **V}
        arrays |= {f"{name}/{key}": value for key, value in training(schedules[name]).items()}
    np.savez_compressed(HERE / "diffusion_schedulers.npz", **arrays)
    classes = [of_class(name) for name in (*BETAS, *NO_BETAS)]
    text = json.dumps({"cases": cases, "schedules": schedules, "classes": classes}, indent=0)
    (HERE / "diffusion_schedulers.json").write_text(text + "\n")
    print(len(cases), "cases", max(float(np.abs(a).max()) for k, a in arrays.items() if k.endswith("/x")))


if __name__ == "__main__":
    main()
