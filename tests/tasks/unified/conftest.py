"""A finished run of configs/unified.py with small detectors, which all tests of the task look at."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from ml_collections import ConfigDict

from configs import unified
from elk_jax.experiments.experiment import run_experiment
from tests.detection.test_efficientdet import TINY

STAGES = ("sm", "ffdm", "borrowed", "unified", "base_ub", "evaluate")


def small_config(*stages: str) -> ConfigDict:
    """The stages, or STAGES."""
    config = unified.get_config("tiny")
    model = ConfigDict(asdict(TINY))
    model.levels, model.anchor_sizes = 3, TINY.anchor_sizes[:3]
    for name in ("detector", "borrow", "fused", "bound", "dropout"):
        recipe = config[name]
        own = {key: recipe.model[key] for key in ("name", "second", "tap", "join", "drop") if key in recipe.model}
        with config.unlocked():
            recipe.model = ConfigDict({**model, **own, "name": own["name"], "num_classes": 1})
        recipe.loader.buckets, recipe.test_flips, recipe.steps = ((64, 64),), (), 2
    for name in ("sm", "ffdm", "pairs"):
        config.data[name].spec = config.data[name].spec.replace("count=24", "count=12,slices=5")
    config.stages.evaluate.models = ("sm", "unified", "base_ub")
    with config.unlocked():
        for name in set(config.stages) - set(stages or STAGES):
            del config.stages[name]
    return config


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unified") / "run"
    run_experiment(small_config(), folder)
    return folder
