"""What an adversary finds out who sees every gradient: not more than promised, and more where noise is missing.

1,000 canaries of their own direction each, of which half are in the data; the adversary gets what the steps published
in all directions, and guesses who was in. Mahloujifar et al. 2025 (arXiv:2410.22235) turn the guesses of this one run
into a lower bound of epsilon at 95 % confidence.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_privacy import auditing

from elk_jax.privacy import secret as secrets
from elk_jax.privacy.accounting import gaussian_epsilon
from elk_jax.privacy.mechanism import Mechanism
from elk_jax.privacy.settings import Flat, Privacy
from elk_jax.training import mesh as meshes
from elk_jax.training.model import Model
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.schedules import Constant
from elk_jax.training.step.private import private
from elk_jax.training.step.step import Protection, on_mesh

CANARIES, DELTA, NOISE = 1000, 1e-4, 8.0
STEPS = {1.0: 6, 6.0: 132}
"""Promised epsilon -> full batches after which the exact epsilon is just below it."""


@pytest.fixture(scope="module")
def published():
    """(seed, whose are the canaries in the data, steps) -> what the steps published in the direction of each."""

    def loss(params, constants, batch, rng, map_images):
        return -3.0 * jnp.sum(params["w"][batch["canary"]]), {}  # longer than the clip norm

    model = Model(lambda rng: {"w": jnp.zeros(CANARIES)}, loss, predict=lambda *_: {}, per_example=True)
    privacy = Privacy(noise_multiplier=NOISE, clipping=Flat(), micro_batch=CANARIES)
    plain = OptimizerConfig(name="sgd", momentum=0.0, weight_decay=0.0)
    recipe = TrainingRecipe(steps=max(STEPS.values()), optimizer=plain, schedule=Constant(base=1.0))
    mechanism = Mechanism(privacy, CANARIES, CANARIES, NOISE, recipe.steps)
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    program = on_mesh(private(model, recipe, Protection(mechanism, secrets.known(0)), mesh), mesh)
    numbers = np.arange(CANARIES, dtype=np.int32)
    examples = {"canary": numbers[:, None], "valid": np.ones((CANARIES, 1), bool)}

    def run(seed: int, inside: np.ndarray, steps: int) -> np.ndarray:
        unit = np.where(inside, numbers, -1).astype(np.int32)
        placed = meshes.put_batch({"examples": examples, "unit": unit}, mesh)
        constants = {"model": {}, "secret": secrets.known(seed).keys()}
        state = program.init(model.init(None))
        for _ in range(steps):
            state, _ = program.update(state, constants, placed)
        return np.asarray(state.params["w"])

    return run


def drawn(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(CANARIES) < 0.5


def bound(scores: np.ndarray, inside: np.ndarray) -> float:
    return auditing.CanaryScoreAuditor(scores[inside], scores[~inside]).epsilon_one_run_fdp(0.05, DELTA)


@pytest.mark.parametrize("epsilon, steps", STEPS.items())
def test_a_correct_mechanism_keeps_its_promise_and_the_audit_sees_what_there_is(published, epsilon, steps):
    assert 0.9 * epsilon < gaussian_epsilon(NOISE, DELTA, steps) < epsilon
    found = [bound(published(seed, drawn(seed), steps), drawn(seed)) for seed in range(3)]
    assert max(found) < epsilon
    assert np.mean(found) > 2.0 or epsilon == 1.0  # the audit has the power to see 2 of 6


def test_without_noise_the_canaries_are_seen(published):
    """Whoever knows the secret subtracts the noise: they compute what an empty batch would have published."""
    steps, inside = STEPS[1.0], drawn(0)
    scores = published(0, inside, steps) - published(0, np.zeros(CANARIES, bool), steps)
    assert bound(scores, inside) > 6.0
