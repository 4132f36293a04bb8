"""A tiny translator, trained and evaluated once."""

from __future__ import annotations

import pytest

from configs import bridge_le_to_cem
from elk_jax.experiments.experiment import run_experiment


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The run folder."""
    folder = tmp_path_factory.mktemp("bridge")
    run_experiment(bridge_le_to_cem.get_config("tiny"), folder)
    return folder
