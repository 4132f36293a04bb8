"""Learning-rate schedules: functions from the step count (0 for the first update) to a rate, usable inside
jit.

References: detectron2 `solver/lr_scheduler.py` (WarmupMultiStepLR); Loshchilov & Hutter 2017, arXiv
1608.03983 (cosine).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import optax

from elk_jax.errors import UserError


def warmup_multistep(
    base: float,
    warmup_steps: int = 1000,
    warmup_factor: float = 1e-3,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
    linear: bool = True,
) -> optax.Schedule:
    """`base * warmup(step) * gamma ** (number of milestones <= step)`, as detectron2's WarmupMultiStepLR.

    For step < warmup_steps, warmup is `factor * (1 - a) + a` with a = step / warmup_steps (linear), or
    `factor` (constant); from warmup_steps on it is 1. Milestones decay the rate during warm-up too.
    """
    if list(milestones) != sorted(milestones):
        raise UserError(f"milestones must be increasing, got {tuple(milestones)}", where="schedule.milestones")
    edges = jnp.asarray(sorted(milestones), jnp.int32)

    def schedule(step):
        alpha = step / max(warmup_steps, 1)
        factor = warmup_factor * (1 - alpha) + alpha if linear else warmup_factor
        warmup = jnp.where(step < warmup_steps, factor, 1.0)
        return base * warmup * gamma ** jnp.sum(edges <= step)

    return schedule


def warmup_cosine(base: float, warmup_steps: int, total_steps: int, end_factor: float = 0.0) -> optax.Schedule:
    """Linear from 0 to `base` in `warmup_steps`, then half a cosine down to `base * end_factor` at
    `total_steps`.

    The first update already moves: its rate is base / (warmup_steps + 1), not 0.
    """

    def schedule(step):
        progress = jnp.clip((step - warmup_steps) / max(total_steps - warmup_steps, 1), 0.0, 1.0)
        cosine = end_factor + (1 - end_factor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return base * jnp.where(step < warmup_steps, (step + 1) / (warmup_steps + 1), cosine)

    return schedule


def constant(base: float, warmup_steps: int = 0) -> optax.Schedule:
    """`base`, reached linearly over `warmup_steps`."""
    return lambda step: base * jnp.minimum(1.0, (step + 1) / (warmup_steps + 1))


def build(config: Mapping[str, Any], total_steps: int) -> optax.Schedule:
    """The schedule that `config` names, e.g. `{"name": "warmup_multistep", "base": 2.5e-4, "milestones":
    (0.8,)}`.

    config: `name` (warmup_multistep, warmup_cosine or constant), `base` (learning rate) and the other
    arguments of that function. `warmup_steps` and `milestones` are steps, or, as floats below 1, shares of
    `total_steps`. Raises UserError for an unknown name or argument, and for a value that cannot be.
    """
    builders: dict[str, tuple[Callable[..., optax.Schedule], tuple[str, ...]]] = {
        "warmup_multistep": (
            warmup_multistep,
            ("warmup_steps", "warmup_factor", "milestones", "gamma", "linear"),
        ),
        "warmup_cosine": (warmup_cosine, ("warmup_steps", "end_factor")),
        "constant": (constant, ("warmup_steps",)),
    }
    arguments = dict(config)
    name = arguments.pop("name", "")
    if name not in builders:
        raise UserError(f"unknown schedule {name!r}", where="schedule.name", todo=f"use one of {', '.join(builders)}")
    builder, known = builders[name]
    if "base" not in arguments:
        raise UserError("the schedule has no learning rate", where="schedule.base", todo="set schedule.base")
    for key in arguments:
        if key not in ("base", *known):
            raise UserError(
                f"{name} has no argument {key!r}",
                where=f"schedule.{key}",
                todo=f"use {', '.join(('base', *known))}",
            )
    for key in ("base", "warmup_steps", "warmup_factor", "gamma", "end_factor"):
        value = arguments.get(key, 0)
        if not (isinstance(value, int | float) and 0 <= value < math.inf):
            raise UserError(f"{key} is {value!r}", where=f"schedule.{key}", todo="give 0 or more")
    milestones = arguments.get("milestones", ())
    plain = isinstance(milestones, list | tuple)
    if not (plain and all(isinstance(one, int | float) and one >= 0 for one in milestones)):
        raise UserError(f"milestones are {milestones}", where="schedule.milestones", todo="give steps, or shares")
    if "warmup_steps" in arguments:
        arguments["warmup_steps"] = _steps(arguments["warmup_steps"], total_steps)
    if "milestones" in arguments:
        arguments["milestones"] = tuple(_steps(m, total_steps) for m in arguments["milestones"])
    if builder is warmup_cosine:
        arguments.setdefault("warmup_steps", 0)
        arguments["total_steps"] = total_steps
    return builder(**arguments)


def _steps(value: float, total_steps: int) -> int:
    """A count of steps, or the share `value` < 1 of all steps."""
    return round(value * total_steps) if isinstance(value, float) and value < 1 else int(value)
