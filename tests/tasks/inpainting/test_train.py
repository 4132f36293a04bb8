"""From lesions to an inpainter, through the real stage at a tiny size."""

from __future__ import annotations

import shutil
from dataclasses import replace

import cv2
import jax
import numpy as np

from elk_jax.data.sources.labels import lesion_class
from elk_jax.diffusion import inpainter
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from elk_jax.tasks import TASKS, find_model
from elk_jax.tasks.inpainting import model as inpainters
from elk_jax.tasks.inpainting.train import starting_point
from elk_jax.tasks.run import Run
from elk_jax.training.mesh import make_mesh
from elk_jax.training.writer import read_metrics
from tests.refusals import refused
from tests.tasks.inpainting.conftest import tiny


def test_training_leaves_curves_pictures_and_a_model(run):
    lines = read_metrics(run / "inpainter" / "metrics.jsonl")
    assert {"train/loss", "train/error_lesion", "eval/loss"} <= {key for line in lines for key in line}
    picture = cv2.imread(str(run / "inpainter" / "pictures" / "painted-000004.png"))
    assert picture.shape[0] == 3 * 32 and picture.shape[1] % 32 == 0
    parts, params, description = inpainters.load(run / "inpainter" / "model")
    assert parts.model.size == 32 and parts.noise.prediction == "x0"
    assert description.window == 48 and set(description.areas) == {"free", "medium"}
    assert description.areas["free"].area[0] < description.areas["medium"].area[0]
    assert set(params) == {"unet"}
    found = find_model(run, None, lambda task: True)
    assert found == (run / "inpainter" / "model", TASKS["inpainting"])


def test_the_same_networks_are_trained_further_at_another_picture_size(run):
    config = tiny()
    config.inpainter.model.size = 48
    config.stages.inpainter.init_from = str(run / "inpainter" / "model")
    experiment = parse(config)
    stage = experiment.stages["inpainter"]
    start = starting_point(Run(experiment, run, make_mesh()), stage, experiment.recipe_of(stage), source=())
    parts, params, _ = inpainters.load(run / "inpainter" / "model")
    assert (start.parts.model.size, start.parts.model.unet.sample_size) == (48, 12)
    assert start.parts.model.std == parts.model.std
    fresh = jax.eval_shape(lambda rng: inpainter.init(start.parts.model, rng), jax.random.key(0))
    assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, params)


def test_lesions_of_several_classes_are_not_learned_alike(tmp_path, monkeypatch):
    opened = Run.open
    monkeypatch.setattr(Run, "open", lambda *arguments: of_two_classes(opened(*arguments)))
    with refused("mass", "cyst"):
        run_experiment(tiny(), tmp_path, stages=["inpainter"])


def test_classes_without_lesions_do_not_count(tmp_path):
    run = Run(parse(tiny()), tmp_path, make_mesh())
    assert lesion_class(of_two_classes(run.open("real", "train"), ignored=True)) == "mass"


def of_two_classes(source, ignored=False):
    """The same images with masses, a cyst on the last one, and no lesion of the first class."""
    infos = [replace(info, labels=info.labels + 1) for info in source.infos]
    box = np.array([[9, 9, 20, 20]], np.float32)
    infos[-1] = replace(infos[-1], boxes=box, labels=np.array([2], np.int32), ignore=np.array([ignored]))
    return replace(source, classes=("breast", "mass", "cyst"), infos=tuple(infos))


def test_a_training_is_not_resumed_with_another_validation_split(run, tmp_path, monkeypatch):
    copy, opened = shutil.copytree(run, tmp_path / "run"), Run.open
    (copy / "inpainter" / "finished.json").unlink()

    def others(run, sources, split):
        found = opened(run, sources, split)
        infos = (replace(found.infos[0], patient_id="P"), *found.infos[1:])
        return replace(found, infos=infos) if split == "val" else found

    monkeypatch.setattr(Run, "open", others)
    with refused("validation split", where=copy / "inpainter" / "checkpoints"):
        run_experiment(tiny(), copy, stages=["inpainter"])
