"""A translator as a folder, and the grey values that its baselines know."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from elk_jax import files
from elk_jax.data.sources.pairs import Pairs
from elk_jax.images.schema import ImageInfo
from elk_jax.tasks.translation.model import Greys, describe, load, measure_greys
from tests.refusals import refused


def test_a_folder_is_read_as_it_was_written(run):
    parts, _, description = load(run / "translator" / "model")
    assert description == describe(parts, description.trained) and description.architecture == "translator"
    assert description.trained.on == ("pairs",)


def test_another_model_is_refused(run, tmp_path):
    folder = shutil.copytree(run / "translator" / "model", tmp_path / "model")
    files.write_json(folder / "model.json", files.read_json(folder / "model.json") | {"architecture": "inpainter"})
    with refused("'inpainter'", "translator", where=folder):
        load(folder)


def test_matched_greys_have_the_mean_and_the_deviation_of_subtracted_images():
    greys = Greys(0.4, 0.2, 0.3, 0.1)
    low = np.array([[0.4, 0.6, 0.2, 2.0, -2.0]], np.float32)
    np.testing.assert_allclose(greys.matched(low), [[0.3, 0.4, 0.2, 1.0, 0.0]], atol=1e-6)
    assert np.isfinite(Greys(0.4, 0.0, 0.3, 0.1).matched(low)).all()


def test_greys_are_measured_inside_the_breast():
    low, subtracted = (np.zeros((64, 64, 1), np.float32) for _ in range(2))
    low[8:56, :40], subtracted[8:56, :40] = 0.5, 0.25
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    pairs = lambda low: Pairs(
        "made", lambda i: low, lambda i: subtracted, ((0, (0, 0, 64, 64)),), (ImageInfo("1", "P", 64, 64, *none),)
    )
    found = measure_greys(pairs(low))
    assert found.low_energy_mean == pytest.approx(0.5, abs=0.05)
    assert found.subtracted_mean == pytest.approx(0.25, abs=0.03)
    with refused("breast", where="made"):
        measure_greys(pairs(np.zeros_like(low)))
