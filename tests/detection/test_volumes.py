"""Findings of volumes from detections of slices, against plain loops and by hand."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest

from elk_jax.detection.volumes import COMOTO, VolumeRule, find
from tests.refusals import refused

SLICES, PER_SLICE = 24, 6
found_by = jax.jit(partial(find), static_argnums=0)  # not the cache of the task's


def arrays(rows):
    """Rows (slice, x, y, width, height, score, label) -> boxes, scores, labels, valid."""
    boxes, scores = np.zeros((SLICES, PER_SLICE, 4), np.float32), np.zeros((SLICES, PER_SLICE), np.float32)
    labels, valid = np.zeros((SLICES, PER_SLICE), np.int32), np.zeros((SLICES, PER_SLICE), bool)
    for at, x, y, width, height, score, label in rows:
        slot = int(valid[at].sum())
        boxes[at, slot] = x, y, x + width, y + height
        scores[at, slot], labels[at, slot], valid[at, slot] = score, label, True
    return boxes, scores, labels, valid


def findings(rule, rows, count=SLICES):
    found = found_by(rule, *arrays(rows), np.int32(count))
    kept = np.asarray(found.valid)
    columns = (found.scores, found.best, found.first, found.last, found.labels)
    return [tuple(round(float(v), 4) for v in row) for row in zip(*(np.asarray(column)[kept] for column in columns))]


BOX = (10, 10, 20, 20)


@pytest.mark.parametrize(
    "rows, wanted",  # (score, best, first, last, label)
    [
        ([], []),
        ([(5, *BOX, 0.9, 0)], [(0.9, 5, 5, 5, 0)]),
        # one lesion through slices; those below half of its score do not widen it
        ([(3, *BOX, 0.3, 0), (4, *BOX, 0.5, 0), (5, *BOX, 0.9, 0), (7, *BOX, 0.6, 0)], [(0.9, 5, 4, 7, 0)]),
        # beyond a quarter of the slices it is another one
        ([(2, *BOX, 0.9, 0), (8, *BOX, 0.8, 0), (9, *BOX, 0.7, 0)], [(0.9, 2, 2, 8, 0), (0.7, 9, 9, 9, 0)]),
        # elsewhere in the plane, and of another class, too
        ([(5, *BOX, 0.9, 0), (5, 100, 10, 20, 20, 0.8, 0)], [(0.9, 5, 5, 5, 0), (0.8, 5, 5, 5, 0)]),
        ([(5, *BOX, 0.9, 0), (6, *BOX, 0.8, 1)], [(0.9, 5, 5, 5, 0), (0.8, 6, 6, 6, 1)]),
        # NaN neither survives nor takes others
        ([(5, *BOX, np.nan, 0), (6, *BOX, 0.8, 0)], [(0.8, 6, 6, 6, 0)]),
    ],
)
def test_groups_along_z(rows, wanted):
    assert findings(VolumeRule(), rows) == wanted


def test_slices_beyond_the_count_are_not_seen_and_the_best_are_kept():
    rows = [(at, 100 * at, 0, 20, 20, 0.9 - at / 100, 0) for at in range(12)]
    assert [row[1] for row in findings(VolumeRule(), rows, count=4)] == [0, 1, 2, 3]
    assert [row[1] for row in findings(VolumeRule(most=3), rows)] == [0, 1, 2]
    assert found_by._cache_size() <= 3


def looped_groups(rule, boxes, scores, count):
    """(score, best, first, last) of findings made one by one from all detections [S, K], with plain NumPy."""
    at = np.broadcast_to(np.arange(len(scores))[:, None], scores.shape).ravel()
    x0, y0, x1, y1 = boxes.reshape(-1, 4).astype(float).T
    scores, found = np.where(at < count, scores.ravel(), -1.0), []
    while len(found) < rule.most and scores.max() >= 0:
        best, area = scores.argmax(), (x1 - x0) * (y1 - y0)
        inter = np.clip(np.minimum(x1, x1[best]) - np.maximum(x0, x0[best]), 0, None)
        inter *= np.clip(np.minimum(y1, y1[best]) - np.maximum(y0, y0[best]), 0, None)
        same = (abs(at - at[best]) <= count // 4) & (inter > rule.overlap * (area + area[best] - inter)) & (scores >= 0)
        slices = at[same & (scores >= rule.span * scores[best])]
        found.append((scores[best], at[best], slices.min(), slices.max()))
        scores = np.where(same, -1.0, scores)
    return np.array(found)


def test_every_detection_of_a_dense_volume_is_grouped():
    """Thousands of detections of the brightest lesions leave room for the others, and for all slices of each."""
    slices, per_slice, lesions, rng = 64, 64, 16, np.random.default_rng(0)
    which = rng.integers(0, lesions, (slices, per_slice))
    strong, middle = rng.uniform(0.05, 0.9, lesions), rng.integers(0, slices, lesions)
    centre = rng.uniform(100, 1900, (lesions, 2))[which] + rng.normal(0, 8, (*which.shape, 2))
    half = rng.uniform(30, 70, (*which.shape, 2))
    boxes = np.concatenate([centre - half, centre + half], -1).astype(np.float32)
    near = np.exp(-(((np.arange(slices)[:, None] - middle[which]) / 10) ** 2))
    scores = (strong[which] * near * rng.uniform(0.5, 1, which.shape) + 0.01).astype(np.float32)
    valid, labels, count = np.ones(which.shape, bool), np.zeros(which.shape, np.int32), 60
    found = found_by(VolumeRule(), boxes, scores, labels, valid, np.int32(count))
    wanted, kept = looped_groups(VolumeRule(), boxes, scores, count), np.asarray(found.valid)
    assert kept.sum() == len(wanted) == VolumeRule().most
    columns = (found.scores, found.best, found.first, found.last)
    np.testing.assert_allclose(np.stack([np.asarray(column)[kept] for column in columns], 1), wanted)


def published_peaks(rows, count, overlap=0.5):
    """The published loop: slices i - d to i + d, half-open; a box stays if it scores at least as much as all."""

    def iou(a, b):
        width = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
        height = min(a[2] + a[4], b[2] + b[4]) - max(a[2], b[2])
        inter = max(width, 0) * max(height, 0)
        return inter / (a[3] * a[4] + b[3] * b[4] - inter)

    depth, kept = int(count / 4), []
    for row in rows:
        window = [other for other in rows if row[0] - depth <= other[0] < row[0] + depth and iou(row, other) > overlap]
        if all(row[5] >= other[5] for other in window):
            kept.append(row)
    return sorted((round(row[5], 4), row[0]) for row in kept)


@pytest.mark.parametrize("count", [3, 9, 24])
def test_peaks_are_those_of_the_published_loop(count):
    rng = np.random.default_rng(count)
    rows = [
        (at, *rng.integers(0, 12, 2).tolist(), *rng.integers(10, 20, 2).tolist(), int(rng.integers(1, 9)) / 10, 0)
        for at in range(count)
        for _ in range(PER_SLICE)
    ]
    found = findings(COMOTO, rows, count)
    assert sorted((score, int(best)) for score, best, *_ in found) == published_peaks(rows, count)
    assert all(best == first == last for _, best, first, last, _ in found)


def test_rules_are_checked():
    with refused("overlap", where="overlap"):
        VolumeRule(overlap=2.0)
