"""Points, losses and the rule for volumes against what CoMoTo's own code computes (tests/golden/make_comoto.py)."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.detection.volumes import COMOTO, find
from elk_jax.distillation import lesions, points
from elk_jax.distillation.points import Grid, Points

GOLDEN = Path(__file__).parents[1] / "golden" / "comoto.npz"
GRID = Grid((6, 4), (96, 64))
SIDES = ("teacher", "student")


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as found:
        return dict(found)


def boxes_of(golden, side):
    boxes = jnp.asarray(golden[f"{side}_boxes"], jnp.float32)
    return boxes, jnp.ones(boxes.shape[:2], bool)


def read(golden, side, count=9) -> Points:
    features = jnp.moveaxis(jnp.asarray(golden[f"{side}_features"]), 1, -1)
    return points.read(features, *boxes_of(golden, side), GRID.canvas, count, "cell")


@pytest.mark.parametrize("side", SIDES)
def test_points_of_lesions(golden, side):
    for count in (1, 4, 5, 9):
        expected = np.moveaxis(golden[f"{side}_points{count}"], 1, -1)
        np.testing.assert_allclose(read(golden, side, count).values, expected, rtol=1e-6)


@pytest.mark.parametrize("side", SIDES)
def test_cells_beside_lesions(golden, side):
    found = points.published_outside(*boxes_of(golden, side), GRID)
    np.testing.assert_array_equal(found, golden[f"{side}_outside"])
    assert not golden[f"{side}_outside"].all()


def test_the_loss_of_points_and_of_alignment(golden):
    learned = {"kernel": jnp.asarray(golden["weight"].T), "bias": jnp.asarray(golden["bias"])}
    teacher, student = (read(golden, side) for side in SIDES)
    found = 2 * lesions.lskd(teacher, student, learned, temperature=4.0)
    assert float(found) == pytest.approx(float(golden["lskd"]), rel=1e-5)
    beside = Points(jnp.moveaxis(jnp.asarray(golden["beside"]), 1, -1), jnp.ones(3, bool))
    assert 2 * float(sum(lesions.impa(teacher, beside))) == pytest.approx(float(golden["impa"]), rel=1e-5)


def test_findings_of_a_volume(golden):
    scores, counts = golden["slice_scores"], golden["slice_counts"]
    valid = np.arange(scores.shape[1]) < counts[:, None]
    found = find(COMOTO, jnp.asarray(golden["slice_boxes"]), jnp.asarray(scores, jnp.float32),
                 jnp.zeros(scores.shape, jnp.int32), jnp.asarray(valid), jnp.int32(len(scores)))  # fmt: skip
    order, kept = np.argsort(-golden["kept_scores"]), np.asarray(found.valid)
    np.testing.assert_allclose(found.scores[kept], golden["kept_scores"][order], rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(found.best)[kept] + COMOTO.margin, golden["kept_at"][order])
    np.testing.assert_array_equal(found.boxes[kept], golden["kept_boxes"][order])
    assert 1 < kept.sum() < counts.sum()
