"""A small private experiment on pictures whose brightness tells their class, with features that cost nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from configs import private_head
from elk_jax.experiments.experiment import run_experiment
from elk_jax.tasks import frozen

SIZE = 16
MARKER = bytes(range(101, 109))
"""What the operating system's entropy consists of here: it must not be found in any file."""
COUNTS = {"train": 30, "val": 12, "test": 14}
"""Patients, with two images each."""


def write_patches(folder: Path) -> Path:
    """DIR/SPLIT/CLASS/pNUMBER_VIEW.png: malignant ones are brighter at the upper left."""
    rng, patient = np.random.default_rng(0), 700
    for split, count in COUNTS.items():
        for number in range(count):
            patient += 1
            label = ("benign", "malignant")[number % 2]
            place = folder / split / label
            place.mkdir(parents=True, exist_ok=True)
            for view in "ab":
                pixels = rng.integers(60, 160, (SIZE, SIZE))
                pixels[: SIZE // 2, : SIZE // 2] += 50 * (number % 2) + rng.integers(-20, 20)
                cv2.imwrite(str(place / f"p{patient}_{view}.png"), pixels.astype(np.uint8))
    return folder


def cheap(parts, name, images):
    """Means of a grid of squares, [N, 16]."""
    return images[..., 0].reshape(len(images), 4, SIZE // 4, 4, SIZE // 4).mean((2, 4)).reshape(len(images), -1)


def experiment(folder: Path, **changes):
    """The configuration of these pictures. changes: of the stage epsilon_6."""
    config = private_head.get_config("tiny")
    config.data.patches.spec = f"folders:{folder / 'patches'}"
    config.data.patches.patient_pattern = r"p(\d+)_"
    config.data.public.spec = f"folders:{folder / 'public'}"
    config.head.size = SIZE
    config.head.features.scattering.scales = 2
    for name in ("epsilon_60", "epsilon_1"):
        del config.stages[name]
    config.stages.evaluate.models = ("without_privacy", "epsilon_6")
    config.stages.evaluate.published = (("before", 6.0, 0.677), ("before", 0.0, 0.778))
    for key, value in changes.items():
        config.stages.epsilon_6[key] = value
    return config


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Path:
    """A folder with `patches`, and `public`: other pictures of one class."""
    folder, rng = tmp_path_factory.mktemp("classes"), np.random.default_rng(1)
    write_patches(folder / "patches")
    (folder / "public" / "any").mkdir(parents=True)
    for number in range(40):
        pixels = rng.integers(60, 200, (SIZE, SIZE), np.uint8)
        cv2.imwrite(str(folder / "public" / "any" / f"{number}.png"), pixels)
    return folder


@pytest.fixture(scope="session")
def fitted(folders, tmp_path_factory):
    """(run folder, summaries) of the experiment, whose entropy was MARKER."""
    return run_marked(experiment(folders), tmp_path_factory.mktemp("run"), cheap)


def run_marked(config, run: Path, features: Callable) -> tuple[Path, dict]:
    """(run folder, summaries) of a configuration, with these features and MARKER as the entropy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen, "_compute", features)
        patch.setattr("os.urandom", lambda size: (MARKER * size)[:size])
        return run, run_experiment(config, run)


def assert_unmarked(run: Path) -> None:
    """MARKER is in no file of a run, as bytes, in hexadecimal or as the words of a seed."""
    words = [str(word) for word in np.frombuffer(MARKER, np.uint32)]
    found = [path for path in run.rglob("*") if path.is_file()]
    assert len(found) > 10
    for path in found:
        content = path.read_bytes()
        assert not any(one in content for one in (MARKER, MARKER.hex().encode(), *map(str.encode, words))), path


@pytest.fixture
def cheap_features(monkeypatch):
    monkeypatch.setattr(frozen, "_compute", cheap)
