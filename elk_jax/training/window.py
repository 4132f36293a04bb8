"""Metrics between the device and the log, and the check that they are finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from elk_jax.errors import UserError


class Window:
    """The metrics of the steps since the last log line; they stay on the device until requested."""

    def __init__(self, steps=()):
        self._steps: list[list[Any]] = [list(entry) for entry in steps]

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        for value in metrics.values():
            value.copy_to_host_async()
        self._steps.append([step, metrics])

    def on_host(self) -> list[list[Any]]:
        """Fetch everything and return [[step, {name: float}], ...]; UserError if a step was not finite."""
        self._fetch(len(self._steps))
        return [list(entry) for entry in self._steps]

    def take(self, last: int) -> dict[str, float]:
        """Means over the steps up to `last`, which leave the window; the learning rate is that of the last step."""
        count = sum(step <= last for step, _ in self._steps)
        self._fetch(count)
        taken = [metrics for _, metrics in self._steps[:count]]
        del self._steps[:count]
        means = {key: float(np.mean([m[key] for m in taken])) for key in taken[-1] if key != "finite"}
        if "learning_rate" in means:
            means["learning_rate"] = taken[-1]["learning_rate"]
        return means

    def _fetch(self, count: int) -> None:
        for entry in self._steps[:count]:
            entry[1] = {key: float(value) for key, value in entry[1].items()}
            term = first_nonfinite(entry[1])
            if term is not None:
                raise UserError(
                    f"step {entry[0]}: {term} is {entry[1][term]}",
                    where="training",
                    todo="lower the learning rate or clip the gradient (optimizer.clip_norm), and check the data; "
                    "the last checkpoint is from before this step",
                )


def first_nonfinite(metrics: Mapping[str, float]) -> str | None:
    """The name of the first non-finite value in a step that is not `finite`: loss terms, then their sum, then norms.

    metrics: of one step, on the host. None for a finite step.
    """
    if metrics["finite"]:
        return None
    last = ("loss", "grad_norm", "update_norm", "param_norm")
    order = [key for key in metrics if key not in last] + [key for key in last if key in metrics]
    return next((key for key in order if not np.isfinite(metrics[key])), "loss")
