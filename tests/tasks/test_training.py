"""What model.json says of a training."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from configs import cem_mixed
from elk_jax import files
from elk_jax.images.schema import ImageInfo
from elk_jax.tasks import trained
from elk_jax.tasks import training as recipe_training
from elk_jax.tasks.run import Run
from elk_jax.training import mesh as meshes


def info(image: str, patient: str, **meta) -> ImageInfo:
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    return ImageInfo(image, patient, 8, 8, *none, meta=meta)


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(cem_mixed.get_config("tiny"), tmp_path, meshes.make_mesh())


def said(run: Run, name: str, infos, seen_patients=()) -> dict:
    params = meshes.place({"kernel": np.ones(3, np.float32)}, run.mesh)
    result = SimpleNamespace(best_params=params, best_step=3, params=params)
    return recipe_training.kept(run, name, result, infos, seen_patients)[1]


def write_model(folder, *patients: str):
    said = {"patients": list(map(trained.mark, patients))}
    files.write_json(files.make_folder(folder) / "model.json", {"trained": said})
    return folder


def test_patients_of_the_images_the_initial_weights_and_the_painter_are_kept(run, tmp_path):
    infos = [info("1", "A"), info("2", "A"), info("3", "B"), info("4", "4"), info("000000", "7", canvas="7")]
    assert said(run, "real", infos) == {
        "step": 3,
        "on": ["real"],
        "init_from": "",
        "patients": sorted(map(trained.mark, "AB")),  # the others are called by their images' own numbers
    }
    run.config.stages.mixed.init_from = str(write_model(tmp_path / "theirs", "A", "D"))
    assert said(run, "mixed", infos, {trained.mark("C")})["patients"] == sorted(map(trained.mark, "ABCD"))
    assert said(run, "synthetic", [], {trained.mark("C")})["patients"] == [trained.mark("C")]


def test_a_mark_is_short_and_the_same_everywhere():
    assert trained.mark("P1") == "fbeae7c18667" != trained.mark("P2")


@pytest.mark.parametrize("description", [{}, {"trained": {}}, {"trained": {"step": 2}}, {"trained": "again"}])
def test_models_that_do_not_say_have_seen_nobody(description, tmp_path):
    files.write_json(tmp_path / "model.json", description)
    assert trained.patient_marks(tmp_path) == trained.patient_marks(tmp_path / "gone") == frozenset()
