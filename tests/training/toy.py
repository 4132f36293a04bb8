"""A tiny regression for the tests of the training system: small, smooth, and random in every step."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.training import loop
from elk_jax.training import mesh as meshes
from elk_jax.training.loop import Evaluation, Intervals, TrainResult
from elk_jax.training.model import Model
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.schedules import WarmupMultistep
from elk_jax.training.step.gradient import gradient
from elk_jax.training.step.step import Step

FEATURES = 12


def model(dtype=jnp.float32, frozen: tuple[str, ...] = (), nan_at: int | None = None, hidden: int = 32) -> Model:
    """Two layers with noise on the hidden units (so that the step's rng matters). The `step` column of a batch lets the
    loss turn into NaN at a chosen step."""

    def init(rng):
        a, b = jax.random.split(rng)
        return {
            "stem": {"kernel": jax.random.normal(a, (FEATURES, hidden), dtype) / 4, "bias": jnp.zeros(hidden, dtype)},
            "norm": {"scale": jnp.ones(hidden, dtype)},
            "head": {"kernel": jax.random.normal(b, (hidden, 1), dtype) / np.sqrt(hidden), "bias": jnp.zeros(1, dtype)},
        }

    def predict(params, constants, batch, map_images):
        hidden = jnp.tanh(batch["x"] @ params["stem"]["kernel"] + params["stem"]["bias"]) * params["norm"]["scale"]
        return {"y": hidden @ params["head"]["kernel"] + params["head"]["bias"]}

    def loss(params, constants, batch, rng, map_images):
        noise = jax.random.normal(rng, batch["y"].shape, batch["y"].dtype) * 0.1
        fit = jnp.mean((predict(params, constants, batch, map_images)["y"] - batch["y"] - noise) ** 2)
        if nan_at is not None:
            fit = fit + jnp.where(jnp.any(batch["step"] == nan_at), jnp.nan, 0.0)
        size = 1e-3 * jnp.mean(jnp.abs(params["head"]["kernel"]))
        return fit + size, {"fit": fit, "size": size}

    return Model(init=init, loss=loss, predict=predict, per_example=False, frozen=frozen)


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


RECIPE = TrainingRecipe(
    steps=12,
    optimizer=OptimizerConfig(name="sgd", clip_norm=1.0),
    schedule=WarmupMultistep(base=0.05, warmup_steps=3, milestones=(8,)),
    ema_decay=0.9,
    log_every=2,
    checkpoint_every=5,
    eval_every=0,
)
"""A short run."""


def train(workdir, step: Model | Step | None = None, batches=None, mesh=None, **changes) -> TrainResult:
    """The real loop. step: a Step, or a model for `gradient`, by default the toy.

    changes: of fields of `RECIPE`; all others are arguments of `loop.train`.
    """
    fields = {field.name for field in dataclasses.fields(TrainingRecipe)}
    recipe = dataclasses.replace(RECIPE, **{name: changes.pop(name) for name in fields & set(changes)})
    mesh = mesh or meshes.make_mesh()
    return loop.train(
        step if isinstance(step, Step) else gradient(step or model(), recipe, mesh),
        workdir=workdir,
        data_iterator=batches or Batches(),
        total_steps=recipe.steps,
        mesh=mesh,
        intervals=Intervals(recipe.log_every, recipe.checkpoint_every, recipe.eval_every),
        tensorboard=False,
        **changes,
    )


def scores(values, **settings) -> Evaluation:
    """An evaluation that gives `values`, by step, as the metric `score`."""
    return Evaluation(lambda params, step: {"score": values[step]}, "score", **settings)
