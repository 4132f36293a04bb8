"""Average precision against pycocotools, and by hand."""

import contextlib
import dataclasses
import io

import numpy as np
import pytest

from elk_jax.evaluation import coco

THRESHOLDS = (0.1, 0.3, *coco.COCO_THRESHOLDS)
A, B = [0, 0, 100, 100], [200, 200, 300, 300]


def ours(results, thresholds, label=None):
    counts = coco.count(results, thresholds)
    patients = len({result.patient_id for result in results})
    return coco.Precisions(counts, np.ones((1, patients))).mean(thresholds, label)[0]


def reference(results, classes):
    """COCOeval's precision array [T, 101, Q, 4 area ranges], maxDets 100."""
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def xywh(box):
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]

    annotations, entries = [], []
    for index, result in enumerate(results):
        for box, label, ignore in zip(result.gt_boxes, result.gt_labels, result.gt_ignore):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": int(label) + 1,
                    "bbox": xywh(box),
                    "area": (box[2] - box[0]) * (box[3] - box[1]),
                    "iscrowd": int(ignore),
                }
            )
        for box, label, score in zip(result.boxes, result.labels, result.scores):
            entries.append({"image_id": index, "category_id": int(label) + 1, "bbox": xywh(box), "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": i, "width": r.width, "height": r.height} for i, r in enumerate(results)],
            "categories": [{"id": q + 1, "name": str(q)} for q in range(classes)],
            "annotations": annotations,
        }
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(entries), "bbox")
        run.params.iouThrs = np.array(THRESHOLDS)
        run.evaluate()
        run.accumulate()
    return run.eval["precision"][..., -1]


def mean_where_defined(precision):
    return precision[precision > -1].mean()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("classes, ignored, ties", [(1, 0.0, False), (1, 0.3, True), (3, 0.25, False)])
def test_equals_pycocotools(random, seed, classes, ignored, ties):
    results = random(seed, classes=classes, ignored=ignored, ties=ties)
    precision = reference(results, classes)
    for position, threshold in enumerate(THRESHOLDS):
        expected = mean_where_defined(precision[position, ..., 0])
        assert ours(results, (threshold,)) == pytest.approx(expected, abs=1e-6)
    assert ours(results, coco.COCO_THRESHOLDS) == pytest.approx(mean_where_defined(precision[2:, ..., 0]), abs=1e-6)
    for label in range(classes):
        for rows, thresholds in ((2, (0.5,)), (slice(2, None), coco.COCO_THRESHOLDS)):
            expected = mean_where_defined(precision[rows, ..., label, 0])
            assert ours(results, thresholds, label) == pytest.approx(expected, abs=1e-6)


def test_of_a_class_without_a_lesion_undefined_and_not_in_the_mean(random):
    results = [
        dataclasses.replace(r, gt_labels=np.where(r.gt_labels == 1, 2, r.gt_labels))
        for r in random(5, classes=3, ignored=0.2)
    ]
    precision = reference(results, 3)
    assert (precision[:, :, 1] == -1).all() and any((r.labels == 1).any() for r in results)
    assert np.isnan(ours(results, (0.5,), 1)) and np.isnan(ours(results, (0.5,), 7))
    assert ours(results, (0.5,)) == pytest.approx(np.mean([ours(results, (0.5,), label) for label in (0, 2)]))
    assert ours(results, (0.5,)) == pytest.approx(mean_where_defined(precision[2, ..., 0]), abs=1e-6)


def test_more_than_100_predictions_equal_pycocotools(random):
    results = random(12, images=6, predictions=300)
    assert max(len(result.scores) for result in results) > 200
    expected = mean_where_defined(reference(results, 1)[2, ..., 0])
    assert ours(results, (0.5,)) == pytest.approx(expected, abs=1e-6)


def test_only_the_100_best_predictions_count(make):
    boxes, scores = [[120, 0, 180, 60]] * 100 + [A], np.linspace(0.9, 0.1, 101)
    assert ours([make("1", [A], boxes, scores)], (0.5,)) == 0.0
    assert ours([make("1", [A], boxes[1:], scores[1:])], (0.5,)) == pytest.approx(1 / 100)


def test_of_equal_overlaps_the_last_lesion_is_taken(make):
    # The first prediction overlaps both lesions by half, takes the last; the second finds nothing.
    left, right, over_both = [0, 0, 10, 10], [10, 0, 20, 10], [0, 0, 20, 10]
    results = [make("1", [left, right], [over_both, right], [0.9, 0.8])]
    assert ours(results, (0.5,)) == pytest.approx(51 / 101)
    assert ours(results, (0.5,)) == pytest.approx(mean_where_defined(reference(results, 1)[2, ..., 0]))


def test_by_hand(make):
    # hit, false positive, hit: precision 1 up to recall 1/2, 2/3 after: 51 recalls of 1, 50 of 2/3.
    results = [make("1", [A, B], [A, [120, 0, 180, 60], B], [0.9, 0.8, 0.7])]
    assert ours(results, coco.COCO_THRESHOLDS) == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_second_prediction_on_a_lesion_is_a_false_positive_here(make):
    results = [make("1", [A, B], [A, A, B], [0.9, 0.8, 0.7])]
    assert ours(results, (0.5,)) == pytest.approx((51 + 50 * 2 / 3) / 101)


@pytest.mark.parametrize("predicted, scores", [([], []), ([[120, 0, 180, 60]], [0.5])])
def test_nothing_found_is_zero(make, predicted, scores):
    assert ours([make("1", [A], predicted, scores)], (0.5,)) == 0.0


def test_without_lesions_not_defined(make):
    assert np.isnan(ours([make("1", [], [A], [0.5])], (0.5,)))
    assert np.isnan(ours([make("1", [A], [A], [0.5], ignore=[True])], (0.5,)))


def test_weights_are_repeated_patients(random):
    results = random(13, classes=2, ignored=0.2)
    patients = list(dict.fromkeys(r.patient_id for r in results))
    weights = np.random.default_rng(1).integers(0, 4, (4, len(patients)))
    counts = coco.count(results, (0.3, 0.5), patients)
    values = coco.Precisions(counts, weights).mean((0.3, 0.5))
    for row, times in enumerate(weights):
        repeated = [
            dataclasses.replace(result, image_id=f"{result.image_id}/{copy}")
            for result in results
            for copy in range(times[patients.index(result.patient_id)])
        ]
        assert values[row] == pytest.approx(ours(repeated, (0.3, 0.5)), abs=1e-9)
