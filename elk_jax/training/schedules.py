"""Learning-rate schedules: functions from the step count (0 for the first update) to a rate, usable inside jit.

References: detectron2 `solver/lr_scheduler.py` (WarmupMultiStepLR); Loshchilov & Hutter 2017, arXiv 1608.03983.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
import optax

from elk_jax.errors import UserError
from elk_jax.fields import AtLeast, Checked


@dataclass(frozen=True)
class WholeOrShare:
    """A whole number, or a float below 1."""

    def holds(self, value: int | float) -> bool:
        return value < 1 or value == int(value)

    def __str__(self) -> str:
        return "and whole from 1"


Steps = Annotated[int | float, AtLeast(0), WholeOrShare()]
"""A number of steps or, as a float below 1, a share of all steps."""
Factor = Annotated[float, AtLeast(0)]


@dataclass(frozen=True, kw_only=True)
class WarmupMultistep(Checked):
    """`base * warmup(step) * gamma ** (number of milestones <= step)`, as in detectron2's WarmupMultiStepLR.

    For step < warmup_steps, warmup is `factor * (1 - a) + a` with a = step / warmup_steps (linear), or `factor`
    (constant); from warmup_steps on it is 1. Milestones decay the rate during warm-up too.
    """

    name: Literal["warmup_multistep"] = "warmup_multistep"
    base: Factor
    warmup_steps: Steps = 1000
    warmup_factor: Factor = 1e-3
    milestones: tuple[Steps, ...] = ()
    gamma: Factor = 0.1
    linear: bool = True


@dataclass(frozen=True, kw_only=True)
class WarmupCosine(Checked):
    """Linear from 0 to `base` in `warmup_steps`, then half a cosine down to `base * end_factor` after the last update.

    Every update moves: the rate of the first is base / (warmup_steps + 1), and with end_factor 0 the last is above 0.
    """

    name: Literal["warmup_cosine"] = "warmup_cosine"
    base: Factor
    warmup_steps: Steps = 0
    end_factor: Factor = 0.0


@dataclass(frozen=True, kw_only=True)
class Constant(Checked):
    """`base`, reached linearly over `warmup_steps`."""

    name: Literal["constant"] = "constant"
    base: Factor
    warmup_steps: Steps = 0


Schedule = WarmupMultistep | WarmupCosine | Constant


def build(schedule: Schedule, total_steps: int) -> optax.Schedule:
    """The rate at every step of a run of `total_steps`. UserError if the milestones, in steps, do not increase."""
    warmup = in_steps(schedule.warmup_steps, total_steps)
    if isinstance(schedule, WarmupMultistep):
        milestones = [in_steps(one, total_steps) for one in schedule.milestones]
        if milestones != sorted(milestones):
            raise UserError(f"milestones must increase, but are {tuple(milestones)}", where="schedule.milestones")
        return _warmup_multistep(schedule, warmup, np.asarray(milestones, np.int32))
    if isinstance(schedule, WarmupCosine):
        return _warmup_cosine(schedule, warmup, total_steps)
    return lambda step: schedule.base * jnp.minimum(1.0, (step + 1) / (warmup + 1))


def warnings(schedule: Schedule, total_steps: int) -> list[str]:
    """What a run of `total_steps` never reaches: the end of the warm-up, milestones."""
    found = []
    warmup = in_steps(schedule.warmup_steps, total_steps)
    if warmup >= total_steps:
        last = float(build(schedule, total_steps)(total_steps - 1))
        found.append(
            f"the learning rate warms up for {warmup} steps, but the training has {total_steps}: it reaches only "
            f"{last:.3g} instead of {schedule.base:.3g}"
        )
    if isinstance(schedule, WarmupMultistep):
        late = [one for one in schedule.milestones if in_steps(one, total_steps) >= total_steps]
        if late:
            found.append(f"the learning rate has a milestone at {late[0]}, which {total_steps} steps do not reach")
    return found


def in_steps(value: int | float, total_steps: int) -> int:
    """A number of steps, or the share `value` < 1 of all steps."""
    return round(value * total_steps) if isinstance(value, float) and value < 1 else int(value)


def _warmup_multistep(schedule: WarmupMultistep, warmup_steps: int, milestones: np.ndarray) -> optax.Schedule:
    def rate(step):
        alpha = step / max(warmup_steps, 1)
        factor = schedule.warmup_factor * (1 - alpha) + alpha if schedule.linear else schedule.warmup_factor
        warmup = jnp.where(step < warmup_steps, factor, 1.0)
        return schedule.base * warmup * schedule.gamma ** jnp.sum(milestones <= step)

    return rate


def _warmup_cosine(schedule: WarmupCosine, warmup_steps: int, total_steps: int) -> optax.Schedule:
    def rate(step):
        progress = jnp.clip((step - warmup_steps) / max(total_steps - warmup_steps, 1), 0.0, 1.0)
        cosine = schedule.end_factor + (1 - schedule.end_factor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return schedule.base * jnp.where(step < warmup_steps, (step + 1) / (warmup_steps + 1), cosine)

    return rate
