"""FROC by hand, against plain loops written from ELK's rule, and its properties."""

import dataclasses

import numpy as np
import pytest

from elk_jax.evaluation import froc
from elk_jax.evaluation.hits import iou_at_least, regions
from tests.refusals import refused

RATES, LIMITS = (0.5, 1.0, 2.0, 3.0), (1.0, 2.0, 3.0)
A, B = [0, 0, 100, 100], [200, 200, 300, 300]  # two lesions
ON_A, ALSO_A, ON_B = [5, 0, 100, 100], [0, 0, 100, 60], [200, 200, 300, 290]
ELSEWHERE = [300, 0, 380, 80]


def whole(results):
    counts = froc.count(results, iou_at_least(0.3))
    x, y = froc.curves(counts, np.ones((1, len(counts.images))))
    return counts, x, y


def read(results):
    _, x, y = whole(results)
    return froc.sensitivity_at(x, y, RATES)[0], froc.area_up_to(x, y, LIMITS)[0]


def test_by_hand(make):
    # Falling scores: hit A (.9), FP (.8), hit B (.7), FP (.6), FP (.5): two images, two lesions.
    results = [
        make("1", [A], [ON_A, ELSEWHERE], [0.9, 0.8]),
        make("2", [B], [ON_B, ELSEWHERE, A], [0.7, 0.6, 0.5]),
    ]
    _, x, y = whole(results)
    assert x[0].tolist() == [0, 0, 0, 0.5, 0.5, 1.5]
    assert y[0].tolist() == [0, 0, 0.5, 0.5, 1, 1]
    sensitivity, area = read(results)
    assert sensitivity.tolist() == [1, 1, 1, 1]  # at 0.5 the upper end of the step
    np.testing.assert_allclose(area, [(0.5 * 0.5 + 0.5) / 1, (0.25 + 1.5) / 2, (0.25 + 2.5) / 3])
    one = froc.sensitivity_at(x, y, (0.0, 0.25, 0.4999))
    assert one[0].tolist() == [0.5, 0.5, 0.5]


def test_best_scoring_prediction_counts_and_the_others_are_neither(make):
    scores = froc.image_scores(make("1", [A], [ALSO_A, ON_A, ELSEWHERE], [0.8, 0.4, 0.3]), iou_at_least(0.3))
    assert scores.lesions.tolist() == [0.8]
    assert scores.false_positives.tolist() == [0.3]


def test_one_prediction_that_hits_two_lesions_finds_both(make):
    left, right, over_both = [0, 0, 50, 100], [50, 0, 100, 100], [0, 0, 100, 100]  # IoU 0.5 with either
    scores = froc.image_scores(make("1", [left, right], [over_both], [0.6]), iou_at_least(0.3))
    assert scores.lesions.tolist() == [0.6, 0.6]
    assert scores.false_positives.size == 0
    better = make("1", [left, right], [over_both, left], [0.6, 0.9])
    assert froc.image_scores(better, iou_at_least(0.3)).lesions.tolist() == [0.9, 0.6]


def test_prediction_on_ignored_box_is_neither(make):
    inside_a = [40, 40, 60, 60]  # IoU far below 0.3, but its centre lies in the ignored box
    result = make("1", [A, B], [ON_A, inside_a, ELSEWHERE], [0.9, 0.8, 0.7], ignore=[True, False])
    scores = froc.image_scores(result, iou_at_least(0.3))
    assert scores.lesions.tolist() == [froc.NEVER]
    assert scores.false_positives.tolist() == [0.7]


def test_classes_match_themselves_only(make):
    result = make("1", [A, B], [ON_A, ON_B], [0.9, 0.8], gt_labels=[0, 1], labels=[1, 1])
    scores = froc.image_scores(result, iou_at_least(0.3))
    assert sorted(scores.lesions.tolist()) == [froc.NEVER, 0.8]
    assert scores.false_positives.tolist() == [0.9]


def test_equal_scores_enter_together(make):
    # A lesion and a false positive of the same score: a straight line from (0, 0) to (1, 1).
    results = [make("1", [A], [ON_A, ELSEWHERE], [0.5, 0.5])]
    sensitivity, area = read(results)
    np.testing.assert_allclose(sensitivity, [0.5, 1, 1, 1])
    np.testing.assert_allclose(area, [0.5, 1.5 / 2, 2.5 / 3])


def test_flat_extension(make):
    results = [make("1", [A, B], [ON_A], [0.5])]
    sensitivity, area = read(results)
    assert sensitivity.tolist() == [0.5] * 4
    np.testing.assert_allclose(area, [0.5] * 3)


@pytest.mark.parametrize("predicted, scores", [([], []), ([ELSEWHERE] * 3, [0.9, 0.8, 0.7])])
def test_nothing_found(make, predicted, scores):
    sensitivity, area = read([make("1", [A], predicted, scores)])
    assert not sensitivity.any() and not area.any()


def test_no_lesion_is_not_defined(make):
    sensitivity, area = read([make("1", [], [ELSEWHERE], [0.5])])
    assert np.isnan(sensitivity).all() and np.isnan(area).all()


def oracle(results, threshold_iou=0.3):
    """ELK's rule in loops: (false positives per image, sensitivity) at every distinct score, from (0, 0)."""

    def overlap(a, b):
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        shared = width * height if width > 0 and height > 0 else 0.0
        areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
        return shared / (sum(areas) - shared)

    events, lesions = [], 0
    for result in results:
        used = set()
        for gt, gt_label in zip(result.gt_boxes, result.gt_labels):
            lesions += 1
            best = None
            for k, box in enumerate(result.boxes):
                if result.labels[k] == gt_label and overlap(gt, box) >= threshold_iou:
                    used.add(k)
                    best = result.scores[k] if best is None else max(best, result.scores[k])
            if best is not None:
                events.append((best, True))
        events += [(score, False) for k, score in enumerate(result.scores) if k not in used]
    points = [(0.0, 0.0)]
    for threshold in sorted({score for score, _ in events}, reverse=True):
        at_least = [hit for score, hit in events if score >= threshold]
        points.append(((len(at_least) - sum(at_least)) / len(results), sum(at_least) / lesions))
    return points


def oracle_area(points, limit, steps=200_000):
    """The mean height of the curve up to the limit, by brute force."""
    x = (np.arange(steps) + 0.5) / steps * limit
    return np.interp(x, *np.array(points).T).mean()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("classes", [1, 3])
def test_against_plain_loops(random, seed, ties, classes):
    results = [result for result in random(seed, ties=ties, classes=classes) if result.has_lesions]
    points = oracle(results)
    sensitivity, area = read(results)
    xs, ys = np.array(points).T
    np.testing.assert_allclose(sensitivity, np.interp(RATES, xs, ys), atol=1e-12)
    np.testing.assert_allclose(area, [oracle_area(points, limit) for limit in LIMITS], atol=2e-4)
    grid = np.linspace(0, 8, 500)
    _, x, y = whole(results)
    np.testing.assert_allclose(np.interp(grid, x[0], y[0]), np.interp(grid, xs, ys), atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_curve_rises_and_stays_within_bounds(random, seed):
    _, x, y = whole(random(seed, ties=True))
    assert (np.diff(x[0]) >= 0).all() and (np.diff(y[0]) >= 0).all()
    assert y[0, 0] == 0 and y[0, -1] <= 1


def test_only_the_order_of_scores_matters(random):
    results = random(5)
    bent = [dataclasses.replace(r, scores=np.log(r.scores) * 3 + 7) for r in results]
    for one, other in zip(read(results), read(bent)):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_order_of_images_and_predictions_does_not_matter(random):
    results = random(6, ties=True)
    rng = np.random.default_rng(0)
    mixed = []
    for result in rng.permutation(np.array(results, object)):
        order = rng.permutation(len(result.scores))
        mixed.append(
            dataclasses.replace(
                result, boxes=result.boxes[order], scores=result.scores[order], labels=result.labels[order]
            )
        )
    for one, other in zip(read(results), read(mixed)):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_weights_are_repeated_patients(random):
    results = [result for result in random(7) if result.has_lesions]
    patients = list(dict.fromkeys(r.patient_id for r in results))
    weights = np.random.default_rng(1).integers(0, 4, (5, len(patients)))
    counts = froc.count(results, iou_at_least(0.3), patients)
    x, y = froc.curves(counts, weights)
    for row, times in enumerate(weights):
        repeated = [
            dataclasses.replace(result, image_id=f"{result.image_id}/{copy}")
            for result in results
            for copy in range(times[patients.index(result.patient_id)])
        ]
        sensitivity, area = read(repeated)
        np.testing.assert_allclose(froc.sensitivity_at(x, y, RATES)[row], sensitivity, atol=1e-6)
        np.testing.assert_allclose(froc.area_up_to(x, y, LIMITS)[row], area, atol=1e-6)


def test_rates_and_limits_that_cannot_be_are_refused(make):
    _, x, y = whole([make("1", [A], [ON_A], [0.9])])
    for rate in (-1, np.nan, np.inf):
        with refused(rate, where="rates"):
            froc.sensitivity_at(x, y, [1, rate])
    for limit in (0, -1, np.nan):
        with refused(limit, where="limits"):
            froc.area_up_to(x, y, [limit])


def test_threshold_keeps_within_the_rate(make):
    results = [
        make("1", [A], [ON_A, ELSEWHERE], [0.9, 0.8]),
        make("2", [B], [ON_B, ELSEWHERE, A], [0.7, 0.6, 0.5]),
    ]
    counts, _, _ = whole(results)
    assert froc.threshold_at(counts, 0.25) == 0.9
    assert froc.threshold_at(counts, 0.5) == 0.7
    assert froc.threshold_at(counts, 3.0) == 0.7
    late, _, _ = whole([make("1", [A], [ELSEWHERE, ON_A], [0.9, 0.8])])
    assert froc.threshold_at(late, 0.5) is None
    assert froc.threshold_at(late, 1.0) == 0.8


# ---- Regions ---------------------------------------------------------------------------------------------------------

LEFT, RIGHT = [0, 0, 60, 100], [50, 0, 100, 100]  # they overlap: one region, [0, 0, 100, 100]
PART = [0, 0, 20, 100]  # IoU 1/3 with LEFT: a hit
CORNER = [80, 0, 100, 30]  # IoU 600 / 5000 with RIGHT: on it, and no hit


def scored(make, predicted, scores, lesions=(LEFT, RIGHT), **kinds):
    found = froc.image_scores(make("1", lesions, predicted, scores, **kinds), regions(0.3))
    return found.lesions.tolist(), found.false_positives.tolist()


def test_a_region_is_found_once_by_the_best_box_on_a_lesion_or_around_all(make):
    around = [0, 0, 100, 95]
    assert scored(make, [PART, around], [0.6, 0.8]) == ([0.8], [])
    assert scored(make, [PART], [0.6]) == ([0.6], [])
    assert scored(make, [around], [0.6], lesions=[LEFT, RIGHT, B]) == ([0.6, froc.NEVER], [])


@pytest.mark.parametrize("score, false", [(0.5, []), (0.6, []), (0.7, [0.7])])
def test_another_box_on_a_region_counts_only_before_the_region_is_found(make, score, false):
    assert scored(make, [PART, CORNER], [0.6, score]) == ([0.6], false)


def test_a_box_on_a_region_that_nothing_hits_is_false_and_so_is_one_elsewhere(make):
    assert scored(make, [CORNER, ELSEWHERE], [0.5, 0.4]) == ([froc.NEVER], [0.5, 0.4])


def test_regions_are_of_one_class_and_ignored_boxes_are_none(make):
    assert scored(make, [PART, CORNER], [0.6, 0.5], labels=[1, 1]) == ([froc.NEVER], [0.6, 0.5])
    assert scored(make, [CORNER, [52, 0, 100, 100]], [0.5, 0.4], ignore=[False, True]) == ([froc.NEVER], [])


@pytest.mark.parametrize("seed", range(3))
def test_lesions_apart_are_regions_of_their_own(random, seed):
    """Without overlapping lesions the regions are the lesions: only boxes beside hits are forgiven."""
    for result in random(seed, ignored=0.2):
        few = dataclasses.replace(
            result, gt_boxes=result.gt_boxes[:1], gt_labels=result.gt_labels[:1], gt_ignore=result.gt_ignore[:1]
        )
        plain, by_region = (froc.image_scores(few, rule) for rule in (iou_at_least(0.3), regions(0.3)))
        assert plain.lesions.tolist() == by_region.lesions.tolist()
        kept = set(by_region.false_positives)
        assert kept <= set(plain.false_positives)
        for score in set(plain.false_positives) - kept:
            assert score <= plain.lesions.max(), "forgiven, so the only region was found before"
