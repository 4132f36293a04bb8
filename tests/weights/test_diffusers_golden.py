"""Our networks, fed with weights in diffusers' names, say what the PyTorch classes say (golden/make_diffusion.py)."""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from elk_jax.diffusion import autoencoder, text_encoder, unet
from elk_jax.weights import convert, diffusers, model_folder

GOLDEN = Path(__file__).parent.parent / "golden"
FACTS = json.loads((GOLDEN / "diffusion.json").read_text())
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def expected():
    with np.load(GOLDEN / "diffusion.npz") as arrays:
        return dict(arrays)


def shapes_of(module, config):
    tree = jax.eval_shape(lambda rng: module.init(config, rng), jax.random.key(0))
    return {path: tuple(leaf.shape) for path, leaf in model_folder.flatten(tree).items()}


def foreign_shapes(shapes):
    """diffusers' names and shapes of our parameters."""
    fake = model_folder.nest({path: np.broadcast_to(np.float32(0), shape) for path, shape in shapes.items()})
    return {name: tensor.shape for name, tensor in diffusers.to_tensors(fake).items()}


def converted(name, module, config, seeded):
    """Seeded weights in diffusers' names as our parameters; every name and shape is what diffusers has."""
    ours = shapes_of(module, config)
    foreign, facts = foreign_shapes(ours), FACTS[name]
    listed = json.dumps(sorted((key, list(shape)) for key, shape in foreign.items()))
    assert hashlib.sha256(listed.encode()).hexdigest() == facts["fingerprint"]
    assert sum(int(np.prod(shape)) for shape in ours.values()) == facts["parameters"]
    params, name_map = convert.convert(seeded.diffusion_tensors(foreign), diffusers.FORMAT, ours)
    assert len(name_map.rows) == facts["tensors"] and not name_map.ignored
    return params


@pytest.mark.parametrize("name", ["unet_sd1", "unet_sd2", "unet_no_text"])
def test_unet(name, expected, seeded):
    config = unet.unet_config(FACTS[name]["settings"])
    params = converted(name, unet, config, seeded)
    sample, text = seeded.diffusion_inputs(config.in_channels, config.cross_attention_dim)
    apply = jax.jit(unet.UNet2DCondition(config).apply)
    found = apply({"params": params}, sample, np.array(FACTS["timesteps"]), text)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected[name], rtol=0, atol=TOLERANCE)


def test_autoencoder(expected, seeded):
    config = autoencoder.autoencoder_config(FACTS["vae"]["settings"])
    params = converted("vae", autoencoder, config, seeded)
    model = autoencoder.AutoencoderKL(config)
    both = jax.jit(
        lambda p, images, latents: (
            model.apply({"params": p}, images, method="encode"),
            model.apply({"params": p}, latents, method="decode"),
        )
    )
    images, latents = (seeded.uniform(n, s, -1, 1) for n, s in (("image", (2, 16, 24, 3)), ("latents", (2, 4, 6, 4))))
    (mean, logvar), decoded = both(params, images, latents)
    for found, name in ((mean, "vae_mean"), (logvar, "vae_logvar"), (decoded, "vae_image")):
        np.testing.assert_allclose(found, expected[name], rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_text_encoder(activation, expected, seeded):
    name = f"text_{activation}"
    config = text_encoder.text_config(FACTS[name]["settings"])
    params = converted(name, text_encoder, config, seeded)
    ids = seeded.token_ids(config.vocab_size)
    found = jax.jit(text_encoder.CLIPTextEncoder(config).apply)({"params": params}, ids)
    np.testing.assert_allclose(found, expected[name], rtol=0, atol=TOLERANCE)
