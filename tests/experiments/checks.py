"""What the tests of experiments share: experiments on given files, stand-ins for stages, and what a refusal must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from configs import cem_synthetic
from elk_jax import files
from elk_jax.experiments.experiment import run_experiment
from elk_jax.tasks import TASKS
from tests.refusals import refused

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


def stand_in(monkeypatch: pytest.MonkeyPatch, task: str, kind: str, run: Callable) -> None:
    """Let stages of this task and kind do `run`(run, stage, recipe) instead."""
    stages = TASKS[task].stages
    monkeypatch.setitem(stages, kind, replace(stages[kind], run=run))


def assert_refused(config, folder: Path, *words: object, where: object = "", stages=None) -> None:
    """That the experiment is refused at `where` with these words, and leaves nothing behind."""
    before = sorted(folder.rglob("*"))
    with refused(*words, where=where):
        run_experiment(config, folder, stages)
    assert sorted(folder.rglob("*")) == before, "a refused start leaves nothing"


def summary(run: Path, stage: str = "train") -> dict:
    """What a finished stage says of itself."""
    return files.read_object(run / stage / "finished.json")["summary"]
