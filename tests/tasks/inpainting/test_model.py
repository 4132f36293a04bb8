"""An inpainter as a folder, and what of it is trained."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from elk_jax import files
from elk_jax.data.batches.crops import CloseupConfig
from elk_jax.diffusion.inpainter import LossConfig, Words
from elk_jax.diffusion.samplers import SamplerConfig
from elk_jax.diffusion.schedule import make_schedule
from elk_jax.synthesis.placement import AreaRule
from elk_jax.tasks.inpainting import model as inpainters
from elk_jax.tasks.inpainting.model import Inpainter
from elk_jax.tasks.inpainting.recipe import LoraConfig, PixelModel
from elk_jax.weights import model_folder
from tests.refusals import refused

MODEL = PixelModel(size=16, down_block_types=("CrossAttnDownBlock2D",), block_out_channels=(8,), norm_num_groups=4,
                   attention_head_dim=2).config(contrast=0.15)  # fmt: skip
NOISE = make_schedule("cosine", steps=20, prediction="x0")


@pytest.fixture
def parts() -> Inpainter:
    return Inpainter(MODEL, NOISE, SamplerConfig(steps=2), 1.5, Words((1, 2), (3,), (4,)))


def test_a_description_holds_all_that_painting_needs(parts, tmp_path):
    rules = {"free": AreaRule((36, 100), (0.8, 1.2))}
    closeups = CloseupConfig(window=32, margin=0.1)
    model_folder.save_params(
        tmp_path, {"unet": np.ones(2)}, inpainters.describe(parts, {"lesion": "a"}, closeups, rules, ("mass",))
    )
    again, params, description = inpainters.load(tmp_path)
    assert (again.model, again.sampler, again.guidance, again.words) == (
        parts.model, parts.sampler, parts.guidance, parts.words,
    )  # fmt: skip
    np.testing.assert_array_equal(again.noise.alphas_cumprod, parts.noise.alphas_cumprod)
    assert again.noise.prediction == "x0" and set(params) == {"unet"}
    assert (description.window, description.margin, description.classes) == (32, 0.1, ("mass",))
    assert inpainters.rule(description.areas, "free") == rules["free"]
    with refused("'medium'", "free", where="area"):
        inpainters.rule(description.areas, "medium")
    written = files.read_json(tmp_path / "model.json")
    files.write_json(tmp_path / "model.json", written | {"architecture": "translator"})
    with refused("'translator'", "inpainter", where=tmp_path):
        inpainters.load(tmp_path)


def test_what_cannot_be_drawn_is_refused(parts):
    with refused(30, 20, where="steps"):
        Inpainter(parts.model, parts.noise, SamplerConfig(steps=30), 1.0, parts.words)
    with refused(-1.0, where="guidance"):
        Inpainter(parts.model, parts.noise, parts.sampler, -1.0, parts.words)


def test_a_network_takes_pictures_of_another_size():
    larger = inpainters.resized(MODEL, 32)
    assert (larger.size, larger.unet.sample_size) == (32, 8)
    assert inpainters.resized(larger, MODEL.size) == MODEL


def test_all_of_a_pixel_model_is_trained_and_of_adapters_the_adapters_alone(parts):
    whole = inpainters.trainable(parts, LossConfig(), LoraConfig(), train_text=True, base=None)
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(whole.init, jax.random.key(0))
    base = jax.tree.map(lambda leaf: random.normal(0, 0.1, leaf.shape).astype(np.float32), shapes)
    assert set(base) == {"unet"} and whole.constants == {}
    again = inpainters.trainable(parts, LossConfig(), LoraConfig(), train_text=True, base=base)
    assert inpainters.initial_weights(again, LoraConfig(), base).keys() == {"unet"}

    rank = LoraConfig(rank=2)
    adapted = inpainters.trainable(parts, LossConfig(), rank, train_text=False, base=base)
    adapters = jax.device_get(adapted.init(jax.random.key(1)))
    assert adapted.constants.keys() == {"unet"} and inpainters.initial_weights(adapted, rank, base) is None
    assert all("attn" in name for name in model_folder.flatten(adapters))
    merged = model_folder.flatten(inpainters.merged(adapters, adapted, rank))
    for name, leaf in model_folder.flatten(base).items():
        np.testing.assert_array_equal(merged[name], leaf, err_msg=f"{name}: fresh adapters change nothing")
