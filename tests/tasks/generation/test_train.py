"""From patches of two classes to a generator, through the real stage at a tiny size; and data that are refused."""

from __future__ import annotations

import shutil

import cv2
import jax
import numpy as np
import pytest

from configs import mcgan
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from elk_jax.gan.networks import GanConfig
from elk_jax.tasks import TASKS, find_model
from elk_jax.tasks.generation import model as generators
from elk_jax.tasks.generation import train
from elk_jax.tasks.run import Run
from elk_jax.training.checkpoint import load_state
from elk_jax.training.writer import read_metrics
from elk_jax.weights import model_folder
from tests.refusals import refused
from tests.tasks.checks import assert_same_weights, resumed


def test_training_leaves_curves_pictures_and_a_generator(run):
    keys = {key for line in read_metrics(run / "gan" / "metrics.jsonl") for key in line}
    assert {"train/loss", "train/discriminator_loss", "train/real_score", "train/made_score"} <= keys
    assert {"eval/distance", "eval/checkerboard"} <= keys
    pictures = [cv2.imread(str(run / "gan" / "pictures" / f"made-{step:06d}.png")) for step in (3, 6)]
    assert {picture.shape[:2] for picture in pictures} == {(2 * 16, 8 * 16)}
    assert (pictures[0] != pictures[1]).any(), "the generator has not changed"
    params, description = generators.load(run / "gan" / "model")
    assert description.classes == ("benign", "malignant") and description.trained.step == 6
    assert set(params) == {"condition", *(f"conv_{number}" for number in range(1, 4))}
    assert find_model(run, None, lambda task: task.name == "generation")[1] is TASKS["generation"]


def test_what_is_kept_is_the_averaged_generator(run):
    kept = model_folder.flatten(generators.load(run / "gan" / "model").params)
    state = load_state(run / "gan" / "checkpoints", 6)
    for name, value in model_folder.flatten(state.ema_params).items():
        np.testing.assert_array_equal(kept[name], value, err_msg=name)
    last = model_folder.flatten(state.params["generator"])
    assert any((last[name] != value).any() for name, value in kept.items())


def test_an_interrupted_training_is_resumed_to_the_bit(run, tmp_path):
    copy = resumed(run, mcgan.get_config("tiny"), "gan", 6, tmp_path / "run")
    assert_same_weights(run / "gan", copy / "gan")
    states = [load_state(one / "gan" / "checkpoints", 6) for one in (run, copy)]
    judges = [model_folder.flatten(state.params["discriminator"]) for state in states]
    for name, leaf in judges[0].items():
        np.testing.assert_array_equal(judges[1][name], leaf, err_msg=name)


@pytest.mark.parametrize("variant", ["tiny,wgan", "tiny,lsgan,resize"])
def test_the_other_objectives_train(tmp_path, variant):
    config = mcgan.get_config(variant)
    config.gan.steps = config.gan.eval_every = config.gan.checkpoint_every = 1
    if "wgan" in variant:
        config.gan.ratio, config.gan.images.batch_size = 2, 8
    run_experiment(config, tmp_path, stages=["gan"])
    (line,) = (line for line in read_metrics(tmp_path / "gan" / "metrics.jsonl") if "train/loss" in line)
    assert ("train/slope" in line) == ("wgan" in variant)


# ---- Data that are refused -------------------------------------------------------------------------------------------


def write(folder, sizes=((16, 16),), classes=("benign", "malignant"), splits=("train", "val"), seed=0):
    """DIR/SPLIT/CLASS/NUMBER.png, of these sizes in turn."""
    rng = np.random.default_rng(seed)
    for split in splits:
        for name in classes:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(3):
                size = sizes[number % len(sizes)]
                cv2.imwrite(str(folder / split / name / f"{number}.png"), rng.integers(0, 255, size, np.uint8))
    return folder


def start(folder, data, **model):
    config = mcgan.get_config("tiny")
    config.data.patches.spec = str(data)
    config.gan.model.update(model)
    run_experiment(config, folder, stages=["gan"])


def test_patches_of_several_sizes_are_refused_or_scaled(tmp_path):
    data = f"folders:{write(tmp_path / 'data', sizes=((16, 16), (24, 24)))}"
    with refused("24 x 24 px", "16 x 16", "mixed_sizes"):
        start(tmp_path / "run", data)
    assert not (tmp_path / "run").exists()
    wide = f"folders:{write(tmp_path / 'wide', sizes=((16, 24),))}"
    with refused("24 x 16 px", "square", "mixed_sizes"):
        start(tmp_path / "run", wide)
    config = mcgan.get_config("tiny")
    config.data.patches.spec, config.gan.mixed_sizes = data, True
    parsed = parse(config)
    train.check_train(Run(parsed, tmp_path, mesh=None), parsed.stages["gan"], parsed.recipes["gan"], ())


def test_other_numbers_of_classes_are_refused(tmp_path):
    data = f"folders:{write(tmp_path / 'data', classes=('a', 'b', 'c'))}"
    with refused("a, b, c", 3, where="config.gan.model.classes"):
        start(tmp_path / "run", data)


def test_a_class_without_images_is_refused(tmp_path):
    write(tmp_path / "data", classes=("benign",), splits=("train",))
    write(tmp_path / "data", splits=("val",))
    with refused("malignant", "no training image"):
        start(tmp_path / "run", f"folders:{tmp_path / 'data'}")


def test_a_source_without_classes_is_refused(tmp_path):
    """Of an experiment for detection: images with several boxes or none."""
    with refused("class"):
        start(tmp_path / "run", "phantom:size=64,count=24,healthy_fraction=0.5", classes=1)


def test_too_few_validation_images_are_refused(tmp_path):
    write(tmp_path / "data", splits=("train",))
    (tmp_path / "data" / "val" / "benign").mkdir(parents=True)
    shutil.copy(tmp_path / "data" / "train" / "benign" / "0.png", tmp_path / "data" / "val" / "benign" / "x.png")
    with refused(1, "validation", where="split 'val'"):
        start(tmp_path / "run", f"folders:{tmp_path / 'data'}")


def test_a_training_starts_from_nothing(tmp_path):
    config = mcgan.get_config("tiny")
    config.stages.gan.init_from = "weights"
    with refused("discriminator", where="init_from"):
        run_experiment(config, tmp_path / "run", stages=["gan"])


def test_a_batch_is_shared_by_the_updates_of_the_discriminator(tmp_path):
    config = mcgan.get_config("tiny")
    config.gan.images.batch_size = 7
    with refused(7, 2, where="images.batch_size"):
        run_experiment(config, tmp_path / "run", stages=["gan"])


def test_one_class_needs_no_condition():
    game = generators.trainable(GanConfig(size=8, classes=1, noise=4, generator_width=2, discriminator_width=2))
    shapes = jax.eval_shape(game.init, jax.random.key(0))
    assert all("condition" not in shapes[player] for player in ("generator", "discriminator"))
