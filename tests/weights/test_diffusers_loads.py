"""Where torch, diffusers and transformers are: they load the folder that we write, and say what our model says."""

import jax
import numpy as np
import pytest

from elk_jax.diffusion.autoencoder import AutoencoderKL
from elk_jax.diffusion.text_encoder import CLIPTextEncoder
from elk_jax.diffusion.unet import UNet2DCondition
from elk_jax.weights import diffusers_folder, model_folder, stable_diffusion
from elk_jax.weights.tokenizer import Tokenizer
from tests.weights.parts import describe

torch = pytest.importorskip("torch")
theirs = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

TEXTS = ["a mammogram with a mass lesion", "Mammogram!"]
PARTS = ("unet", "vae", "text_encoder")


@pytest.fixture(scope="module")
def both(tiny_parts, vocabulary, tmp_path_factory):
    """Our model, and the pipeline of diffusers that its folder gives."""
    tokenizer = Tokenizer(vocabulary["vocab"], tuple(map(tuple, vocabulary["merges"])), pad="!")
    empty = stable_diffusion.StableDiffusion({}, tiny_parts, tokenizer)
    configs = {"unet": empty.unet, "vae": empty.autoencoder, "text_encoder": empty.text}
    random = np.random.RandomState(0)
    params = {
        part: model_folder.nest({path: 0.2 * random.randn(*s).astype("f4") for path, s in shapes.items()})
        for part, shapes in stable_diffusion.parameter_shapes(configs).items()
    }
    # as typed configurations describe it, without what a published folder would carry besides
    parts = describe(empty.unet, empty.autoencoder, empty.text, tiny_parts["scheduler"])
    model = stable_diffusion.StableDiffusion(params, parts, tokenizer)
    folder = tmp_path_factory.mktemp("exported") / "sd"
    diffusers_folder.write_pipeline(folder, model.params, model.parts, model.tokenizer)
    return model, theirs.StableDiffusionInpaintPipeline.from_pretrained(folder)


def apply(module, params, *inputs, method="__call__"):
    return jax.jit(lambda p, *x: module.apply({"params": p}, *x, method=method))(params, *inputs)


def nchw(x):
    return torch.tensor(x.transpose(0, 3, 1, 2))


def close(ours, other):
    other = other.detach().numpy()
    other = other.transpose(0, 2, 3, 1) if other.ndim == 4 else other
    np.testing.assert_allclose(ours, other, rtol=0, atol=2e-5 * max(1, np.abs(other).max()))


def test_same_tokens_and_text(both):
    model, pipeline = both
    ids = model.tokenizer.encode(TEXTS)
    other = pipeline.tokenizer(TEXTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    np.testing.assert_array_equal(ids, other.input_ids.numpy())
    text = apply(CLIPTextEncoder(model.text), model.params["text_encoder"], ids)
    close(text, pipeline.text_encoder(other.input_ids).last_hidden_state)


def test_same_unet_and_autoencoder(both):
    model, pipeline = both
    assert type(pipeline).__name__ == "StableDiffusionInpaintPipeline" and pipeline.unet.config.in_channels == 9
    random = np.random.RandomState(1)
    sample, text = random.randn(2, 8, 8, 9).astype("f4"), random.randn(2, 7, 12).astype("f4")
    found = apply(UNet2DCondition(model.unet), model.params["unet"], sample, np.array([9, 700]), text)
    close(found, pipeline.unet(nchw(sample), torch.tensor([9, 700]), torch.tensor(text)).sample)
    vae, image = AutoencoderKL(model.autoencoder), random.uniform(-1, 1, (1, 8, 8, 3)).astype("f4")
    mean, _ = apply(vae, model.params["vae"], image, method="encode")
    close(mean, pipeline.vae.encode(nchw(image)).latent_dist.mean)
    decoded = apply(vae, model.params["vae"], mean, method="decode")
    close(decoded, pipeline.vae.decode(nchw(np.asarray(mean))).sample)
