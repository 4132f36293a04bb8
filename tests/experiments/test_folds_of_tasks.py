"""Cross-validation of every task that trains step by step: accepted, and dealt out, or refused before anything runs."""

from __future__ import annotations

import pytest

from configs import (
    bridge_le_to_cem,
    cem_ensemble,
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
from elk_jax.experiments import report
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from elk_jax.tasks import TASKS, folds
from elk_jax.tasks.run import Run
from elk_jax.tasks.stages import TrainStage
from elk_jax.training.recipe import TrainingRecipe
from tests.experiments.checks import assert_refused, stand_in

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
def test_folds_of_every_task_hold_each_patient_out_once(task, tmp_path, monkeypatch):
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
    whole = Run(parse(config), tmp_path, mesh=None)
    for name, (first, second, last) in opened.items():
        stage = whole.experiment.stages[name]
        pool = {info.patient_id for split in ("train", "val") for info in whole.list(stage.validate_on, split).infos}
        test = {info.patient_id for info in whole.list(stage.validate_on, "test").infos}
        assert not first[1] & first[2] and not second[1] & second[2]
        assert first[2] | second[2] == pool and not first[2] & second[2] and first[2] and second[2]
        assert last[0].is_last and last[0].steps == 2 and pool <= last[1] and not test & last[1]


@pytest.mark.parametrize("task", sorted(ACCEPTED.keys() - JOINED))
def test_folds_that_are_no_ensemble_are_refused(task, tmp_path):
    config, recipe, _ = folded(task)
    config[recipe].refit = False
    assert_refused(config, tmp_path / "run", task, "ensemble", where=f"config.{recipe}.refit")


@pytest.mark.parametrize(
    "module, recipe, where, words",
    [
        (cem_ensemble, "detector", "stage ensemble", ("'val'", "'real'")),
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
