"""The translator: what its loss measures and what it draws."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.diffusion import bridge, translator
from elk_jax.diffusion.bridge import Bridge
from elk_jax.diffusion.translator import TranslatorConfig
from elk_jax.diffusion.unet import UNetConfig
from tests.refusals import refused

UNET = UNetConfig(
    in_channels=8, out_channels=4, down_block_types=("DownBlock2D",), block_out_channels=(4,), layers_per_block=1,
    attention_head_dim=1, cross_attention_dim=None, norm_num_groups=2,
)  # fmt: skip
CONFIG = TranslatorConfig(UNET, size=8, patch=2)


@pytest.fixture(scope="module")
def params():
    return translator.init(CONFIG, jax.random.key(0))


def batch():
    rng = np.random.default_rng(0)
    low, subtracted = (jnp.asarray(rng.random((3, 8, 8, 1)), jnp.float32) for _ in range(2))
    return {"low_energy": low, "subtracted": subtracted, "valid": jnp.array([True, True, False])}


def test_an_untrained_model_answers_0_and_its_loss_is_the_mean_target(params):
    """conv_out starts at zero, so the loss is mean |x_t - x0| at the times and noises that the key gives."""
    pair, rng = batch(), jax.random.key(5)
    time, noise = jax.random.split(rng)
    t = jax.random.randint(time, (3,), 1, 1001)
    epsilon = jax.random.normal(noise, (3, 4, 4, 4))
    by_patch = lambda image: np.asarray(2 * image - 1).reshape(3, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4)
    patches = lambda image: by_patch(image).reshape(3, 4, 4, 4)
    x0, y = patches(pair["subtracted"]), patches(pair["low_energy"])
    wanted = np.asarray(bridge.target(CONFIG.bridge, x0, y, epsilon, t))
    for kind, each in (("l1", np.abs(wanted)), ("l2", wanted**2)):
        loss, metrics = translator.loss(CONFIG, params, pair, rng, kind)
        assert float(loss) == pytest.approx(each[:2].mean(), rel=1e-5)  # the third is not valid
    assert float(metrics["clean_error"]) == pytest.approx(np.abs(wanted)[:2].mean() / 2, rel=1e-5)


def test_a_network_that_answers_the_clean_image_has_the_same_loss(params):
    """Untrained it answers 0 for x0: the loss is mean |x0|, at any time and noise."""
    pair, config = batch(), dataclasses.replace(CONFIG, answer="clean")
    loss = translator.loss(config, params, pair, jax.random.key(3))[0]
    assert float(loss) == pytest.approx(float(jnp.abs(2 * pair["subtracted"] - 1)[:2].mean()), rel=1e-5)


def test_what_is_not_valid_does_not_matter(params):
    pair = batch()
    other = {**pair, "subtracted": pair["subtracted"].at[2].set(0.0)}
    losses = [float(translator.loss(CONFIG, params, one, jax.random.key(1))[0]) for one in (pair, other)]
    assert losses[0] == losses[1]


def test_without_the_source_the_network_sees_the_bridge_alone():
    config = TranslatorConfig(dataclasses.replace(UNET, in_channels=4), size=8, patch=2, condition="none")
    assert config.channels == 4
    params = translator.init(config, jax.random.key(0))
    assert np.isfinite(float(translator.loss(config, params, batch(), jax.random.key(0))[0]))


def test_pictures_depend_on_their_own_key_and_lie_in_range(params):
    # a last layer that says something
    params = jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(7), leaf.shape), params)
    low = batch()["low_energy"]
    keys = jax.random.split(jax.random.key(0), 3)
    draw = jax.jit(lambda low, keys: translator.translate(CONFIG, params, low, keys, steps=3))
    found = np.asarray(draw(low, keys))
    assert found.shape == low.shape and found.min() >= 0 and found.max() <= 1 and found.std() > 0
    turned = np.asarray(draw(low[::-1], keys[::-1]))
    np.testing.assert_allclose(turned[::-1], found, atol=1e-5)
    assert np.abs(np.asarray(draw(low, keys[::-1]))[0] - found[0]).max() > 1e-3


def test_a_bridge_without_noise_is_exact_for_a_model_that_knows():
    """With the true x_t - x0 as its answer, the sampler gives x0 itself, whatever the steps."""
    x0, y = jnp.full((1, 2, 2, 1), 0.3), jnp.full((1, 2, 2, 1), -0.5)
    found = bridge.sample(lambda x, t: x - x0, Bridge(10, 1.0), y, jax.random.key(0), 5)
    np.testing.assert_allclose(found, x0, atol=1e-6)


def test_configurations_that_cannot_be():
    with refused("'text'", where="condition"):
        dataclasses.replace(CONFIG, condition="text")
    with refused("'noise'", where="answer"):
        dataclasses.replace(CONFIG, answer="noise")
    with refused(9, 2, where="size"):
        dataclasses.replace(CONFIG, size=9)
    with refused(4, 8, where="in_channels"):
        dataclasses.replace(CONFIG, unet=dataclasses.replace(UNET, in_channels=4))
