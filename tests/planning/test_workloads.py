"""What the train stages of the experiments compute, from their recipes alone."""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from elk_jax.experiments.parse import kind_of, parse
from elk_jax.planning import plan as plans
from elk_jax.tasks import private
from elk_jax.tasks.training import parameter_count, step_of
from elk_jax.training import mesh as meshes
from elk_jax.training.step.step import on_mesh
from tests.refusals import refused


def workload(experiment: str, variant: str, stage: str, batch: int | None = None):
    """(experiment, stage, workload)"""
    parsed = parse(importlib.import_module(f"configs.{experiment}").get_config(variant))
    chosen = plans._train_stage(parsed, stage)
    return parsed, chosen, kind_of(chosen).workload(chosen, parsed.recipe_of(chosen), batch)


@pytest.mark.parametrize("experiment, variant, stage", [("cem_real", "tiny", "real"),
                                                        ("unified", "tiny", "borrowed"),
                                                        ("unified", "tiny", "dropout"),
                                                        ("inpaint_cem", "tiny", "inpainter"),
                                                        ("bridge_le_to_cem", "tiny", "translator"),
                                                        ("mcgan", "tiny", "gan"),
                                                        ("mcgan", "tiny,wgan", "gan"),
                                                        ("patch_denoiser", "tiny", "denoiser"),
                                                        ("swin_real", "tiny", "network")])  # fmt: skip
def test_the_step_and_the_prediction_take_the_blank_batches(experiment, variant, stage):
    """They are traced, not compiled: nothing that a real batch has is missing."""
    parsed, chosen, work = workload(experiment, variant, stage, batch=10)
    assert work.batch_size == 10 and work.training.keys() == work.prediction.keys()
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    model, step = work.model, step_of(work.model, parsed.recipe_of(chosen), mesh, seed=0)
    predict = partial(model.predict, map_images=meshes.shard_map_images(mesh))
    for shape in work.training:
        state, metrics = jax.eval_shape(step.update, on_mesh(step, mesh).state, model.constants, work.training[shape])
        assert metrics["loss"].shape == () and state.params.keys()
        found = jax.eval_shape(predict, step.evaluation_params(state), model.constants, work.prediction[shape])
        assert {len(x) for x in found.values()} == {10}


@pytest.mark.parametrize("experiment, variant, stage, public",
                         [("bridge_le_to_cem", "tiny,private", "translator", 0.5),
                          ("inpaint_cem", "tiny,private", "inpainter", 0.0),
                          ("mcgan", "tiny,private", "gan", 0.5),
                          ("patch_denoiser", "tiny,private", "denoiser", 0.5),
                          ("swin_dp", "tiny", "network", 0.0)])  # fmt: skip
def test_a_private_step_takes_units(experiment, variant, stage, public):
    """Every device has whole micro-batches, and as many units as are expected; the loss sees all examples of one."""
    parsed, chosen, open_work = workload(experiment, variant, stage, batch=6)
    recipe = parsed.recipe_of(chosen)
    recipe = replace(recipe, privacy=replace(recipe.privacy, images=3, views=2, micro_batch=4, public_weight=public))
    devices, mesh = 3, meshes.make_mesh(devices=jax.devices()[:3])
    work = private.of_units(open_work, recipe.privacy, devices, recipe.releases)
    step = step_of(work.model, recipe, mesh, seed=0, protection=work.protection)
    for batch in work.training.values():
        lanes = batch["unit"].reshape(devices, -1)
        assert lanes.shape[1] % 4 == 0 and lanes.size > 6 + 4 * 6**0.5
        assert ((lanes >= 0).sum(1) == 2).all() and (np.diff(lanes >= 0, axis=1) == 0)[:, 2:].all()
        assert {x.shape[:2] for x in batch["examples"].values()} == {(lanes.size, 6)}
        assert batch["examples"]["valid"].all()
        assert ("public" in batch) == bool(public)
        state, metrics = jax.eval_shape(step.update, on_mesh(step, mesh).state, step.constants, batch)
        assert metrics.keys() >= {"grad_norm", "finite"} and state.params.keys()


def test_every_train_stage_can_be_planned():
    experiments = "cem_real", "cem_mixed", "cem_synthetic", "inpaint_cem", "bridge_le_to_cem", "mammo_pretrain"
    for experiment in (*experiments, "swin_real", "swin_dp", "comoto", "unified", "mcgan", "patch_denoiser"):
        parsed = parse(importlib.import_module(f"configs.{experiment}").get_config("tiny"))
        trained = [stage for stage in parsed.stages.values() if stage.kind == "train"]
        assert trained and all(kind_of(stage).workload for stage in trained), experiment


def test_the_published_inpainter_is_stable_diffusion():
    """The autoencoder is a constant, with the published number of parameters."""
    _, _, work = workload("inpaint_cem", "paper", "inpainter")
    assert parameter_count(work.model.constants["vae"]) == 83_653_863 and "unet" not in work.model.constants
    assert work.assumed and list(work.training) == ["512x512"]
    assert work.training["512x512"]["image"].shape == (8, 512, 512, 1)


def test_latents_that_are_encoded_once_are_the_batch():
    """The step reads no image, as a training with `cached_windows`."""
    unchanged = dict.fromkeys(("tissue_share", "horizontal_flip", "vertical_flip", "gain"), 0.0)
    config = importlib.import_module("configs.inpaint_cem").get_config("paper")
    config.inpainter.update({"cached_windows": 2, "closeups": unchanged})
    parsed = parse(config)
    stage = plans._train_stage(parsed, "inpainter")
    work = kind_of(stage).workload(stage, parsed.recipe_of(stage), 2)
    batch = work.training["512x512"]
    assert batch.keys() == {"mask", "lesion", "valid", "latents", "masked_latents"}
    assert batch["latents"].shape == batch["masked_latents"].shape == (2, 64, 64, 4)
    assert work.prediction["512x512"]["image"].shape == (2, 512, 512, 1)


def test_adapters_are_planned_on_the_model_that_they_adapt():
    config = importlib.import_module("configs.inpaint_cem").get_config("tiny")
    config.inpainter.lora.rank = 2
    parsed = parse(config)
    stage = plans._train_stage(parsed, "inpainter")
    make, recipe = kind_of(stage).workload, parsed.recipe_of(stage)
    with refused("adapt", where="config.inpainter.lora.rank"):
        make(stage, recipe, 2)
    work = make(replace(stage, init_from="folder"), recipe, 2)
    assert "unet" in work.model.constants and any("init_from" in sentence for sentence in work.assumed)


def test_the_published_detector_has_its_canvases():
    _, _, work = workload("cem_real", "paper", "real", batch=32)
    assert list(work.training) == ["800x800", "1344x800", "800x1344"]
    assert work.training["800x1344"]["image"].shape == (32, 800, 1344, 1)
    assert np.ndarray.__sizeof__(work.training["800x1344"]["image"]) < 1000  # a view of one zero
