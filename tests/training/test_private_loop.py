"""A private training from its first step to its last: the secret, the budget, and what the run folder says."""

from __future__ import annotations

import os
import stat

import jax
import numpy as np
import pytest

from elk_jax.privacy import secret as secrets
from elk_jax.training import mesh as meshes
from elk_jax.training.checkpoint import kept_secret
from elk_jax.training.writer import read_metrics
from tests.refusals import refused
from tests.training import toy

STEPS = 7
SECRET = secrets.known(1)


def run(workdir, secret=SECRET, crash=0, **settings):
    mesh, batches = meshes.make_mesh(devices=jax.devices()[:1]), toy.UnitBatches(secret, crash)
    step = toy.private_step(toy.separable(), secret, mesh, steps=STEPS, **settings)
    try:
        return toy.train(workdir, step, batches, mesh, steps=STEPS, log_every=1, checkpoint_every=3)
    finally:
        batches.stream.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run, written under the usual umask."""
    folder, before = tmp_path_factory.mktemp("whole") / "run", os.umask(0o022)
    try:
        return folder, run(folder)
    finally:
        os.umask(before)


def test_what_a_private_run_publishes(whole):
    folder, result = whole
    assert result.compilations == 1  # whatever the sizes of batches
    lines = read_metrics(folder / "metrics.jsonl")
    names = {"step", "train/grad_norm", "train/param_norm", "train/update_norm", "train/learning_rate"}
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all(line.keys() == names | {"train/clip_norm"} for line in lines)


def test_the_secret_lies_in_checkpoints_that_only_the_owner_reads_and_nowhere_else(whole):
    folder, result = whole
    text, place = kept_secret(folder / "checkpoints")
    assert secrets.read(text, place).words == SECRET.words
    assert stat.S_IMODE((folder / "checkpoints").stat().st_mode) == 0o700
    for path in (folder / "checkpoints" / str(STEPS)).rglob("*"):
        if path.name not in ("_CHECKPOINT_METADATA", "commit_success.txt"):  # written last, about the act of writing
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    elsewhere = [path for path in folder.rglob("*") if path.is_file() and "checkpoints" not in path.parts]
    contents = [path.read_bytes() for path in elsewhere] + [str(result).encode()]
    assert contents and not any(str(w).encode() in content for w in SECRET.words for content in contents)
    assert not any(text.encode() in content for content in contents)


def test_checkpoints_keep_the_ledger(whole):
    folder, _ = whole
    kept = toy.ledger(folder, STEPS)
    assert kept["unit"] == "patient" and kept["adjacency"] == "zero-out"
    assert kept["phases"] == [{"sampling_rate": 0.25, "noise_multiplier": 1.0, "steps": STEPS}]


@pytest.mark.parametrize("crash", [2, 6])
def test_an_interrupted_private_run_ends_as_the_whole_one_with_its_first_secret(whole, tmp_path, crash):
    folder, result = whole
    with pytest.raises(toy.Crash):
        run(tmp_path, crash=crash)
    text, place = kept_secret(tmp_path / "checkpoints")  # also where no step was saved
    again = run(tmp_path, secrets.read(text, place))
    jax.tree.map(np.testing.assert_array_equal, again.state, result.state)
    assert read_metrics(tmp_path / "metrics.jsonl") == read_metrics(folder / "metrics.jsonl")


def test_another_secret_ledger_or_none_is_not_resumed(whole):
    folder, _ = whole
    place = folder / "checkpoints"
    with refused("secret", where=place):
        run(folder, secrets.known(2))
    with refused("privacy", where=place):
        run(folder, noise=2.0)
    with refused("privacy", where=place):
        run(folder, unit="image")


def test_a_run_stops_before_its_budget(whole, tmp_path, capsys):
    folder, _ = whole
    result = run(tmp_path, allowed=4)
    assert int(result.state.step) == 4 and result.best_step == 4
    assert "allows 4 of 7 steps" in capsys.readouterr().err
    assert read_metrics(tmp_path / "metrics.jsonl") == read_metrics(folder / "metrics.jsonl")[:4]
    assert int(run(tmp_path, allowed=4).state.step) == 4  # and is finished


def test_folders_without_a_secret(tmp_path):
    toy.train(tmp_path, steps=1)
    assert kept_secret(tmp_path / "checkpoints") is None and kept_secret(tmp_path / "none") is None
    assert stat.S_IMODE((tmp_path / "checkpoints").stat().st_mode) != 0o700
