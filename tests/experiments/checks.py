"""What the tests of refused experiments share: experiments on given files, and what a refusal must be."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs import cem_synthetic
from elk_jax.errors import UserError
from elk_jax.experiments import experiment

PATIENTS = {"train": ("A", "B"), "val": ("C",), "test": ("D",)}


def on_files(module=cem_synthetic, **specs: str):
    """An experiment on these sources; painted ones are given, not made."""
    config = module.get_config("tiny")
    for name, spec in specs.items():
        config.data[name].spec = spec
    painting = ("inpainter", "lesions", "lesion_quality") if "synthetic" in specs else ()
    for name in painting:
        del config.stages[name]
    return config


def assert_refused(config, folder: Path, words: str, stages=None) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=words) as error:
        experiment.run(config, folder, stages)
    assert "\n" not in str(error.value)
    assert sorted(folder.rglob("*")) == before, "a refused start leaves nothing"
