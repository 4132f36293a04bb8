"""A tiny generator, trained on embedded patches, with patches drawn from it and compared."""

from __future__ import annotations

import pytest

from configs import mcgan
from elk_jax.experiments.experiment import run_experiment

STAGES = ["gan", "samples", "looks", "quality"]


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The run folder."""
    folder = tmp_path_factory.mktemp("mcgan")
    run_experiment(mcgan.get_config("tiny"), folder, stages=STAGES)
    return folder
