"""A tiny regression for the tests of the training system: small, smooth, and random in every step."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.data.batches import poisson
from elk_jax.data.batches.stream import Reading, Stream
from elk_jax.privacy.mechanism import Mechanism
from elk_jax.privacy.secret import Secret, known
from elk_jax.privacy.settings import Adaptive, Privacy
from elk_jax.training import loop
from elk_jax.training import mesh as meshes
from elk_jax.training.loop import Evaluation, Intervals, TrainResult
from elk_jax.training.model import Game, Model
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.recipe import AdversarialRecipe, TrainingRecipe
from elk_jax.training.schedules import WarmupMultistep
from elk_jax.training.step.gradient import gradient
from elk_jax.training.step.private import private
from elk_jax.training.step.private_adversarial import private_adversarial
from elk_jax.training.step.step import Protection, Step

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


def separable(dtype=jnp.float32, frozen: tuple[str, ...] = (), hidden: int = 32) -> Model:
    """The toy whose loss is a mean over valid examples, each with its own noise."""
    plain = model(dtype, frozen, hidden=hidden)

    def loss(params, constants, batch, rng, map_images):
        noise = jax.random.normal(rng, batch["y"].shape, batch["y"].dtype) * 0.1
        errors = (plain.predict(params, constants, batch, map_images)["y"] - batch["y"] - noise) ** 2
        mean = jnp.where(batch["valid"], errors[:, 0], 0).sum() / jnp.maximum(batch["valid"].sum(), 1)
        return mean, {"fit": mean}

    return dataclasses.replace(plain, loss=loss, per_example=True)


MEAN = 3.0
"""Of the real examples of the game."""


def game(dtype=jnp.float32) -> Game:
    """A linear generator against a linear discriminator; real examples are the inputs around `MEAN`. The loss of the
    discriminator is a mean over valid examples, where a batch says which are."""

    def init(rng):
        a, b = jax.random.split(rng)
        kernel = jax.random.normal(a, (4, FEATURES), dtype) / 2
        return {
            "generator": {"kernel": kernel, "bias": jnp.zeros(FEATURES, dtype)},
            "discriminator": {"kernel": jax.random.normal(b, (FEATURES, 1), dtype) / 10, "bias": jnp.zeros(1, dtype)},
        }

    def judge(discriminator, x):
        return x @ discriminator["kernel"] + discriminator["bias"]

    def generate(generator, constants, drawn):
        return drawn @ generator["kernel"] + generator["bias"]

    def discriminator_loss(discriminator, constants, batch, drawn, made, rng):
        of_real = jax.nn.softplus(-judge(discriminator, batch["x"] + MEAN))[:, 0]
        of_made = jax.nn.softplus(judge(discriminator, made))[:, 0]
        valid = batch.get("valid", jnp.ones(len(of_real), bool))
        mean = lambda x: jnp.where(valid, x, 0).sum() / jnp.maximum(valid.sum(), 1)
        return mean(of_real) + mean(of_made), {"of_real": mean(of_real)}

    def generator_loss(discriminator, constants, drawn, made, rng):
        return jax.nn.softplus(-judge(discriminator, made)).mean(), {}

    return Game(
        init=init,
        draw=lambda rng, batch: jax.random.normal(rng, (len(batch["x"]), 4), dtype),
        generate=generate,
        discriminator_loss=discriminator_loss,
        generator_loss=generator_loss,
        predict=lambda params, constants, batch, map_images: {"x": generate(params, constants, batch["noise"])},
        per_example=True,
    )


UNITS, EXPECTED = 32, 8
"""Units of the private toy, each of two examples, and how many of them a batch is expected to have."""


@dataclasses.dataclass(frozen=True)
class UnitExample:
    """Number of an example, random numbers of its augmentation -> its arrays."""

    dtype: type = np.float32

    def __call__(self, index, rng):
        x = np.random.default_rng(index).normal(size=FEATURES) + 0.01 * rng.normal(size=FEATURES)
        return {"x": x.astype(self.dtype), "y": np.sin(x[:1]).astype(self.dtype)}


def unit_batches(secret: Secret, dtype=np.float32, **options) -> Stream:
    """The stream of a private training of the toy; options: of `poisson.private_batches`."""
    members = tuple((2 * unit, 2 * unit + 1) for unit in range(UNITS))
    example, rate = UnitExample(dtype), EXPECTED / UNITS
    return poisson.private_batches(example, members, secret, rate, Reading(), images=2, **options)[0]


ADAPTIVE = Adaptive(count_noise=0.5)


def private_step(model: Model, secret: Secret, mesh, noise=1.0, allowed=1000, unit="patient", **changes) -> Step:
    """A step with an adaptive clip norm. changes: of fields of `RECIPE`."""
    privacy = Privacy(noise_multiplier=1.0, clipping=ADAPTIVE, unit=unit)
    mechanism = Mechanism(privacy, UNITS, EXPECTED, noise, allowed)
    return private(model, dataclasses.replace(RECIPE, **changes), Protection(mechanism, secret), mesh, seed=3)


class Crash(Exception):
    """A run that dies."""


class UnitBatches:
    """The stream of units, which dies at a batch. options: of `unit_batches`."""

    def __init__(self, secret, crash=0, **options):
        self.stream, self.crash = unit_batches(secret, **options), crash
        self.get_state, self.set_state = self.stream.get_state, self.stream.set_state

    def __next__(self):
        batch = next(self.stream)
        if self.stream.get_state()["next_batch"] == self.crash:
            raise Crash
        return batch


PLAYED = AdversarialRecipe(
    steps=6,
    ratio=2,
    discriminator_optimizer=OptimizerConfig(name="adamw", b1=0.5, weight_decay=0.0),
    ema_decay=0.9,
    log_every=1,
    checkpoint_every=3,
    eval_every=0,
    privacy=Privacy(noise_multiplier=1.0, clipping=ADAPTIVE),
)
"""A short private game."""


def play_privately(workdir, crash=0, mesh=None, dtype=np.float32, **share) -> TrainResult:
    """The real loop of a private game. share: of this process."""
    secret, mesh = Secret(known(1).words), mesh or meshes.make_mesh(devices=jax.devices()[:1])
    protection = Protection(Mechanism(PLAYED.privacy, UNITS, EXPECTED, 1.0, 1000, PLAYED.ratio), secret)
    step = private_adversarial(game(jnp.dtype(dtype)), PLAYED, protection, mesh, seed=3)
    batches = UnitBatches(secret, crash, dtype=dtype, lanes=mesh.size, releases=PLAYED.ratio, **share)
    try:
        return train(workdir, step, batches, mesh, steps=PLAYED.steps, log_every=1, checkpoint_every=3)
    finally:
        batches.stream.close()


def ledger(workdir, step):
    """That of the checkpoint of a step."""
    return json.loads((workdir / "checkpoints" / str(step) / "meta" / "metadata").read_text())["ledger"]


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
