"""Settings that an experiment refuses, leaving nothing behind, and run folders; nothing is trained here."""

from __future__ import annotations

import shutil

import pytest

from configs import bridge_le_to_cem, cem_mixed, cem_real, mammo_pretrain, mcgan, patch_denoiser, swin_real
from elk_jax import files
from elk_jax.data.batches import detection as batches
from elk_jax.errors import UserError
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from tests.experiments.checks import assert_refused, on_files, stand_in
from tests.refusals import refused


@pytest.mark.parametrize(
    "key, value",
    [
        ("detector.steps", 0),
        ("detector.steps", -1),
        ("detector.accumulate", 0),
        ("detector.log_every", 0),
        ("detector.checkpoint_every", -1),
        ("detector.eval_every", -2),
        ("detector.bootstrap", -3),
        ("detector.ema_decay", 1.0),
        ("detector.ema_decay", -0.5),
        ("detector.score_floor", 1.5),
        ("detector.choose_score_floor", float("nan")),
        ("inpainter.steps", 0),
        ("inpainter.accumulate", 0),
        ("inpainter.ema_decay", 1.0),
        ("inpainter.cached_windows", -1),
        ("inpainter.choose", "first"),
        ("stages.lesions.area", "huge"),
        ("stages.lesions.count", -1),
        ("stages.lesions.share", -1.0),
        ("stages.evaluate.criterion", "iou:x"),
        ("stages.evaluate.criterion", "iou:30"),
        ("detector.bootstrap", 10**9),
        ("stages.lesions.model", ""),
        ("stages.real.recipe", ""),
        ("stages.mixed.weights", (0.5,)),
        ("stages.mixed.weights", (1.5, -0.5)),
        ("stages.mixed.weights", ("half", "half")),
        ("stages.real.weights", (0.5, 0.5)),
        ("detector.best_metric", "aufroc3"),
        ("detector.test_flips", ("diagonal",)),
        ("detector.model.backbone.depth", 77),
        ("detector.loader.batch_size", 0),
        ("detector.schedule.name", "magic"),
        ("detector.schedule.base", -1e-3),
        ("detector.schedule.warmup_steps", -1),
        ("detector.optimizer.name", "magic"),
        ("detector.optimizer.multipliers", ("backbone", 0.1)),
        ("detector.optimizer.multipliers", (("backbone", -0.1),)),
        ("detector.optimizer.frozen", ("(",)),
        ("detector.optimizer.frozen", (2,)),
        ("detector.optimizer.eps", 0.0),
        ("detector.optimizer.b2", 1.0),
        ("detector.model.backbone.dtype", "foo"),
        ("detector.loader.buckets", (384, 256)),
        ("detector.loader.buckets", ()),  # its images are jittered in a canvas
        ("detector.loader.lesion_share", 2.0),
        ("detector.loader.resize.short_sides", ("large",)),
        ("detector.loader.augmentation.crop_sides", (0.5,)),
        ("inpainter.optimizer.name", "magic"),
        ("inpainter.closeups.batch_size", 0),
        ("inpainter.closeups.workers", -1),
        ("inpainter.sampler.name", "euler"),
        ("inpainter.sampler.steps", 0),
        ("inpainter.sampler.steps", 2000),
        ("inpainter.guidance", -1.0),
        ("inpainter.noise.name", "quadratic"),
        ("inpainter.noise.steps", 1),
        ("inpainter.noise.prediction", "score"),
        ("inpainter.model.size", 30),
        ("inpainter.model.patch", 0),
        ("inpainter.model.scale", 0.0),
        ("inpainter.model.block_out_channels", (8, "16")),
        ("inpainter.model.layers_per_block", 0),
        ("inpainter.model.norm_num_groups", 3),
        ("inpainter.model.attention_head_dim", 3),
        ("inpainter.networks.dtype", "foo"),
        ("inpainter.networks.attention", "flash"),
        ("inpainter.loss.mask_outside", -1.0),
        ("inpainter.loss.min_snr_gamma", -1.0),
        ("inpainter.loss.noise_offset", float("nan")),
        ("inpainter.lora.rank", -1),
        ("inpainter.lora.rank", 2),  # no model to adapt
        ("inpainter.lora.targets", "("),
        ("inpainter.lora.alpha", 8.0),  # without adapters
        ("stages.lesion_quality.synthetic", "real"),  # compared with themselves
        ("detector.model.score_floor", 0.5),  # the recipe's own is read
        ("detector.loader.resize.max_long_side", 640),  # its images are fitted to a canvas
        ("detector.test_resize.max_long_side", 640),
        ("detector.optimizer.nesterov", True),  # of sgd
        ("detector.optimizer.momentum", 0.5),
    ],
)
def test_values_that_cannot_be_are_named(ran, tmp_path, key, value):
    config = cem_mixed.get_config("tiny")
    config.update_from_flattened_dict({key: value})
    assert_refused(config, tmp_path / "run", where=f"config.{key}")
    assert not ran


@pytest.mark.parametrize(
    "key, value",
    [
        ("model.dtype", "foo"),
        ("model.patch", 0),
        ("model.norm_num_groups", 3),
        ("model.down_block_types", ("DownBlock",)),
        ("model.answer", "noise"),
        ("sampler.steps", 2000),
        ("pairs.workers", -1),
        ("loss", "l3"),
        ("optimizer.multipliers", (("unet",),)),
    ],
)
def test_values_of_a_translator_that_cannot_be_are_named(ran, tmp_path, key, value):
    config = bridge_le_to_cem.get_config("tiny")
    config.update_from_flattened_dict({f"bridge.{key}": value})
    assert_refused(config, tmp_path / "run", where=f"config.bridge.{key}")
    assert not ran


@pytest.mark.parametrize(
    "config, setting, value, words",
    [
        (cem_real, "detector.optimizer.frozen", ("nothing",), ("'nothing'",)),
        (cem_mixed, "inpainter.optimizer.frozen", ("nothing",), ("'nothing'",)),
        (cem_mixed, "inpainter.optimizer.frozen", ("^unet/conv_in",), ("random", "unet/conv_in/bias")),
        (bridge_le_to_cem, "bridge.optimizer.multipliers", (("nothing", 0.1),), ("'nothing'",)),
        (bridge_le_to_cem, "bridge.optimizer.frozen", ("^unet/conv_in",), ("random", "unet/conv_in/bias")),
        (mcgan, "gan.optimizer.frozen", ("nothing",), ("'nothing'",)),
        (mcgan, "gan.optimizer.frozen", ("^condition",), ("random", "condition/bias")),
        (mcgan, "gan.discriminator_optimizer.multipliers", (("nothing", 0.1),), ("'nothing'",)),
        (mcgan, "gan.discriminator_optimizer.frozen", ("^condition",), ("random", "condition/bias")),
        (patch_denoiser, "denoiser.optimizer.frozen", (".",), ("every",)),
        (swin_real, "network.optimizer.multipliers", (("nothing", 0.1),), ("'nothing'",)),
    ],
)
def test_what_an_optimizer_cannot_train_is_refused_before_the_first_stage(ran, tmp_path, config, setting, value, words):
    """Expressions that match no parameter, and random weights that would stay so, in the trainings of every task."""
    config = config.get_config("tiny")
    config.update_from_flattened_dict({setting: value})
    assert_refused(config, tmp_path / "run", *words, where=f"config.{setting}")
    assert not ran


@pytest.mark.parametrize("seed", [-1, 1 << 32, 1 << 63])
def test_a_seed_has_32_bits(tmp_path, seed):
    config = cem_real.get_config("tiny")
    config.seed = seed
    assert_refused(config, tmp_path / "run", seed, 2**32 - 1, where="config.seed")


def test_every_stage_has_its_own_weights(coco, monkeypatch, tmp_path):
    """The recipe serves stages of one source and of two; what it says of a mix itself is refused."""
    seen = []

    def enough(source, config, *arguments, weights):
        seen.append(weights)
        raise UserError("enough")

    monkeypatch.setattr(batches, "train_batches", enough)
    config = on_files(cem_mixed, real=coco("real"), synthetic=coco("painted", {"train": ("E",)}))
    config.stages.mixed.weights = (0.25, 0.75)
    for name in ("real", "mixed"):
        with refused("enough"):
            run_experiment(config, tmp_path / name, [name])
    assert seen == [(), (0.25, 0.75)]
    with config.unlocked():
        config.detector.loader.weights = (0.25, 0.75)
    assert_refused(config, tmp_path / "old", "'weights'", where="config.detector.loader.weights")


def test_limits_are_allowed():
    config = cem_mixed.get_config("tiny")
    for recipe in (config.detector, config.inpainter):
        recipe.update(steps=1, accumulate=1, log_every=1, checkpoint_every=0, eval_every=0, ema_decay=0.0)
    config.detector.update(bootstrap=0, score_floor=0.0, choose_score_floor=1.0)
    config.stages.lesions.update(share=0.0, count=3)
    parse(config)


def test_some_stage_is_named(tmp_path):
    assert_refused(cem_real.get_config("tiny"), tmp_path / "run", "real, evaluate", where="--stages=", stages=[])


def test_the_folder_of_another_experiment_is_left_alone(ran, tmp_path):
    run_experiment(cem_real.get_config("tiny"), tmp_path / "run")
    assert_refused(
        mammo_pretrain.get_config("tiny"), tmp_path / "run", "cem_real", "mammo_pretrain", "--workdir", where="run"
    )
    assert files.read_json(tmp_path / "run" / "config.json")["name"] == "cem_real"
    assert_refused(cem_real.get_config("tiny"), tmp_path / "run" / "real", "something else", "cem_real")


def test_settings_bind_from_the_first_checkpoint_on(ran, monkeypatch, tmp_path):
    config, folder = cem_real.get_config("tiny"), tmp_path / "run"
    config.detector.best_metric = "aufroc3"
    assert_refused(config, folder, "aufroc3", where="config.detector.best_metric")

    def failing(run, stage, recipe):
        raise UserError("the model is too large")

    config.detector.best_metric = "aufroc_3"
    with monkeypatch.context() as patch:
        stand_in(patch, "detection", "train", failing)
        with refused("too large"):
            run_experiment(config, folder)
    config.detector.steps = 6
    run_experiment(config, folder)
    assert ran == ["real", "evaluate"] and files.read_json(folder / "real" / "config.json")["recipe"]["steps"] == 6
    config.detector.steps = 8
    (folder / "real" / "finished.json").unlink()
    assert_refused(config, folder, "recipe.steps", 6, 8)
    shutil.rmtree(folder / "real" / "checkpoints")
    run_experiment(config, folder)
    assert ran[2:] == ["real", "evaluate"] and files.read_json(folder / "config.json")["detector"]["steps"] == 8
