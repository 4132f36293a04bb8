"""Running statistics of batch norms through the training step: they follow the batches, and nothing else moves them."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.backbones import resnet
from elk_jax.backbones.conv import convolve
from elk_jax.tasks.classification.model import trainable
from elk_jax.training import mesh as meshes
from elk_jax.training.checkpoint import Checkpoints
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.schedules import Constant
from elk_jax.training.step.gradient import gradient
from elk_jax.training.step.separable import check_model
from elk_jax.weights.model_folder import flatten
from tests.refusals import refused

CONFIG = resnet.ResNetConfig(depth=18, width=2, norm="batch_bn", num_classes=2, pixel_mean=(0.4,), pixel_std=(0.2,))
STEM = "backbone/stem/conv/norm/"
RECIPE = TrainingRecipe(
    optimizer=OptimizerConfig(weight_decay=0.5, clip_norm=1e-3, nesterov=True),
    schedule=Constant(base=0.01),
    ema_decay=0.5,
)


@cache
def model():
    return trainable(CONFIG)


def batch(number: int = 0):
    image = jax.random.uniform(jax.random.key(number), (4, 32, 32, 1))
    return {"image": image, "label": jnp.array([0, 1, 0, 1]), "valid": jnp.ones(4, bool)}


def one_device():
    return meshes.make_mesh(devices=jax.devices()[:1])


@cache
def compiled(recipe=RECIPE):
    step = gradient(model(), recipe, one_device())
    return step, jax.jit(step.update)


def stem_maps(params, image):
    """What the first norm sees."""
    normal = (image - 0.4) / 0.2
    kernel = params["backbone"]["stem"]["conv"]["kernel"]
    return np.asarray(convolve(normal, kernel, 2))


def test_statistics_follow_the_batches_and_neither_rate_nor_clipping_nor_decay_reaches_them():
    step, update = compiled()
    params = jax.jit(step.fresh)(jax.random.key(0))
    state, metrics = update(step.init(params), {}, batch())
    seen = stem_maps(params, batch()["image"])
    new = flatten(state.params)
    np.testing.assert_allclose(new[f"{STEM}mean"], 0.1 * seen.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(new[f"{STEM}var"], 0.9 + 0.1 * seen.var((0, 1, 2), ddof=1), rtol=1e-4)
    followed = {name for name in new if name.endswith(("norm/mean", "norm/var"))}
    assert len(followed) == 40 and all(np.any(new[name] != leaf) for name, leaf in flatten(params).items())

    def norm(leaves):
        return np.sqrt(sum(np.sum(np.square(leaf)) for name, leaf in leaves.items() if name not in followed))

    assert metrics["param_norm"] == pytest.approx(norm(new), rel=1e-5)
    steps = {name: new[name] - leaf for name, leaf in flatten(params).items()}
    assert metrics["update_norm"] == pytest.approx(norm(steps), rel=1e-3)


def test_micro_batches_move_the_statistics_to_the_mean_of_theirs():
    recipe = TrainingRecipe(optimizer=OptimizerConfig(), schedule=Constant(base=0.0), accumulate=2)
    step, update = compiled(recipe)
    params = jax.jit(step.fresh)(jax.random.key(0))
    state, _ = update(step.init(params), {}, batch())
    parts = np.stack([stem_maps(params, batch()["image"][i::2]) for i in range(2)])
    new = flatten(state.params)
    np.testing.assert_allclose(new[f"{STEM}mean"], 0.1 * parts.mean((0, 1, 2, 3)), rtol=1e-4, atol=1e-6)
    variance = parts.var((1, 2, 3), ddof=1).mean(0)
    np.testing.assert_allclose(new[f"{STEM}var"], 0.9 + 0.1 * variance, rtol=1e-4)


def test_what_a_recipe_freezes_stays_but_for_statistics():
    """The network reads the statistics of the batch in every layer, frozen or not: running ones have to follow."""
    spared = r"^(?!.*/norm/(mean|var)$)backbone/stem/"
    recipe = TrainingRecipe(optimizer=OptimizerConfig(frozen=(spared,)), schedule=Constant(base=0.01))
    step, update = compiled(recipe)
    params = jax.jit(step.fresh)(jax.random.key(0))
    state, _ = update(step.init(params), {}, batch())
    new = flatten(state.params)
    named = {name: np.array_equal(leaf, new[name]) for name, leaf in flatten(params).items()}
    assert all(named[f"backbone/stem/conv/{leaf}"] for leaf in ("kernel", "norm/scale", "norm/bias"))
    assert not named[f"{STEM}mean"] and not named[f"{STEM}var"]
    assert not named["backbone/res2_0/conv1/norm/mean"] and not named["classifier/kernel"]


def test_frozen_statistics_are_refused():
    """They would be those of nothing that the training has seen."""
    recipe = TrainingRecipe(
        optimizer=OptimizerConfig(frozen=("classifier", "^backbone/stem/")), schedule=Constant(base=0.01)
    )
    with refused("'^backbone/stem/'", f"{STEM}mean", "norm=affine_bn", where="optimizer.frozen"):
        gradient(model(), recipe, one_device())


def test_a_training_that_is_resumed_has_the_statistics_of_one_that_is_not(tmp_path):
    step, update = compiled()
    state = step.init(jax.jit(step.fresh)(jax.random.key(0)))
    for number in range(2):
        state, _ = update(state, {}, batch(number))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, state, {}, {})
    checkpoints.close()
    again, _, _ = Checkpoints(tmp_path).restore(state)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, state))
    (one, _), (other, _) = (update(found, {}, batch(2)) for found in (state, again))
    assert jax.tree.all(jax.tree.map(np.array_equal, one, other))
    assert np.any(flatten(one.params)[f"{STEM}mean"] != flatten(state.params)[f"{STEM}mean"])


def test_predictions_read_running_statistics_alone():
    params = jax.jit(partial(resnet.init, CONFIG))(jax.random.key(0))
    call = jax.jit(lambda p, images: resnet.logits(CONFIG, p, images))
    alone = [call(params, batch()["image"][i : i + 1]) for i in range(4)]
    np.testing.assert_allclose(call(params, batch()["image"]), np.concatenate(alone), rtol=1e-4, atol=1e-5)


def test_privacy_is_refused():
    with refused("statistics of the batch", where="privacy"):
        check_model(model())
    assert not model().per_example
