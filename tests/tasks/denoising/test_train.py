"""From patches of two classes to a denoiser and patches drawn by it, through the real stages at a tiny size."""

from __future__ import annotations

import shutil

import cv2
import jax
import numpy as np
import pytest

from configs import mcgan, patch_denoiser
from elk_jax import files
from elk_jax.data.batches import labelled
from elk_jax.data.patches import resized
from elk_jax.data.sources.open import open_source
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from elk_jax.tasks import TASKS, find_model
from elk_jax.tasks.denoising import train
from elk_jax.tasks.generation import model as generators
from elk_jax.tasks.generation import synthesize
from elk_jax.tasks.generation.recipe import SampleSettings
from elk_jax.training import mesh as meshes
from elk_jax.training.writer import read_metrics
from elk_jax.weights import model_folder
from tests.refusals import refused
from tests.tasks.checks import assert_same_weights, resumed
from tests.tasks.generation.test_train import write

STAGES = ["denoiser", "samples", "looks"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("denoiser")
    run_experiment(patch_denoiser.get_config("tiny"), folder, stages=STAGES)
    return folder


def test_training_leaves_curves_pictures_a_denoiser_and_patches(run):
    keys = {key for line in read_metrics(run / "denoiser" / "metrics.jsonl") for key in line}
    assert {"train/loss", "eval/loss"} <= keys
    pictures = [cv2.imread(str(run / "denoiser" / "pictures" / f"made-{step:06d}.png")) for step in (3, 6)]
    assert {picture.shape[:2] for picture in pictures} == {(2 * 16, 8 * 16)}
    trained = generators.load(run / "denoiser" / "model")
    assert trained.description.architecture == "patch_denoiser" and trained.description.trained.step == 6
    assert trained.description.classes == ("benign", "malignant") and trained.description.size == 16
    assert set(trained.params) == {"unet", "classes"} and trained.params["classes"].shape == (3, 8)
    assert find_model(run, None, lambda task: task.synthesize is not None)[1] is TASKS["generation"]
    drawn = files.read_object(run / "samples" / "synthetic.json")
    assert len(drawn["images"]) == 12 and drawn["categories"][1]["name"] == "malignant"
    page = (run / "report.html").read_text()
    assert "Progress of the generator" in page and "Denoisers of patches" in page


def strengths_of(split: str):
    """(mean, deviations) of the embedded patches: of blocks of two pixels, the mean, and differences across, down and
    both."""
    source = open_source(parse(patch_denoiser.get_config("tiny")).data["patches"], split)
    images = np.stack([resized(record.image, 16)[..., 0] for record in source])
    pixels = (images - images.mean()).reshape(-1, 8, 2, 8, 2)
    down, across = (np.diff(pixels, axis=axis) for axis in (2, 4))
    found = pixels.sum((2, 4)) / 2, across.sum(2) / 2, down.sum(4) / 2, np.diff(down, axis=4) / 2
    return images.mean(), [one.std() for one in found]


def test_waves_are_as_strong_as_in_the_training_patches(run):
    kept, (mean, deviations) = (
        generators.load(run / "denoiser" / "model").description.model.strengths,
        strengths_of("train"),
    )
    assert kept.mean == pytest.approx(mean, abs=1e-5)
    np.testing.assert_allclose(kept.deviations, deviations, rtol=1e-2)


def test_an_interrupted_training_is_resumed_to_the_bit(run, tmp_path):
    copy = resumed(run, patch_denoiser.get_config("tiny"), "denoiser", 6, tmp_path / "run")
    assert_same_weights(run / "denoiser", copy / "denoiser")


def test_a_denoiser_learns_what_its_classes_look_like(tmp_path):
    """Dark patches and bright ones, each with a little noise."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name, grey in (("benign", 70), ("malignant", 170)):
            folder = files.make_folder(tmp_path / "data" / split / name)
            for number in range(16):
                cv2.imwrite(str(folder / f"{number}.png"), rng.normal(grey, 8, (16, 16)).clip(0, 255).astype(np.uint8))
    config = patch_denoiser.get_config("tiny")
    config.data.patches.spec = f"folders:{tmp_path / 'data'}"
    config.denoiser.update({"steps": 150, "eval_every": 0, "checkpoint_every": 0, "ema_decay": 0.9})
    config.denoiser.schedule.update({"base": 3e-3, "warmup_steps": 5})
    config.denoiser.sampler.steps = 20
    run_experiment(config, tmp_path / "run", stages=["denoiser", "samples"])
    means = {
        name: [cv2.imread(str(path), 0).mean() for path in sorted((tmp_path / "run/samples/images" / name).glob("*"))]
        for name in ("benign", "malignant")
    }
    assert len(means["benign"]) == len(means["malignant"]) == 6
    assert np.abs(np.array(means["benign"]) - 70).max() < 25 and np.abs(np.array(means["malignant"]) - 170).max() < 25


def test_the_best_checkpoint_is_kept_where_that_is_asked_for(tmp_path, monkeypatch):
    losses = iter([0.25, 0.5])
    monkeypatch.setattr(train.sampling, "fixed_loss", lambda *_: lambda *_: {"loss": next(losses)})
    config = patch_denoiser.get_config("tiny")
    config.denoiser.choose = "best"
    run_experiment(config, tmp_path, stages=["denoiser"])
    assert generators.load(tmp_path / "denoiser" / "model").description.trained.step == 3


def start(folder, weights, **model):
    config = patch_denoiser.get_config("tiny")
    config.stages.denoiser.init_from = str(weights)
    config.denoiser.model.update(model)
    config.denoiser.update({"steps": 1, "eval_every": 0, "checkpoint_every": 0})
    config.denoiser.optimizer.clip_norm = 1e-9
    run_experiment(config, folder, stages=["denoiser"])


def test_a_training_may_start_from_another_denoiser(run, tmp_path):
    before = run / "denoiser" / "model"
    start(tmp_path / "run", before)
    whole, again = (generators.load(folder).params for folder in (before, tmp_path / "run/denoiser/model"))
    for name, leaf in model_folder.flatten(whole).items():
        np.testing.assert_allclose(model_folder.flatten(again)[name], leaf, atol=2e-3, err_msg=name)
    kept = [generators.load(folder).description.model.strengths for folder in (before, tmp_path / "run/denoiser/model")]
    assert kept[0] == kept[1]


def test_other_weights_are_refused_before_the_start(run, tmp_path):
    gan = tmp_path / "gan"
    config = mcgan.get_config("tiny")
    config.gan.update({"steps": 1, "eval_every": 0, "checkpoint_every": 0})
    run_experiment(config, gan, stages=["gan"])
    with refused("'gan'", "not a denoiser", where=gan / "gan" / "model"):
        start(tmp_path / "run", gan / "gan" / "model")
    before = run / "denoiser" / "model"
    with refused("patch", 2, 4, "--config.denoiser.model.patch=2", where=before):
        start(tmp_path / "run", before, patch=4)
    with refused("norm_num_groups", 4, 2, where=before):
        start(tmp_path / "run", before, norm_num_groups=2)
    config = patch_denoiser.get_config("tiny")
    config.stages.denoiser.init_from, config.denoiser.noise.steps = str(before), 500
    with refused("--config.denoiser.noise.steps=1000", where=before):
        run_experiment(config, tmp_path / "run", stages=["denoiser"])
    assert not (tmp_path / "run").exists()


def test_data_that_a_generator_cannot_learn_from_are_refused(tmp_path):
    config = patch_denoiser.get_config("tiny")
    config.data.patches.spec = f"folders:{write(tmp_path / 'data', classes=('a', 'b', 'c'))}"
    with refused("a, b, c", 3, where="config.denoiser.model.classes"):
        run_experiment(config, tmp_path / "run", stages=["denoiser"])


def test_settings_that_cannot_draw_are_refused():
    config = patch_denoiser.get_config("tiny")
    config.denoiser.sampler.steps = 2000
    with refused(2000, 1000, where="config.denoiser.sampler.steps"):
        parse(config)
    config = patch_denoiser.get_config("tiny")
    config.denoiser.update({"guidance": 2.0, "hidden": 0.0})
    with refused("guidance", "2.0", where="config.denoiser.hidden"):
        parse(config)


def test_a_private_training_says_what_it_promises(tmp_path):
    config = patch_denoiser.get_config("tiny,private")
    config.denoiser.privacy.update({"epsilon": None, "noise_multiplier": 1.0, "accountant": "rdp", "images": 2})
    run_experiment(config, tmp_path, stages=["denoiser", "samples"])
    trained = generators.load(tmp_path / "denoiser" / "model").description.trained
    (phase,) = trained.privacy.ledger.phases
    assert trained.privacy.private and phase.steps == 6 and trained.patients == ()
    described = generators.load(tmp_path / "denoiser" / "model").description.model.strengths
    of_val, of_train = strengths_of("val"), strengths_of("train")
    assert described.mean == pytest.approx(of_val[0], abs=1e-5) != pytest.approx(of_train[0], abs=1e-5)
    np.testing.assert_allclose(described.deviations, of_val[1], rtol=1e-2)
    summary = files.read_object(tmp_path / "denoiser" / "finished.json")["summary"]
    assert summary["data"]["train"].keys() == {"units"}
    keys = {key for line in read_metrics(tmp_path / "denoiser" / "metrics.jsonl") for key in line}
    assert "eval/loss" in keys and "train/loss" not in keys
    info = files.read_object(tmp_path / "samples" / "synthetic.json")["info"]
    assert info["promise"] == trained.privacy.sentence() and "seen_patients" not in info

    start(tmp_path / "again", tmp_path / "denoiser" / "model")  # without privacy: who taught the weights is still told
    again = generators.load(tmp_path / "again" / "denoiser" / "model").description.trained
    assert again.inherited == (trained.privacy,) and again.privacy is None


def draw(model, output, **settings):
    synthesize.sample(model, 2, output, SampleSettings(**settings), 42, meshes.make_mesh())
    names = [f"{name}/{number:06d}.png" for name in ("benign", "malignant") for number in range(2)]
    return np.stack([cv2.imread(str(output / "images" / name), cv2.IMREAD_UNCHANGED) for name in names]).astype(int)


def test_a_trained_denoiser_draws_with_another_guidance_and_other_steps(run, tmp_path):
    """With guidance 0 the class does not matter; a stage and a folder draw the same. Classes, of which six steps teach
    little, are told loudly."""
    params, description = generators.load(run / "denoiser" / "model")
    model = tmp_path / "model"
    model_folder.save_params(model, params | {"classes": 1e4 * params["classes"]}, description)
    of_stage = draw(model, tmp_path / "plain")
    assert (of_stage == draw(model, tmp_path / "said", guidance=1.0, sampler_steps=3)).all()
    assert (of_stage != draw(model, tmp_path / "guided", guidance=3.0)).any()
    assert (of_stage != draw(model, tmp_path / "finer", sampler_steps=6)).any()
    seeds = {"seed": np.full((2, 2), 7, np.uint32), "label": np.array([0, 1], np.int32)}
    made = [
        np.asarray(one.predict(one.params, {}, seeds, None)["image"])
        for guidance in (0.0, 3.0)
        for one in [synthesize.drawing(model, SampleSettings(guidance=guidance))]
    ]
    np.testing.assert_allclose(made[0][0], made[0][1], atol=1e-5)
    assert np.abs(made[1][0] - made[1][1]).max() > 1e-4
    config = patch_denoiser.get_config("tiny")
    config.stages.samples.update({"model": str(model), "guidance": 3.0, "per_class": 2})
    run_experiment(config, tmp_path / "run", stages=["samples"])
    name = "images/malignant/000001.png"
    assert (tmp_path / "run" / "samples" / name).read_bytes() == (tmp_path / "guided" / name).read_bytes()


def test_folders_that_do_not_say_what_was_hidden_are_read(run, tmp_path):
    folder = shutil.copytree(run / "denoiser" / "model", tmp_path / "model")
    content = files.read_object(folder / "model.json")
    assert content.pop("hidden") == 0.1
    files.write_json(folder / "model.json", content)
    assert generators.load(folder).description.hidden == 0.1


def test_a_set_that_says_nothing_of_denoisers_is_that_of_any_generator(run):
    """So that sets that were drawn before these settings existed count as unchanged."""
    assert not {"guidance", "sampler_steps"} & files.read_object(run / "samples" / "synthesis.json").keys()


@pytest.mark.parametrize(
    "changes, settings, words",
    [
        ({}, {"sampler_steps": 5000}, [5000, 1000]),
        ({"hidden": 0.0}, {"guidance": 2.0}, ["guidance", "hidden"]),
    ],
)
def test_what_a_stage_cannot_draw_is_refused_before_the_training(tmp_path, changes, settings, words):
    config = patch_denoiser.get_config("tiny")
    config.denoiser.update(changes)
    config.stages.samples.update(settings)
    with refused(*words, where="config.stages.samples"):
        run_experiment(config, tmp_path / "run", stages=["denoiser", "samples"])
    assert not (tmp_path / "run" / "denoiser").exists()


def test_a_set_that_was_begun_with_another_guidance_is_not_mixed(run, tmp_path):
    draw(run / "denoiser" / "model", tmp_path / "set", guidance=2.0)
    with refused("guidance", "2.0", where=tmp_path / "set"):
        draw(run / "denoiser" / "model", tmp_path / "set")


def test_drawing_that_a_denoiser_cannot_do_is_refused(run, tmp_path):
    folder = shutil.copytree(run / "denoiser" / "model", tmp_path / "model")
    with refused(2000, 1000, where=folder):
        draw(folder, tmp_path / "out", sampler_steps=2000)
    files.write_json(folder / "model.json", files.read_object(folder / "model.json") | {"hidden": 0.0})
    with refused("guidance", "hidden", where=folder):
        draw(folder, tmp_path / "out", guidance=2.0)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_draw_is_refused_before_anything_is_written(run, tmp_path):
    folder = shutil.copytree(run / "denoiser" / "model", tmp_path / "model")
    content = files.read_object(folder / "model.json")
    sampler = {**content["sampler"], "steps": 2000}
    for change, where in (({"guidance": -3.0}, "guidance"), ({"sampler": sampler}, "sampler.steps")):
        files.write_json(folder / "model.json", {**content, **change})
        with refused("give", where=f"model.json: {where}"):
            generators.load(folder)


@pytest.mark.parametrize("size", ["quick", "small", "paper"])
def test_the_networks_of_every_size(size):
    """Those of `paper` compute in bfloat16; the loss is float32."""
    recipe = parse(patch_denoiser.get_config(size)).recipes["denoiser"]
    model = train.trainable(recipe)
    batch = labelled.blank_batch(2, recipe.model.size)
    params = jax.eval_shape(model.init, jax.random.key(0))
    loss, _ = jax.eval_shape(lambda p, b: model.loss(p, {}, b, jax.random.key(0), None), params, batch)
    assert (loss.shape, loss.dtype) == ((), np.float32)
    assert recipe.model.dtype == ("bfloat16" if size == "paper" else "float32")
