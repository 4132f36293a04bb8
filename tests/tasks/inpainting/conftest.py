"""A tiny inpainter, trained once, and the lesions that it painted."""

from __future__ import annotations

import pytest

from configs import inpaint_cem
from elk_jax.experiments.experiment import run_experiment

COUNT = 5
"""Painted lesions."""


def tiny():
    config = inpaint_cem.get_config("tiny")
    config.stages.lesions.count = COUNT
    config.stages.lesions.batch_size = 2
    return config


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The run folder."""
    folder = tmp_path_factory.mktemp("inpaint")
    run_experiment(tiny(), folder, stages=["inpainter", "lesions"])
    return folder
