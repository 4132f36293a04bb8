"""Weighted boxes fusion against cases worked out by hand."""

from pathlib import Path

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


# ---- Against the package of the authors ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["0.5_1_1_1", "0.55_2_1_0.5", "0.3_1_3_1", "0.7_1_1_1"])
def test_boxes_and_scores_are_those_of_ensemble_boxes(case):
    golden = np.load(Path(__file__).parents[1] / "golden" / "fusion.npz")
    part = lambda name: [golden[f"{name}/{key}"] for key in ("boxes", "scores", "labels")]
    same, *weights = map(float, case.split("_"))
    fused = fuse_boxes([Detections(*part(f"view{number}")) for number in range(3)], same, weights)
    boxes, scores, labels = part(case)
    assert len(scores) == len(fused.scores) > 12
    np.testing.assert_allclose(fused.scores, scores, atol=1e-6)  # the package computes in float32
    np.testing.assert_allclose(fused.boxes, boxes, atol=1e-6)
    assert fused.labels.tolist() == labels.astype(int).tolist()


def test_a_weight_of_two_is_the_same_view_twice_where_boxes_agree():
    one, other = found((0, 0, 10, 10, 0.9, 0)), found((0, 0, 10, 12, 0.3, 0))
    weighted, twice = fuse_boxes([one, other], weights=(2, 1)), fuse_boxes([one, one, other])
    np.testing.assert_allclose(weighted.scores, twice.scores)
    np.testing.assert_allclose(weighted.boxes, twice.boxes)
    with pytest.raises(ValueError, match="weights"):
        fuse_boxes([one, other], weights=(1,))


def test_boxes_that_overlap_less_than_asked_for_stay_apart():
    views = [found((0, 0, 10, 10, 0.8, 0)), found((0, 0, 10, 6, 0.6, 0))]
    assert len(fuse_boxes(views, 0.6).scores) == 1 and len(fuse_boxes(views, 0.61).scores) == 2


def test_overlapping_boxes_of_one_view_are_merged_with_the_better_score():
    view = found((0, 0, 10, 10, 0.6, 0), (0, 0, 10, 4, 0.2, 0), (30, 0, 40, 10, 0.1, 0))
    merged = fuse_boxes([view], 0.4)
    np.testing.assert_allclose(merged.boxes, [[0, 0, 10, 8.5], [30, 0, 40, 10]])
    np.testing.assert_allclose(merged.scores, [0.6, 0.1])
    assert len(fuse_boxes([view], 0.5).scores) == 3
