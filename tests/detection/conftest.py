"""Golden values of torchvision's operators, and random boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "detection_ops.npz"


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    """Made by tests/golden/make_detection_ops.py."""
    with np.load(GOLDEN) as archive:
        return dict(archive)


@pytest.fixture
def random_boxes():
    """(num, seed) -> [num, 4] float32 boxes in about [-30, 130], so that some coordinates are negative."""

    def make(num: int, seed: int, low: float = 4, high: float = 60) -> np.ndarray:
        random = np.random.default_rng(seed)
        centre = random.uniform(0, 100, (num, 2))
        half = random.uniform(low, high, (num, 2)) / 2
        return np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)

    return make
