"""A finished run of configs/comoto.py with a small detector, which all tests of the task look at."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from ml_collections import ConfigDict

from configs import comoto
from elk_jax.detection import detectors
from elk_jax.experiments.experiment import run_experiment
from tests.detection import toy_detector


def small_config(mode: str = "lesion") -> ConfigDict:
    config = comoto.get_config("tiny")
    with config.unlocked():
        config.distill.model = ConfigDict(asdict(toy_detector.ToyConfig(width=4)))
    config.distill.test_flips = ()
    config.distill.mode = mode
    config.distill.distill_from = 1
    config.distill.stride = 8  # its only level
    for name in ("mammo", "dbt"):
        config.data[name].spec = config.data[name].spec.replace("count=24", "count=12,slices=5")
    config.distill.loader.buckets = ((64, 64),)
    return config


@pytest.fixture(scope="session")
def toy():
    patch = pytest.MonkeyPatch()
    patch.setitem(detectors.DETECTORS, "toy", toy_detector.KIND)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def finished(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("comoto") / "run"
    run_experiment(small_config(), folder)
    return folder
