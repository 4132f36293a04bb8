"""A tiny regression task for the tests of the training system: small, smooth, and random in every step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.training.model import Task

FEATURES = 12


def task(dtype=jnp.float32, frozen: tuple[str, ...] = (), nan_at: int | None = None, hidden: int = 32) -> Task:
    """Two layers with noise on the hidden units (so that the step's rng matters). The `step` column of a batch lets the
    loss turn into NaN at a chosen step."""

    def init(rng):
        a, b = jax.random.split(rng)
        return {
            "stem": {"kernel": jax.random.normal(a, (FEATURES, hidden), dtype) / 4, "bias": jnp.zeros(hidden, dtype)},
            "norm": {"scale": jnp.ones(hidden, dtype)},
            "head": {"kernel": jax.random.normal(b, (hidden, 1), dtype) / np.sqrt(hidden), "bias": jnp.zeros(1, dtype)},
        }

    def predict(params, batch):
        hidden = jnp.tanh(batch["x"] @ params["stem"]["kernel"] + params["stem"]["bias"]) * params["norm"]["scale"]
        return {"y": hidden @ params["head"]["kernel"] + params["head"]["bias"]}

    def loss(params, batch, rng):
        noise = jax.random.normal(rng, batch["y"].shape, batch["y"].dtype) * 0.1
        fit = jnp.mean((predict(params, batch)["y"] - batch["y"] - noise) ** 2)
        if nan_at is not None:
            fit = fit + jnp.where(jnp.any(batch["step"] == nan_at), jnp.nan, 0.0)
        size = 1e-3 * jnp.mean(jnp.abs(params["head"]["kernel"]))
        return fit + size, {"fit": fit, "size": size}

    return Task(init=init, loss=loss, predict=predict, frozen=frozen)


class Crash(Exception):
    """A run that dies."""


class Batches:
    """Batches without end, each made from (seed, number) alone.

    rows: the part of each batch that this process reads. before: called with the number of each batch to come.
    """

    def __init__(self, size=16, seed=0, dtype=np.float32, rows=slice(None), before=lambda number: None):
        self.size, self.seed, self.dtype, self.rows, self.before, self.number = size, seed, dtype, rows, before, 0

    def __next__(self):
        self.before(self.number + 1)
        self.number += 1
        rng = np.random.default_rng([self.seed, self.number])
        x = rng.normal(size=(self.size, FEATURES))
        y = np.sin(x[:, :1]) + 0.5 * x[:, 1:2]
        step = np.full(self.size, self.number, np.int32)
        x, y = x.astype(self.dtype), y.astype(self.dtype)
        return {"x": x[self.rows], "y": y[self.rows], "step": step[self.rows]}

    def get_state(self):
        return {"number": self.number}

    def set_state(self, state):
        self.number = state["number"]


def crash_at(number):
    """For `Batches(before=...)`: the run dies when it asks for this batch."""

    def before(now):
        if now == number:
            raise Crash

    return before


def settings(**changes):
    """Arguments of `train` for a short run."""
    defaults = {
        "total_steps": 12,
        "optimizer": {"name": "sgd", "clip_norm": 1.0},
        "schedule": {"name": "warmup_multistep", "base": 0.05, "warmup_steps": 3, "milestones": (8,)},
        "ema_decay": 0.9,
        "log_every": 2,
        "checkpoint_every": 5,
        "tensorboard": False,
    }
    return defaults | changes
