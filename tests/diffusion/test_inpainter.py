"""The inpainter in both spaces: what it sees, what it learns from, what it may change."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.diffusion import inpainter
from elk_jax.diffusion.autoencoder import AutoencoderConfig
from elk_jax.diffusion.inpainter import InpainterConfig, LossConfig, Words
from elk_jax.diffusion.samplers import SamplerConfig
from elk_jax.diffusion.schedule import make_schedule, target
from elk_jax.diffusion.text_encoder import TextConfig
from elk_jax.diffusion.unet import WITH_ATTENTION, UNetConfig
from elk_jax.images.grey import AIR
from tests.refusals import refused

NOISE = make_schedule("cosine", steps=50, prediction="v")
SAMPLER = SamplerConfig(steps=3)
SMALL = {"down_block_types": (WITH_ATTENTION,), "block_out_channels": (8,), "layers_per_block": 1,
         "attention_head_dim": 2, "norm_num_groups": 4}  # fmt: skip
PIXELS = InpainterConfig(
    UNetConfig(in_channels=17, out_channels=4, cross_attention_dim=None, **SMALL), size=8, patch=2, std=0.2
)
LATENTS = InpainterConfig(
    UNetConfig(in_channels=9, out_channels=4, cross_attention_dim=8, **SMALL),
    size=8,
    autoencoder=AutoencoderConfig(block_out_channels=(4, 4), layers_per_block=1, norm_num_groups=2),
    text=TextConfig(vocab_size=11, max_position_embeddings=5, hidden_size=8, intermediate_size=16,
                    num_hidden_layers=1, num_attention_heads=2),
)  # fmt: skip
WORDS = Words(lesion=(1, 4, 5, 9, 9), tissue=(1, 4, 9, 9, 9), negative=(1, 9, 9, 9, 9))
WEIGHTS = LossConfig(mask_outside=0.0, prior_weight=2.0)
BOTH = pytest.mark.parametrize("config", [PIXELS, LATENTS], ids=["pixels", "latents"])


@pytest.fixture(scope="module")
def trained():
    """Parameters as after some training: nothing is zero any more. By configuration."""

    def make(config):
        random = np.random.default_rng(0)
        shapes = jax.eval_shape(lambda: inpainter.init(config, jax.random.key(0)))
        return jax.tree.map(lambda leaf: random.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)

    return {config: make(config) for config in (PIXELS, LATENTS)}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    mask = np.zeros((3, 8, 8, 1), np.float32)
    mask[:, 2:6, 3:7] = 1
    return {
        "image": rng.random((3, 8, 8, 1), dtype=np.float32),
        "mask": mask,
        "lesion": np.array([1, 0, 1], np.float32),
        "valid": np.ones(3, bool),
    }


def painted(config, params, batch, keys, guidance=1.5):
    run = jax.jit(inpainter.paint, static_argnums=(0, 5, 6, 7, 8))
    return np.asarray(run(config, params, batch["image"], batch["mask"], keys, NOISE, SAMPLER, guidance, WORDS))


@partial(jax.jit, static_argnums=0)
def loss_and_gradient(config, params, batch):
    loss = lambda params: inpainter.loss(config, params, batch, jax.random.key(0), NOISE, WEIGHTS, WORDS)
    return jax.value_and_grad(loss, has_aux=True)(params)


def loss_of(config, params, batch):
    return loss_and_gradient(config, params, batch)[0]


def test_patches_are_the_pixels_and_come_back():
    x = jnp.arange(2 * 4 * 6 * 1).reshape(2, 4, 6, 1)
    patches = inpainter.to_patches(x, 2)
    assert patches.shape == (2, 2, 3, 4)
    np.testing.assert_array_equal(patches[0, 1, 2], x[0, 2:4, 4:6, 0].ravel())
    np.testing.assert_array_equal(inpainter.from_patches(patches, 2), x)


def test_pixel_space_is_exact_and_measured_from_the_visible_tissue(batch):
    image, mask = batch["image"], batch["mask"]
    air = image <= AIR
    clean, masked = inpainter.encode(PIXELS, {}, image, mask)
    level = np.array([image[i][(mask[i] == 0) & ~air[i]].mean() for i in range(3)])
    np.testing.assert_allclose(clean[:, 0, 0, 0], (image[:, 0, 0, 0] - level) / 0.2, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(inpainter.decode(PIXELS, {}, clean, image * (1 - mask), mask), image, atol=1e-6)
    hidden = inpainter.to_patches(mask, 2) > 0
    assert (np.asarray(masked)[hidden] == 0).all()
    np.testing.assert_array_equal(np.asarray(masked)[~hidden], np.asarray(clean)[~hidden])
    assert inpainter.tissue_level(np.zeros((1, 4, 4, 1)), np.ones((1, 4, 4, 1))) == 0


def test_the_middle_of_a_box_is_told_from_its_sides_and_corners():
    mask = np.zeros((2, 16, 16, 1), np.float32)
    mask[0, 3:12, 4:9] = 1  # 9 x 5 pixels around (7, 6)
    mask[1, 8, 8] = 1  # a single pixel
    told = np.asarray(inpainter.centredness(mask))
    assert told[0, 7, 6, 0] == 1 and told[1, 8, 8, 0] == 1
    np.testing.assert_allclose(told[0, 3, 6, 0], 1 - 4**2 / 4.5**2, atol=1e-5)  # the centre of the outermost pixel
    np.testing.assert_allclose(told[0, 3, 4, 0], 1 - 4**2 / 4.5**2 - 2**2 / 2.5**2, atol=1e-5)
    assert (told[mask == 0] == 0).all()


@BOTH
def test_only_what_is_masked_is_painted(config, trained, batch):
    image = painted(config, trained[config], batch, jax.random.split(jax.random.key(0), 3))
    inside = batch["mask"] > 0
    np.testing.assert_array_equal(image[~inside], batch["image"][~inside])
    assert image.min() >= 0 and image.max() <= 1
    assert np.abs(image - batch["image"])[inside].mean() > 0.05


@BOTH
def test_what_is_under_the_mask_is_not_seen(config, trained, batch):
    keys = jax.random.split(jax.random.key(0), 3)
    other = batch | {"image": np.where(batch["mask"] > 0, 0.9, batch["image"]).astype(np.float32)}
    np.testing.assert_array_equal(
        painted(config, trained[config], batch, keys), painted(config, trained[config], other, keys)
    )


@BOTH
def test_a_picture_follows_from_its_own_key_whatever_stands_beside_it(config, trained, batch):
    keys = jax.random.split(jax.random.key(0), 3)
    together = painted(config, trained[config], batch, keys)
    turned = {key: value[::-1] for key, value in batch.items()}
    np.testing.assert_allclose(painted(config, trained[config], turned, keys[::-1])[::-1], together, atol=1e-5)
    other = painted(config, trained[config], batch, jax.random.split(jax.random.key(1), 3))
    assert np.abs(other - together).max() > 1e-3


def test_guidance_moves_away_from_what_is_not_wanted(trained, batch):
    keys = jax.random.split(jax.random.key(0), 3)
    plain, guided = (painted(PIXELS, trained[PIXELS], batch, keys, guidance) for guidance in (1.0, 1.5))
    assert np.abs(plain - guided).max() > 1e-4


def test_an_untrained_network_says_zero_and_its_loss_is_the_target_squared(batch):
    shapes = jax.eval_shape(lambda: inpainter.init(PIXELS, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    params["unet"]["conv_out"] = jax.tree.map(np.zeros_like, params["unet"]["conv_out"])  # as `init` makes it
    everything_a_lesion = batch | {"lesion": np.ones(3, np.float32)}
    total, metrics = loss_of(PIXELS, params, everything_a_lesion)
    rngs = jax.random.split(jax.random.key(0), 3)
    clean, _ = inpainter.encode(PIXELS, {}, batch["image"], batch["mask"])
    t = jax.random.randint(rngs[1], (3,), 0, NOISE.steps)
    wanted = target(NOISE, clean, jax.random.normal(rngs[2], clean.shape), t)
    inside = inpainter.to_patches(batch["mask"], 2) > 0
    expected = np.mean([np.mean(np.square(wanted)[i][inside[i]]) for i in range(3)])
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["error_lesion"], expected, rtol=1e-5)
    assert metrics["error_tissue"] == 0


@BOTH
def test_weights_of_healthy_examples(config, trained, batch):
    """loss = (mean over lesions + w mean over tissue) / (1 + w), and lesions alone count in full."""
    weight = WEIGHTS.prior_weight
    total, parts = loss_of(config, trained[config], batch)
    expected = (parts["error_lesion"] + weight * parts["error_tissue"]) / (1 + weight)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    alone, parts = loss_of(config, trained[config], batch | {"lesion": np.ones(3, np.float32)})
    np.testing.assert_allclose(alone, parts["error_lesion"], rtol=1e-5)


def test_with_an_expected_share_of_tissue_examples_do_not_meet(trained, batch):
    """One example weights the same whatever its neighbours are, and lesions and tissue by the expected numbers."""
    weight, share = WEIGHTS.prior_weight, 0.25
    loss = lambda batch: inpainter.loss(PIXELS, trained[PIXELS], batch, jax.random.key(0), NOISE, WEIGHTS, WORDS, share)
    total, parts = loss(batch)
    lesions, tissue = parts["error_lesion"] / (1 - share), weight * parts["error_tissue"] / share
    np.testing.assert_allclose(total, (2 / 3 * lesions + 1 / 3 * tissue) / (1 + weight), rtol=1e-5)
    first = batch | {"valid": np.array([True, False, False])}
    other = first | {"lesion": np.array([1, 1, 1], np.float32)}
    np.testing.assert_allclose(loss(first)[0], loss(other)[0], rtol=1e-6)


def test_the_text_decides_between_lesion_and_tissue(trained, batch):
    states = inpainter._condition(LATENTS, trained[LATENTS], jnp.asarray(batch["lesion"]), WORDS)
    np.testing.assert_array_equal(states[0], states[2])
    assert np.abs(states[0] - states[1]).max() > 1e-3


def test_gradients_reach_the_text_encoder_but_not_the_autoencoder(trained, batch):
    grads = loss_and_gradient(LATENTS, trained[LATENTS], batch)[1]
    size = {name: max(float(jnp.abs(g).max()) for g in jax.tree.leaves(tree)) for name, tree in grads.items()}
    assert size["vae"] == 0 and size["unet"] > 0 and size["text_encoder"] > 0


def test_latents_that_were_encoded_before_give_the_same_loss(trained, batch):
    params, rngs = trained[LATENTS], jax.random.split(jax.random.key(0), 3)
    latents, masked = jax.jit(inpainter.encode, static_argnums=0)(
        LATENTS, params, batch["image"], batch["mask"], rngs[0]
    )
    cached = batch | {"latents": latents, "masked_latents": masked}
    alone = jax.jit(inpainter.loss, static_argnums=(0, 4, 5, 6))  # without the gradient: half of it to compile
    found = alone(LATENTS, params, cached, jax.random.key(0), NOISE, WEIGHTS, WORDS)
    np.testing.assert_allclose(found[0], loss_of(LATENTS, params, batch)[0], rtol=1e-5)


def test_models_that_cannot_be():
    with refused(4, 9, "--inpainting", where="in_channels"):
        replace(LATENTS, unet=replace(LATENTS.unet, in_channels=4))
    with refused(9, 2, where="size"):
        replace(PIXELS, size=9)
    with refused("autoencoder", where="text"):
        replace(LATENTS, text=None)


def test_masks_shrink_by_nearest_pixel_and_are_not_lost_between():
    mask = np.zeros((2, 16, 16, 1), np.float32)
    mask[0, 3:9, 8:12] = mask[1, :, 15:] = 1
    small = inpainter.latent_mask(jnp.asarray(mask), 4)
    assert small.shape == (2, 4, 4, 1)
    np.testing.assert_array_equal(small[0, :, :, 0], [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(small[1, :, :, 0], [[0, 0, 0, 1]] * 4)  # column 15 of 16, seen at 0, 4, 8 and 12
    dot = np.zeros((1, 16, 16, 1), bool)
    assert not inpainter.latent_mask(dot, 4).any()
    dot[0, 5, 10] = True
    assert np.argwhere(inpainter.latent_mask(dot, 4)).tolist() == [[0, 1, 2, 0]]
