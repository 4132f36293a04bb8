"""Overlaps of boxes in NumPy, by hand and against those of the device."""

import numpy as np

from elk_jax.detection import boxes as device
from elk_jax.images.boxes import area, intersection, iou

SQUARE = np.array([[0.0, 0, 10, 10]])


def test_iou_and_intersection_by_hand():
    boxes = np.array([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [2, 2, 4, 7], [3, 3, 3, 3]])
    np.testing.assert_allclose(iou(boxes, SQUARE)[:, 0], [1, 50 / 150, 0, 10 / 100, 0])
    np.testing.assert_allclose(intersection(boxes, SQUARE)[:, 0], [100, 50, 0, 10, 0])
    np.testing.assert_allclose(area(boxes), [100, 100, 100, 10, 0])


def test_iou_of_empty_boxes_is_zero():
    empty = np.array([[5.0, 5, 5, 5]])
    assert iou(empty, empty)[0, 0] == 0.0
    assert iou(empty[:0], SQUARE).shape == (0, 1) and iou(SQUARE, empty[:0]).shape == (1, 0)


def test_host_and_device_agree():
    corners = np.random.default_rng(0).uniform(0, 100, (2, 12, 4)).astype(np.float32)  # some boxes are inverted
    np.testing.assert_allclose(iou(*corners), device.iou(*corners), rtol=1e-5, atol=1e-7)
