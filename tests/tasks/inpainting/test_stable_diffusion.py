"""A small Stable Diffusion through the whole of it: import, fine-tuning (all of it, or adapters), painting, export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from configs import inpaint_cem
from elk_jax import files
from elk_jax.diffusion.autoencoder import AutoencoderConfig
from elk_jax.diffusion.text_encoder import TextConfig
from elk_jax.diffusion.unet import WITH_ATTENTION, WITHOUT, UNetConfig
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from elk_jax.tasks.inpainting import model as inpainters
from elk_jax.tasks.inpainting.train import starting_point
from elk_jax.tasks.run import Run
from elk_jax.training.mesh import make_mesh
from elk_jax.weights import diffusers_folder, model_folder, stable_diffusion
from elk_jax.weights.tokenizer import Tokenizer
from tests.refusals import refused
from tests.weights.parts import describe

GOLDEN = Path(__file__).parents[2] / "golden"
SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """What launch/import_weights.py --format=diffusers makes of a small folder of random numbers."""
    words = json.loads((GOLDEN / "tokenizer.json").read_text())
    tokenizer = Tokenizer(words["vocab"], tuple(map(tuple, words["merges"])), length=20)
    unet = UNetConfig(
        in_channels=9, down_block_types=(WITH_ATTENTION, WITHOUT), block_out_channels=(8, 8), layers_per_block=1,
        attention_head_dim=2, cross_attention_dim=8, norm_num_groups=4,
    )  # fmt: skip
    vae = AutoencoderConfig(block_out_channels=(4, 4), layers_per_block=1, norm_num_groups=2)
    text = TextConfig(len(words["vocab"]), 20, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                      num_attention_heads=2)  # fmt: skip
    parts = describe(unet, vae, text, SCHEDULER)
    random = np.random.default_rng(0)
    shapes = stable_diffusion.parameter_shapes({"unet": unet, "vae": vae, "text_encoder": text})
    params = {
        part: model_folder.nest({path: random.normal(0, 0.1, shape).astype(np.float32) for path, shape in own.items()})
        for part, own in shapes.items()
    }
    folder = tmp_path_factory.mktemp("sd")
    diffusers_folder.write_pipeline(folder / "theirs", params, parts, tokenizer)
    stable_diffusion.import_folder(folder / "theirs", folder / "ours")
    return folder / "ours"


def tiny(imported, **recipe):
    config = inpaint_cem.get_config("tiny")
    config.stages.inpainter.init_from = str(imported)
    config.inpainter.closeups.window = 32
    config.inpainter.closeups.batch_size = 2
    config.inpainter.loss.mask_outside = 1.0
    config.inpainter.guidance = 2.0
    config.inpainter.sampler = {"name": "dpmpp_2m", "steps": 2}
    config.inpainter.steps = config.inpainter.eval_every = config.inpainter.checkpoint_every = 2
    config.inpainter.update(recipe)
    config.stages.lesions.count = config.stages.lesions.batch_size = 2
    return config


@pytest.fixture(scope="module")
def tuned(imported, tmp_path_factory):
    """Fine-tuned with its text encoder, beside healthy tissue under the other prompt; two lesions painted."""
    folder = tmp_path_factory.mktemp("tuned")
    run_experiment(tiny(imported, closeups={"tissue_share": 0.5}), folder, stages=["inpainter", "lesions"])
    return folder


def moved(before, after):
    """By network: the largest change of a parameter."""
    old, new = (model_folder.flatten(model_folder.load_params(folder)[0]) for folder in (before, after))
    assert old.keys() == new.keys()
    change = {name: float(np.abs(old[name] - new[name]).max()) for name in old}
    return {part: {n: c for n, c in change.items() if n.startswith(part)} for part in ("unet", "vae", "text_encoder")}


def test_u_net_and_text_encoder_learn_and_the_autoencoder_stays(imported, tuned):
    change = {part: max(values.values()) for part, values in moved(imported, tuned / "inpainter" / "model").items()}
    assert change["vae"] == 0 and change["unet"] > 0 and change["text_encoder"] > 0


def test_the_prompt_of_the_training_is_the_prompt_of_the_painting(tuned):
    record = files.read_json(tuned / "lesions" / "provenance" / "000000.json")
    assert record["prompt"] == "a mammogram with a mass lesion"
    parts, _, description = inpainters.load(tuned / "inpainter" / "model")
    tokens = stable_diffusion.load(tuned / "inpainter" / "model").tokenizer.encode([record["prompt"]])
    assert parts.words.lesion == tuple(tokens[0]) and parts.guidance == 2.0
    assert description.prompts["tissue"] == "a mammogram" and parts.words.tissue != parts.words.lesion


def test_what_was_trained_goes_to_diffusers(tuned, tmp_path):
    stable_diffusion.export_folder(tuned / "inpainter" / "model", tmp_path / "exported")
    pipeline = diffusers_folder.read_pipeline(tmp_path / "exported")
    again, _ = stable_diffusion.from_pipeline(pipeline)
    ours = model_folder.load_params(tuned / "inpainter" / "model")[0]
    for part, tree in again.params.items():
        for path, leaf in model_folder.flatten(tree).items():
            np.testing.assert_array_equal(leaf, model_folder.flatten(ours[part])[path])


def test_adapters_change_the_attention_alone_and_latents_are_encoded_once(imported, tmp_path):
    unchanged = {"tissue_share": 0.0, "horizontal_flip": 0.0, "vertical_flip": 0.0, "gain": 0.0}
    config = tiny(imported, lora={"rank": 2}, cached_windows=2, closeups=unchanged)
    run_experiment(config, tmp_path, stages=["inpainter"])
    change = moved(imported, tmp_path / "inpainter" / "model")
    touched = {name for values in change.values() for name, value in values.items() if value > 0}
    assert touched and all("attn" in name and name.endswith("kernel") for name in touched)
    assert {name.split("/")[0] for name in touched} == {"unet", "text_encoder"}


def test_a_training_from_nothing_is_refused(imported, tmp_path):
    config = inpaint_cem.get_config("paper")
    config.data.real = inpaint_cem.get_config("tiny").data.real
    config.inpainter.closeups.window = 32
    with refused("model", "import_weights", where="config.stages.inpainter.init_from"):
        run_experiment(config, tmp_path, stages=["inpainter"])


def test_latents_are_cached_only_of_close_ups_that_stay_as_they_are(imported, tmp_path):
    config = tiny(imported, cached_windows=2, closeups={"tissue_share": 0.5})
    with refused("closeups.tissue_share", where="config.inpainter.cached_windows"):
        run_experiment(config, tmp_path / "changed", stages=["inpainter"])
    config = inpaint_cem.get_config("tiny")
    config.inpainter.cached_windows = 2
    with refused("autoencoder", where="config.inpainter.cached_windows"):
        run_experiment(config, tmp_path / "pixels", stages=["inpainter"])


def test_a_painter_that_is_trained_further_follows_the_recipe(tuned):
    """Prompts, sampler and guidance are the recipe's, not those of the model that it starts from; networks stay."""
    config = tiny(tuned / "inpainter" / "model", guidance=3.0)
    config.inpainter.sampler.steps = 4
    config.inpainter.prompts.lesion = "a lesion"
    experiment = parse(config)
    stage = experiment.stages["inpainter"]
    start = starting_point(Run(experiment, tuned, make_mesh()), stage, experiment.recipe_of(stage), source=())
    before, _, description = inpainters.load(tuned / "inpainter" / "model")
    assert (start.parts.guidance, start.parts.sampler.steps) == (3.0, 4)
    assert start.prompts["lesion"] == "a lesion" and start.parts.words.lesion != before.words.lesion
    assert start.parts.words.tissue == before.words.tissue
    assert start.parts.model == before.model and start.networks == description.parts
