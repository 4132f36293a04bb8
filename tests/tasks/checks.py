"""What the tests of several tasks assert of a trained stage."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from elk_jax.experiments.experiment import run_experiment
from elk_jax.training.checkpoint import kept_secret
from elk_jax.weights import model_folder


def resumed(run: Path, config, stage: str, step: int, folder: Path) -> Path:
    """A copy of a finished run in `folder` whose stage was interrupted before `step`, its last, and resumed."""
    copy = shutil.copytree(run, folder)
    for name in (f"checkpoints/{step}", "model"):
        shutil.rmtree(copy / stage / name)
    (copy / stage / "finished.json").unlink()
    run_experiment(config, copy, stages=[stage])
    return copy


def assert_same_weights(first: Path, second: Path) -> None:
    """That the model folders of two stages have the same parameters, to the bit."""
    one, other = (model_folder.flatten(model_folder.load_params(stage / "model")[0]) for stage in (first, second))
    assert one.keys() == other.keys()
    for name, leaf in one.items():
        np.testing.assert_array_equal(other[name], leaf, err_msg=name)


def assert_secret_stays_in_checkpoints(run: Path, stage: str) -> None:
    """That no other file of a run has the secret of a private training, as text or as numbers."""
    text, _ = kept_secret(run / stage / "checkpoints")
    words = [str(int(word)).encode() for word in np.frombuffer(bytes.fromhex(text), "<u4")]
    for path in run.rglob("*"):
        if path.is_file() and "checkpoints" not in path.parts:
            content = path.read_bytes()
            assert text.encode() not in content and not any(word in content for word in words if len(word) > 6), path
