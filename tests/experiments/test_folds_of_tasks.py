"""Cross-validation of every task that trains step by step: accepted, and dealt out, or refused before anything runs."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import (
    bridge_le_to_cem,
    cem_mixed,
    cem_real,
    cem_real_dp,
    cem_synthetic,
    comoto,
    inpaint_cem,
    mcgan,
    patch_denoiser,
    private_swin,
    swin_dp,
    swin_real,
    unified,
)
from elk_jax import files
from elk_jax.data.sources import coco
from elk_jax.data.sources.decode import encode_png
from elk_jax.data.sources.patients import patient_hash
from elk_jax.detection import detectors
from elk_jax.experiments import report
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from elk_jax.experiments.patients import Listed, check_folds
from elk_jax.tasks import TASKS, folds
from elk_jax.tasks.run import Run
from elk_jax.tasks.stages import TrainStage
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.weights import model_folder
from tests.detection import toy_detector
from tests.experiments.checks import assert_refused, stand_in
from tests.refusals import refused

ACCEPTED = {
    "detection": (cem_real, "detector"),
    "distillation": (comoto, "distill"),
    "unified": (unified, "dropout"),
    "inpainting": (inpaint_cem, "inpainter"),
    "translation": (bridge_le_to_cem, "bridge"),
    "denoising": (patch_denoiser, "denoiser"),
    "generation": (mcgan, "gan"),
    "classification": (swin_real, "network"),
}
"""A configuration of each task, and its recipe that takes folds."""
JOINED = {"detection", "distillation", "unified", "classification"}
"""Tasks whose folds can be one model, an ensemble."""


def folded(task: str):
    """The tiny configuration of a task with two folds, and the names of the stages that train by them."""
    module, recipe = ACCEPTED[task]
    config = module.get_config("tiny")
    config[recipe].folds = 2
    for spec in config.data.values():
        if getattr(spec, "train_share", 1.0) != 1.0:
            spec.train_share = 1.0  # of comoto, which trains on a part of its patients
    stages = [name for name, stage in config.stages.items() if stage.get("recipe") == recipe and stage.kind == "train"]
    return config, recipe, stages


def test_every_task_that_trains_step_by_step_is_here():
    training = {name for name, task in TASKS.items() if "train" in task.stages}
    assert training == set(ACCEPTED)
    assert all(issubclass(TASKS[name].stages["train"].recipe, TrainingRecipe) for name in training)
    assert {name for name in training if TASKS[name].stages["train"].join is not None} == JOINED


@pytest.mark.parametrize("task", ACCEPTED)
def test_folds_of_every_task_hold_each_patient_out_once(task, tmp_path, monkeypatch, capsys):
    """All but the training itself: what a stage would train and validate on, as its sources have it."""
    config, _, stages = folded(task)
    opened: dict[str, list] = {name: [] for name in stages}

    def look(run: Run, stage: TrainStage, recipe: TrainingRecipe):
        people = lambda names, split: {info.patient_id for info in run.list(names, split).infos}
        train, validate = people(stage.train_on, "train"), people(stage.validate_on, "val")
        opened[stage.name.partition("/")[0]].append((run.fold, train, validate))
        curve = {"metric": "loss", "mode": "min", "values": {"1": 0.5, "2": 0.4}}
        folder = files.make_folder(run.folder / stage.name)
        files.write_json(folder / folds.CURVE, curve)
        files.make_folder(folder / "model")
        return {"kind": "train"}

    stand_in(monkeypatch, task, "train", look)
    monkeypatch.setattr(report, "write", lambda run, summaries: "nowhere")
    run_experiment(config, tmp_path, stages)
    said = capsys.readouterr().out
    assert "in each" in said and not re.search(r"(\d+) to \1 in each", said)
    whole = Run(parse(config), tmp_path, mesh=None)
    for name, (first, second, last) in opened.items():
        stage = whole.experiment.stages[name]
        pool = {info.patient_id for split in ("train", "val") for info in whole.list(stage.validate_on, split).infos}
        test = {info.patient_id for info in whole.list(stage.validate_on, "test").infos}
        assert not first[1] & first[2] and not second[1] & second[2]
        assert first[2] | second[2] == pool and not first[2] & second[2] and first[2] and second[2]
        assert last[0].is_last and last[0].steps == 2 and pool <= last[1] and not test & last[1]


def painting(config, learns_from: str):
    """The stages of `cem_mixed` that paint, and the detector of both, with two folds; an inpainter of these images."""
    with config.unlocked():
        for name in set(config.stages) - {"inpainter", "lesions", "mixed"}:
            del config.stages[name]
    config.stages.inpainter.update(train_on=(learns_from,), validate_on=learns_from)
    config.detector.update(folds=2, steps=2, eval_every=0, checkpoint_every=0, test_flips=())
    return config


def test_painted_images_are_held_out_with_the_patient_of_their_canvas(tmp_path, monkeypatch):
    """An inpainter of other patients, and a detector of real and painted images, by the real loop."""
    monkeypatch.setitem(detectors.DETECTORS, "toy", toy_detector.KIND)
    config = painting(cem_mixed.get_config("tiny"), "canvases")
    config.data.canvases.spec = config.data.real.spec.replace("seed=1", "seed=9")
    with config.unlocked():
        config.detector.model = ConfigDict(dataclasses.asdict(toy_detector.ToyConfig(width=4)))

    def paint(run: Run, stage, recipe):
        canvases, folder = run.open(stage.canvases, "train"), run.folder / stage.name
        files.make_folder(folder / "images")
        infos = [
            dataclasses.replace(one, image_id=f"p{i}", file_name=f"p{i}.png") for i, one in enumerate(canvases.infos)
        ]
        for position, info in enumerate(infos):
            pixels = np.round(canvases[position].image[..., 0] * 255).astype(np.uint8)
            files.write_bytes(folder / "images" / info.file_name, encode_png(pixels))
        coco.write_coco(folder / coco.SYNTHETIC, infos, canvases.classes)
        return {"kind": "synthesize"}

    def learn(run: Run, stage, recipe):
        files.write_json(files.make_folder(run.folder / stage.name / "model") / "model.json", {})
        return {"kind": "train"}

    stand_in(monkeypatch, "inpainting", "synthesize", paint)
    stand_in(monkeypatch, "inpainting", "train", learn)
    monkeypatch.setattr(report, "write", lambda run, summaries: "nowhere")
    found = run_experiment(config, tmp_path)["mixed"]
    run = Run(parse(config), tmp_path, mesh=None)
    real = {
        split: [patient_hash(info.patient_id) for info in run.list("real", split).infos] for split in ("train", "val")
    }
    seen = [set(model_folder.seen_patients(tmp_path / "mixed" / f"fold_{number}" / "model")) for number in (1, 2)]
    assert seen[0] | seen[1] == {*real["train"], *real["val"]} and not seen[0] & seen[1]
    for number, known in enumerate(seen, start=1):  # every image of the training split was painted on once
        counts = files.read_object(tmp_path / "mixed" / f"fold_{number}" / "finished.json")["summary"]["data"]
        times = sum(one in known for one in 2 * real["train"] + real["val"])
        assert counts["train"]["images"] == times and counts["validation"]["images"] < len(real["train"] + real["val"])
    assert found["data"]["train"]["images"] == 2 * len(real["train"]) + len(real["val"])


def test_painted_images_of_an_inpainter_that_knows_the_patients_are_refused(tmp_path):
    config = painting(cem_mixed.get_config("tiny"), "real")
    assert_refused(config, tmp_path / "run", "'synthetic'", "no fold", where="config.detector.folds")


def test_an_inpainter_with_folds_of_its_own_knows_its_validation_patients_too(tmp_path):
    """It trains on them in the end: here they are those of the detector's training split."""
    config = painting(cem_mixed.get_config("tiny"), "canvases")
    config.data.canvases.spec = config.data.real.spec.replace("seed=1", "seed=9")
    config.inpainter.update(folds=2)
    experiment = parse(config)

    def look(source: str, split: str) -> Listed:
        known = {"canvases": {"train": "XY", "val": "AZ"}, "real": {"train": "ABC", "val": "DE"}}[source][split]
        return Listed(("lesion",), frozenset((one, split) for one in known), frozenset(known), None)

    with refused("patient A", "no fold", where="config.detector.folds"):
        check_folds(experiment, experiment.stages["mixed"], look)


@pytest.mark.parametrize("task", sorted(ACCEPTED.keys() - {"denoising"}))
def test_public_images_of_a_training_without_privacy_are_refused(task, tmp_path):
    """So they never meet folds, which a private training does not have."""
    config, _, (stage, *_) = folded(task)
    with config.unlocked():
        config.stages[stage].public = (config.stages[stage].validate_on,)
    assert_refused(config, tmp_path / "run", "public", where=f"stages.{stage}.public")


@pytest.mark.parametrize("task", sorted(ACCEPTED.keys() - JOINED))
def test_folds_that_are_no_ensemble_are_refused(task, tmp_path):
    config, recipe, _ = folded(task)
    config[recipe].refit = False
    assert_refused(config, tmp_path / "run", task, "ensemble", where=f"config.{recipe}.refit")


@pytest.mark.parametrize(
    "module, recipe, where, words",
    [
        (cem_mixed, "inpainter", "stage synthetic", ("'val'", "'real'")),
        (cem_synthetic, "detector", "config.detector.folds", ("'real'", "not trained on")),
        (cem_real_dp, "private", "config.private.folds", ("private",)),
        (comoto, "distill", "config.distill.folds", ("train_share",)),
        (unified, "detector", "stage borrowed", ("'sm'", "'val'")),
        (unified, "borrow", "config.borrow.folds", ("'sm'", "no fold")),
        (unified, "fused", "config.fused.folds", ("'sm'", "no fold")),
        (private_swin, "gan", "config.gan.folds", ("protects",)),
        (swin_dp, "network", "config.network.folds", ("private",)),
    ],
)
def test_what_cannot_hold_patients_out_says_why(module, recipe, where, words, tmp_path):
    config = module.get_config("tiny")
    config[recipe].folds = 2
    assert_refused(config, tmp_path / "run", *words, where=where)
