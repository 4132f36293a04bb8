"""The choice of mirrored views and of their fusion, by hand-computed cases."""

from __future__ import annotations

import numpy as np
import pytest

from elk_jax import fields, files
from elk_jax.images.schema import ImageInfo
from elk_jax.tasks.detection.predict import Look, looks
from elk_jax.tasks.detection.recipe import DetectionRecipe
from elk_jax.tasks.detection.search import (
    Way,
    choose_way,
    measured,
    read_views,
    score_of,
    views_chosen,
    ways_to_look,
    whole_way,
    write_views,
)
from elk_jax.tasks.distillation.recipe import DistillationRecipe
from tests.evaluation.conftest import make_result


def test_the_views_and_the_iou_that_fuses_them_are_chosen_by_the_metric_of_checkpoints():
    """By hand: two lesions. The mirrored view alone finds the second; its box of the first has an IoU of 0.45 with the
    other one. Apart, it is a false positive that scores more than the second lesion."""
    lesion, half, other = [0, 0, 100, 100], [0, 0, 100, 45], [200, 200, 260, 260]
    views = {
        Look(1.0, 0): [make_result("a", [lesion], [lesion], [0.9]), make_result("b", [other])],
        Look(1.0, 1): [make_result("a", [lesion], [half], [0.8]), make_result("b", [other], [other], [0.6])],
    }
    same = (0.5, 0.4, 0.3, 0.4)
    recipe = fields.build(DetectionRecipe, {"best_metric": "ap30", "test_flips": ("vertical",), "test_same": same}, "x")
    ways = ways_to_look(whole_way(recipe), recipe.test_same, fewer=True)
    name, values = choose_way(ways, views, recipe)
    found = {(way.flips, way.same): values[name] for name, way in ways.items()}
    assert found == {
        ((), 0.5): pytest.approx(51 / 101),
        (("vertical",), 0.5): pytest.approx((51 + 50 * 2 / 3) / 101),
        (("vertical",), 0.4): pytest.approx(1.0),
        (("vertical",), 0.3): pytest.approx(1.0),
    }
    assert ways[name] == Way(("vertical",), 0.4)
    np.testing.assert_allclose(ways[name].together(views, 0.01)[0].scores, [0.85])
    everything = ways_to_look(whole_way(recipe), recipe.test_same, fewer=False)
    assert [way.same for way in everything.values()] == [0.5, 0.4, 0.3]
    (only,) = ways_to_look(whole_way(recipe), (0.4,), fewer=False)
    assert only == "as they are+vertical" and choose_way({only: 0}, views, recipe) == (only, {})


def test_scales_are_tried_with_all_mirrored_views_and_fused_with_them(tmp_path):
    """By hand: the lesion scores 0.8 at the size of training, 0.4 mirrored, and 0.6 in both views at half the size."""
    lesion = [0, 0, 100, 100]
    scored = {Look(1.0, 0): 0.8, Look(1.0, 1): 0.4, Look(0.5, 0): 0.6, Look(0.5, 1): 0.6}
    views = {look: [make_result("a", [lesion], [lesion], [score])] for look, score in scored.items()}
    recipe = fields.build(DetectionRecipe, {"test_flips": ("vertical",), "test_scales": (1.0, 0.5, 0.5)}, "x")
    whole = whole_way(recipe)
    assert whole == Way(("vertical",), 0.5, (1.0, 0.5)) and looks(whole.flips, whole.scales) == list(scored)
    ways = ways_to_look(whole, recipe.test_same, fewer=True)
    found = {(way.flips, way.scales): way.together(views, 0.01)[0].scores.item() for way in ways.values()}
    assert found == {
        ((), (1.0,)): pytest.approx(0.8),
        (("vertical",), (1.0,)): pytest.approx(0.6),
        ((), (1.0, 0.5)): pytest.approx(0.7),
        (("vertical",), (1.0, 0.5)): pytest.approx(0.6),
    }
    assert list(ways_to_look(whole, recipe.test_same, fewer=False).values()) == [whole]
    infos = [ImageInfo("a", "P", 200, 200, np.array([lesion], np.float32), np.zeros(1, int), np.zeros(1, bool))]
    write_views(tmp_path, views)
    again = read_views([tmp_path], infos, whole, classes=1, score_floor=0.01)
    assert {look: results[0].scores.item() for look, results in again.items()} == pytest.approx(scored)


def test_ways_to_look_are_compared_by_a_metric_of_detections_where_there_is_something_to_find():
    """A student may be chosen by its likeness to its teacher, which says nothing of mirrored views."""
    lesion, other = [0, 0, 100, 100], [200, 200, 260, 260]
    plain = [make_result("a", [lesion, other], [lesion], [0.9])]
    views = {Look(1.0, 0): plain, Look(1.0, 1): [make_result("a", [lesion, other], [lesion, other], [0.9, 0.8])]}
    recipe = fields.build(
        DistillationRecipe, {"best_metric": "similarity", "test_flips": ("vertical",), "bootstrap": 0}, "distill"
    )
    ways = ways_to_look(whole_way(recipe), recipe.test_same, fewer=True)
    name, values = choose_way(ways, views, recipe)
    assert name == "as they are+vertical" and list(values.values()) == [0.5, 1.0]
    assert views_chosen(recipe, name, values, "2 folds")["metric"] == "mean_sensitivity"
    healthy = {look: [make_result("a", [], [lesion], [0.9])] for look in views}
    name, values = choose_way(ways, healthy, recipe)
    assert name == "as they are" and list(values.values()) == [None, None]
    assert score_of([make_result("a", [lesion], [other], [0.9])], recipe) == 0.0
    assert [measured(value) for value in (None, 0.0)] == ["not measured", "0.000"]


def test_what_folds_found_is_read_in_all_classes_and_from_the_floor_of_testing(tmp_path):
    """Of two classes, the patients of the folds have lesions of the first alone; the detector predicts both."""
    box, other = [0, 0, 10, 10], [20, 20, 30, 30]
    results = [make_result("a", [box], [box, other, other], [0.9, 0.8, 0.005], labels=[0, 1, 1]), make_result("b", [])]
    infos = [
        ImageInfo(r.image_id, r.patient_id, r.width, r.height, r.gt_boxes, r.gt_labels, r.gt_ignore) for r in results
    ]
    places = [files.make_folder(tmp_path / name) for name in ("1", "2")]
    for place, result in zip(places, results):
        write_views(place, {Look(1.0, 0): [result]})
    (view,) = read_views(places, infos, Way((), 0.5), classes=2, score_floor=0.01).values()
    assert [one.image_id for one in view] == ["a", "b"]
    assert view[0].labels.tolist() == [0, 1] and view[0].scores.tolist() == [0.9, 0.8]
