"""Which losses are sums over examples: the others are refused before a private training begins."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.training import mesh as meshes
from elk_jax.training.step.separable import check_examples
from tests.refusals import refused
from tests.training import toy

EXAMPLES = {
    "x": np.full((2, toy.FEATURES), np.nan, np.float32),  # the values are not read
    "y": np.zeros((2, 1), np.float32),
    "valid": np.zeros(2, bool),
}
MODEL = toy.separable()


def with_batch(change):
    """The model whose loss sees change(batch)."""

    def loss(params, constants, batch, rng, map_images):
        return MODEL.loss(params, constants, change(batch), rng, map_images)

    return dataclasses.replace(MODEL, loss=loss)


def pairs(params, constants, batch, rng, map_images):
    y = MODEL.predict(params, constants, batch, map_images)["y"][:, 0]
    return jnp.mean(jnp.square(y[:, None] - y[None, :])), {}


def test_a_mean_over_examples_with_noise_of_their_own_passes():
    check_examples(MODEL, EXAMPLES)
    scaled = lambda params, *rest: (7 * MODEL.loss(params, *rest)[0], {})
    check_examples(dataclasses.replace(MODEL, loss=scaled), jax.eval_shape(lambda: EXAMPLES))


@pytest.mark.parametrize(
    "model",
    [
        with_batch(lambda batch: batch | {"x": (batch["x"] - batch["x"].mean(0)) / (batch["x"].std(0) + 1e-5)}),
        with_batch(lambda batch: batch | {"y": batch["y"][::-1]}),
        dataclasses.replace(MODEL, loss=pairs),
    ],
    ids=["batch statistics", "mixed labels", "pairs"],
)
def test_examples_that_meet_are_found(model):
    with refused("examples", where="privacy"):
        check_examples(model, EXAMPLES)


def test_a_model_that_maps_over_devices_by_itself_or_says_that_examples_meet_is_refused():
    mesh = meshes.make_mesh()
    mapped = with_batch(lambda batch: batch | {"x": meshes.shard_map_images(mesh)(jnp.tanh)(batch["x"])})
    with refused("shard_map", "map_images", where="privacy"):
        check_examples(mapped, EXAMPLES)
    with refused("sum over examples", where="privacy"):
        check_examples(dataclasses.replace(MODEL, per_example=False), EXAMPLES)
