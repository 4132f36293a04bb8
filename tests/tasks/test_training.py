"""What model.json says of a training."""

from __future__ import annotations

from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest

from configs import cem_mixed
from elk_jax import files
from elk_jax.data.sources.patients import patient_hash
from elk_jax.experiments.parse import parse
from elk_jax.images.schema import ImageInfo
from elk_jax.privacy.mechanism import Mechanism, Statement, in_words, together
from elk_jax.privacy.settings import Privacy
from elk_jax.tasks import training
from elk_jax.tasks.run import Run
from elk_jax.training import mesh as meshes
from elk_jax.training.model import Model
from elk_jax.training.schedules import WarmupCosine
from elk_jax.weights import model_folder
from elk_jax.weights.model_folder import Training
from tests.refusals import refused


def info(image: str, patient: str, **meta) -> ImageInfo:
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    return ImageInfo(image, patient, 8, 8, *none, meta=meta)


INFOS = [info("1", "A"), info("2", "A"), info("3", "B"), info("4", "4"), info("000000", "7", canvas="7")]


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(parse(cem_mixed.get_config("tiny")), tmp_path, meshes.make_mesh())


def kept(run: Run, name: str, infos=INFOS, seen_patients=(), choose="best", init_from="") -> tuple:
    best, last = (meshes.place({"kernel": np.full(3, value, np.float32)}, run.mesh) for value in (1, 2))
    result = SimpleNamespace(best_params=best, best_step=3, params=last, state=SimpleNamespace(step=np.int32(7)))
    data = SimpleNamespace(infos=infos, seen_patients=frozenset(map(patient_hash, seen_patients)))
    stage = replace(run.experiment.stages[name], init_from=init_from)
    params, trained = training.kept_weights(run, stage, result, choose, data)
    return params["kernel"].tolist(), trained


def write_model(folder, *patients: str, **entries) -> str:
    trained = {"patients": list(map(patient_hash, patients)), **entries}
    files.write_json(files.make_folder(folder) / "model.json", {"trained": trained})
    return str(folder)


def test_the_best_weights_or_the_last_are_kept(run):
    patients = sorted(map(patient_hash, "AB"))  # the others are called by their images' own numbers
    trained = {"on": ("real",), "init_from": "", "patients": tuple(patients)}
    assert kept(run, "real") == ([1, 1, 1], Training(step=3, **trained))
    assert kept(run, "real", choose="last") == ([2, 2, 2], Training(step=7, **trained))


def test_patients_of_the_images_the_initial_weights_and_the_painter_are_kept(run, tmp_path):
    theirs = write_model(tmp_path / "theirs", "A", "D")
    _, trained = kept(run, "mixed", seen_patients="C", init_from=theirs)
    assert trained.patients == tuple(sorted(map(patient_hash, "ABCD"))) and trained.init_from == theirs
    write_model(tmp_path / "real" / "model", "E")  # of a stage of the run
    assert kept(run, "mixed", [], init_from="real")[1].patients == (patient_hash("E"),)
    assert kept(run, "synthetic", [], "C")[1].patients == (patient_hash("C"),)


def promised(steps: int, **settings) -> Statement:
    privacy = Privacy(**{"noise_multiplier": 20.0, "accountant": "rdp"} | settings)
    return Mechanism(privacy, 9, 9, 20.0, steps).statement(steps, private=privacy.known_seed is None)


def test_promises_of_earlier_trainings_stay_with_the_weights(run, tmp_path):
    first, second = promised(10), promised(20)
    once = write_model(tmp_path / "once", privacy=asdict(first))
    twice = write_model(tmp_path / "twice", privacy=asdict(second), inherited=[asdict(first)])
    assert kept(run, "mixed", init_from=once)[1].promises == (first,)  # an open training afterwards hides nothing
    assert kept(run, "mixed", init_from=twice)[1].inherited == (first, second)
    assert model_folder.promise(tmp_path / "once") == first.sentence()
    both, said = together([first, second]), model_folder.promise(tmp_path / "twice")
    assert both == pytest.approx(promised(30).epsilon) and both > second.epsilon
    assert second.sentence() in said and f"epsilon {both:.3g} " in said


def test_the_promise_of_a_painter_stays_with_what_learns_from_its_images(run, tmp_path):
    first, second = promised(10), promised(20)
    before = {key: value for key, value in asdict(first).items() if key != "exposed"}  # of an earlier version
    write_model(tmp_path / "inpainter" / "model", privacy=before)
    assert kept(run, "real")[1].inherited == ()
    assert kept(run, "synthetic")[1].inherited == (first,)
    theirs = write_model(tmp_path / "theirs", privacy=asdict(second))
    assert kept(run, "mixed", init_from=theirs)[1].inherited == (second, first)


@pytest.mark.parametrize("other", [{"unit": "image"}, {"known_seed": 1}])
def test_promises_to_others_or_nobody_are_not_added_up(other):
    statements = [promised(10, **other), promised(10)]
    assert together(statements) is None and "not accounted for" in in_words(statements)


OPTIONS = {"initial": None, "evaluate": None, "best_metric": "", "settings": {}, "validation": ()}
"""Of `training.train`, where nothing is trained."""


def test_a_training_says_what_its_schedule_does_not_reach(run, monkeypatch, capsys):
    monkeypatch.setattr(training, "step_of", lambda *_: None)
    monkeypatch.setattr(training.loop, "train", lambda *_, **__: None)
    stage = run.experiment.stages["real"]
    recipe = replace(run.experiment.recipe_of(stage), steps=4, schedule=WarmupCosine(base=1.0, warmup_steps=9))
    batches = SimpleNamespace(close=lambda: None)
    training.train(run, stage, recipe, None, batches, **OPTIONS)
    assert "warning" in (said := capsys.readouterr().out) and "9 steps" in said


def test_an_expression_that_does_not_match_the_weights_to_start_from_is_named_by_its_place(run):
    """Which layers an imported model has is only known once it is read."""
    stage, batches = run.experiment.stages["inpainter"], SimpleNamespace(close=lambda: None)
    recipe = run.experiment.recipe_of(stage)
    recipe = replace(recipe, optimizer=replace(recipe.optimizer, frozen=("nothing",)))
    model = Model(init=lambda rng: {"kernel": rng}, loss=None, predict=None, per_example=False)
    with refused("'nothing'", where="config.inpainter.optimizer.frozen"):
        training.train(run, stage, recipe, model, batches, **OPTIONS)
