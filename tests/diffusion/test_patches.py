"""The denoiser of patches: what its loss measures, and what it draws."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.fft import dctn

from elk_jax.diffusion import patches
from elk_jax.diffusion.patches import DenoiserConfig, Strengths
from elk_jax.diffusion.samplers import SamplerConfig
from elk_jax.diffusion.schedule import make_schedule
from elk_jax.diffusion.unet import UNetConfig
from tests.refusals import refused

UNET = UNetConfig(
    in_channels=4, out_channels=4, down_block_types=("CrossAttnDownBlock2D",), block_out_channels=(4,),
    layers_per_block=1, attention_head_dim=1, cross_attention_dim=3, norm_num_groups=2,
)  # fmt: skip
DEVIATIONS, MEAN = (0.5, 0.2, 0.1, 0.05), 0.4
CONFIG = DenoiserConfig(UNET, Strengths(MEAN, DEVIATIONS), size=8, patch=2, classes=2)
NOISE = make_schedule("cosine", 1000, prediction="v", zero_terminal_snr=True)
DDIM = SamplerConfig(name="ddim", steps=5, spacing="trailing", eta=1.0)


@pytest.fixture(scope="module")
def params():
    return patches.init(CONFIG, jax.random.key(0))


def batch():
    image = np.random.default_rng(0).random((3, 8, 8, 1))
    valid = jnp.array([True, True, False])
    return {"image": jnp.asarray(image, jnp.float32), "label": jnp.array([0, 1, 1]), "valid": valid}


def blocks(image):
    """[B, 8, 8, 1] -> [B, 4, 4, 4]: cosine waves of each block, by SciPy, over their deviations."""
    by_block = (np.asarray(image, np.float64) - MEAN).reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4)
    return dctn(by_block, axes=(-2, -1), norm="ortho").reshape(-1, 4, 4, 4) / DEVIATIONS


def test_waves_are_those_of_scipy_and_go_back_to_pixels():
    image = batch()["image"]
    np.testing.assert_allclose(patches.waves(image - MEAN, 2) / jnp.array(DEVIATIONS), blocks(image), atol=1e-5)
    np.testing.assert_allclose(patches.pixels(patches.waves(image, 4), 4), image, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 5.0])
def test_an_untrained_model_answers_0_and_its_loss_is_the_weighted_mean_square_of_v(params, gamma):
    """conv_out starts at zero. v = signal noise - rate x0, and the weight of its error is min(SNR, 5) / (SNR + 1)."""
    rng = jax.random.key(5)
    of_time, of_noise, _ = jax.random.split(rng, 3)
    t = np.asarray(jax.random.randint(of_time, (3,), 0, 1000))
    left = NOISE.alphas_cumprod.astype(np.float64)[t][:, None, None, None]
    v = np.sqrt(left) * np.asarray(jax.random.normal(of_noise, (3, 4, 4, 4))) - np.sqrt(1 - left) * blocks(
        batch()["image"]
    )
    snr = (left / (1 - left))[:, 0, 0, 0]
    weight = np.minimum(snr, gamma) / (snr + 1) if gamma else np.ones(3)
    wanted = (weight * (v**2).mean((1, 2, 3)))[:2].mean()  # the third is not valid
    assert float(patches.loss(CONFIG, params, batch(), rng, NOISE, gamma)) == pytest.approx(wanted, rel=1e-5)


def test_what_is_not_valid_does_not_matter(params):
    given = batch()
    broken = given | {"image": given["image"].at[2].set(jnp.nan)}
    of = lambda one: jax.value_and_grad(lambda p: patches.loss(CONFIG, p, one, jax.random.key(1), NOISE))(params)
    losses, grads = zip(of(given), of(broken))
    assert losses[0] == losses[1] and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads[1]))


def shaken(params):
    """Random weights everywhere: fresh ones answer 0."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    return tree.unflatten([x + 0.3 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys)])


def test_hidden_classes_are_of_none(params):
    """With every class hidden the loss does not depend on classes; with none hidden it does."""
    weights, other = shaken(params), batch() | {"label": jnp.array([1, 0, 0])}
    loss = lambda given, hidden: float(patches.loss(CONFIG, weights, given, jax.random.key(2), NOISE, 5.0, hidden))
    assert loss(batch(), 1.0) == loss(other, 1.0) and loss(batch(), 0.0) != loss(other, 0.0)


def knowing(image):
    """A network that knows which clean image it sees, noisy: it answers v."""
    clean = blocks(image)

    def denoise(config, params, x, t, label):
        left = jnp.asarray(NOISE.alphas_cumprod)[t][:, None, None, None]
        shown = jnp.asarray(clean, jnp.float32)[label]
        rate = jnp.sqrt(1 - left)
        return (jnp.sqrt(left) * x - shown) / rate

    return denoise


def test_a_perfect_network_draws_its_image_of_the_class(params, monkeypatch):
    image = np.random.default_rng(1).random((3, 8, 8, 1))
    image[0, 0, 0] = 1.5
    monkeypatch.setattr(patches, "_denoise", knowing(image))
    found = patches.generate(CONFIG, params, jnp.array([1, 0]), jax.random.split(jax.random.key(0)), NOISE, DDIM)
    np.testing.assert_allclose(found, np.clip(image[[1, 0]], 0, 1), atol=1e-4)


def test_guidance_leads_away_from_patches_of_no_class(params, monkeypatch):
    """none + 2 (class - none)"""
    image = np.random.default_rng(1).uniform(0.4, 0.6, (3, 8, 8, 1))
    monkeypatch.setattr(patches, "_denoise", knowing(image))
    key = jax.random.split(jax.random.key(0), 1)
    found = patches.generate(CONFIG, params, jnp.array([1]), key, NOISE, DDIM, 2.0)
    np.testing.assert_allclose(found[0], 2 * image[1] - image[2], atol=1e-4)


def test_a_patch_follows_from_its_own_key_and_class(params):
    weights, keys = shaken(params), jax.random.split(jax.random.key(0), 3)
    draw = lambda label, keys: np.asarray(patches.generate(CONFIG, weights, jnp.array(label), keys, NOISE, DDIM))
    three = draw([0, 1, 1], keys)
    np.testing.assert_allclose(draw([1], keys[1:2])[0], three[1], atol=1e-5)
    assert np.abs(three[1] - three[2]).max() > 1e-3 < np.abs(draw([1, 1, 1], keys)[0] - three[0]).max()


@pytest.mark.parametrize(
    "settings, words, where",
    [
        ({"size": 9}, (9, 2), "size"),
        ({"strengths": Strengths(0.5, (1.0,))}, (1, 4), "strengths.deviations"),
        ({"patch": 4}, (4, 16), "unet.in_channels"),
        ({"unet": dataclasses.replace(UNET, out_channels=1)}, (1, 4), "unet.out_channels"),
        ({"unet": dataclasses.replace(UNET, cross_attention_dim=None)}, ("class",), "unet.cross_attention_dim"),
    ],
)
def test_parts_that_do_not_fit_are_refused(settings, words, where):
    with refused(*words, where=where):
        dataclasses.replace(CONFIG, **settings)


def test_a_wave_without_strength_is_refused():
    with refused(0.0, where="deviations"):
        Strengths(0.5, (1.0, 0.0))
