"""Weighted boxes fusion against cases worked out by hand."""

import numpy as np
import pytest

from elk_jax.evaluation.detections import Detections, ImageResult
from elk_jax.evaluation.fusion import fuse, fuse_boxes


def found(*rows):
    """Rows of x0, y0, x1, y1, score, label."""
    table = np.array(rows, float).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(int))


def test_one_view_without_doubles_is_only_sorted():
    view = found((0, 0, 10, 10, 0.2, 0), (50, 50, 60, 70, 0.9, 0))
    fused = fuse_boxes([view])
    np.testing.assert_allclose(fused.scores, [0.9, 0.2])
    np.testing.assert_allclose(fused.boxes, view.boxes[::-1])


def test_boxes_that_agree_are_averaged_by_score_and_scores_by_view():
    views = [found((0, 0, 10, 10, 0.9, 0)), found((0, 0, 10, 12, 0.3, 0)), found()]
    fused = fuse_boxes(views)
    np.testing.assert_allclose(fused.boxes, [[0, 0, 10, 10 * 0.75 + 12 * 0.25]])
    np.testing.assert_allclose(fused.scores, [(0.9 + 0.3 + 0) / 3])


def test_a_view_is_one_witness_however_often_it_finds_a_lesion():
    twice = found((0, 0, 10, 10, 0.8, 0), (0, 0, 10, 9, 0.6, 0))
    np.testing.assert_allclose(fuse_boxes([twice, found()]).scores, [0.4])


def test_classes_are_kept_apart_and_so_are_distant_boxes():
    views = [found((0, 0, 10, 10, 0.8, 0)), found((0, 0, 10, 10, 0.6, 1), (30, 0, 40, 10, 0.2, 0))]
    fused = fuse_boxes(views)
    assert fused.labels.tolist() == [0, 1, 0]
    np.testing.assert_allclose(fused.scores, [0.4, 0.3, 0.1])


def test_the_order_of_views_does_not_matter():
    rng = np.random.default_rng(0)
    views = []
    for _ in range(4):
        corner = rng.uniform(0, 40, (12, 2))
        sides, scores, labels = rng.uniform(5, 30, (12, 2)), rng.random((12, 1)), rng.integers(0, 2, (12, 1))
        views.append(found(*np.hstack([corner, corner + sides, scores, labels])))
    one, other = fuse_boxes(views), fuse_boxes(views[::-1])
    np.testing.assert_allclose(one.scores, other.scores)
    np.testing.assert_allclose(one.boxes, other.boxes)
    assert (np.diff(one.scores) <= 0).all()


def test_nothing_found_stays_nothing():
    assert len(fuse_boxes([found(), found()]).scores) == 0


def test_results_of_other_images_are_not_fused():
    def result(name):
        none = np.zeros((0, 4))
        return ImageResult(name, "p", 10, 10, none, np.zeros(0), np.zeros(0, bool), none, np.zeros(0), np.zeros(0))

    assert fuse([[result("a")], [result("a")]])[0].image_id == "a"
    with pytest.raises(ValueError, match="images"):
        fuse([[result("a")], [result("b")]])
