"""Our networks, fed with weights in diffusers' names, say what the PyTorch classes say (golden/make_diffusion.py)."""

import hashlib
import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from elk_jax.diffusion import autoencoder, scheduler_config, text_encoder, unet
from elk_jax.weights import convert, diffusers, model_folder, stable_diffusion

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


def test_a_folder_as_the_newest_diffusers_saves_it(seeded, tmp_path):
    """Every default stands in its JSON; what we keep of it is a folder of ours again (make_diffusers_folder.py)."""
    stable_diffusion.import_folder(GOLDEN / "diffusers_folder", tmp_path / "ours", console=Console(quiet=True))
    model = stable_diffusion.load(tmp_path / "ours")
    with np.load(GOLDEN / "diffusers_folder.npz") as arrays:
        expected = dict(arrays)
    ids = model.tokenizer.encode(["a mammogram with a mass lesion", "Mammogram!"])
    np.testing.assert_array_equal(ids, expected["ids"])
    encoder, network = text_encoder.CLIPTextEncoder(model.text), unet.UNet2DCondition(model.unet)
    vae = autoencoder.AutoencoderKL(model.autoencoder)
    sample, image = (seeded.uniform(n, s, -1, 1) for n, s in (("sample", (2, 8, 8, 9)), ("image", (1, 16, 16, 3))))

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # it runs once
    def answers(params):
        text = encoder.apply({"params": params["text_encoder"]}, ids)
        noise = network.apply({"params": params["unet"]}, sample, np.array([9, 700]), text)
        mean, _ = vae.apply({"params": params["vae"]}, image, method="encode")
        decoded = vae.apply({"params": params["vae"]}, mean, method="decode")
        return {"text": text, "noise": noise, "mean": mean, "decoded": decoded}

    for name, found in answers(model.params).items():
        np.testing.assert_allclose(found, expected[name], rtol=0, atol=TOLERANCE, err_msg=name)
    assert scheduler_config.read_sampler(model.parts["scheduler"], 20).name == "dpmpp_3m"
