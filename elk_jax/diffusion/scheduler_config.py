"""The noise schedule of diffusers' scheduler_config.json, of every class of scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elk_jax.diffusion.schedule import Schedule, make_schedule
from elk_jax.errors import UserError

SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}


def read_schedule(config: Mapping[str, Any], where: object = "scheduler_config.json") -> Schedule:
    """The schedule of training and what the model predicts. Absent keys take the defaults of diffusers.

    UserError for a schedule or a prediction that is not supported.
    """
    name, prediction = config.get("beta_schedule", "linear"), config.get("prediction_type", "epsilon")
    betas = config.get("trained_betas")
    for value, known, key in ((name, SCHEDULES, "beta_schedule"), (prediction, PREDICTIONS, "prediction_type")):
        if value not in known and not (key == "beta_schedule" and betas is not None):
            raise UserError(f"{key} '{value}' is not supported", where=where, todo=f"use one of {', '.join(known)}")
    try:
        return make_schedule(
            SCHEDULES.get(name, "linear"),
            config.get("num_train_timesteps", 1000),
            config.get("beta_start", 0.0001),
            config.get("beta_end", 0.02),
            prediction=PREDICTIONS[prediction],
            zero_terminal_snr=bool(config.get("rescale_betas_zero_snr", False)),
            betas=betas,
        )
    except UserError as error:
        raise error.within(str(where)) from error
