"""The whole evaluation: keys, edge cases, comparison of two runs."""

import dataclasses
import json

import numpy as np
import pytest

from elk_jax.evaluation.evaluate import (
    METRIC_NAMES,
    SEVERAL,
    DetectionStatistic,
    compare_detections,
    evaluate_detections,
    scalars,
    share_of_gain,
)
from elk_jax.evaluation.hits import ELK_RULE, centre_in_box, criterion_from_text, iou_at_least
from tests.refusals import refused

A, B = [0, 0, 100, 100], [200, 200, 300, 300]
ELSEWHERE = [300, 0, 380, 80]
METRICS = ("mean_sensitivity", "aufroc_1", "aufroc_2", "aufroc_3", "ap", "ap50", "ap10", "ap30", "ap10_50")
NOTHING = {"value": None, "low": None, "high": None}


def perfect(results):
    return [
        dataclasses.replace(r, boxes=r.gt_boxes, labels=r.gt_labels, scores=np.linspace(0.9, 0.8, len(r.gt_boxes)))
        for r in results
    ]


def test_keys_and_json(random):
    evaluation = evaluate_detections(random(0), resamples=50)
    json.dumps(evaluation, allow_nan=False)
    for name in METRICS:
        assert set(evaluation[name]) == {"value", "low", "high"}
        assert 0 <= evaluation[name]["low"] <= evaluation[name]["high"] <= 1
    for group in ("sensitivity_at", "false_positives_per_lesion_free_image"):
        assert list(evaluation[group]) == ["0.5", "1", "2", "3"]
    mean = np.mean([entry["value"] for entry in evaluation["sensitivity_at"].values()])
    assert evaluation["mean_sensitivity"]["value"] == pytest.approx(mean)
    assert [point["rate"] for point in evaluation["operating_points"]] == [0.5, 1, 2, 3]
    for point in evaluation["operating_points"]:
        assert point["false_positives_per_image"]["value"] <= point["rate"] + 1e-6
    curve = evaluation["curve"]
    assert len(curve["band_at"]) == len(curve["low"]) == len(curve["high"])
    assert (np.diff(curve["sensitivity"]) >= 0).all()
    assert evaluation == evaluate_detections(random(0), resamples=50)
    flat = scalars(evaluation)
    assert flat["sensitivity_at_0.5"] == evaluation["sensitivity_at"]["0.5"]["value"]
    assert set(METRICS) <= set(METRIC_NAMES) <= set(flat) and all(isinstance(value, float) for value in flat.values())


def test_perfect_run(random):
    evaluation = evaluate_detections(perfect(random(1)), resamples=50)
    for name in METRICS:
        assert evaluation[name] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert evaluation["false_positives_per_lesion_free_image"]["1"]["value"] == 0


def test_the_mean_of_ap_from_iou_10_to_50(make):
    """A box of IoU 1/3 is a hit at 0.1, 0.15, ..., 0.3, five of nine thresholds."""
    shifted = [[10, 15, 20, 25]]
    found = scalars(evaluate_detections([make("1", [[10, 10, 20, 20]], shifted, [0.9])], resamples=0))
    assert found["ap10_50"] == pytest.approx(5 / 9) and found["ap30"] == 1 and found["ap50"] == 0


def test_counts_and_false_positives_on_lesion_free_images(make):
    results = [
        make("1", [A], [A, ELSEWHERE], [0.9, 0.5], patient="x"),
        make("2", [], [ELSEWHERE, A, B], [0.95, 0.6, 0.9], patient="x"),
        make("3", [], [], [], patient="y"),
        make("4", [B], [B, B], [0.9, 0.9], ignore=[True], patient="z"),
    ]
    evaluation = evaluate_detections(results, resamples=20)
    assert evaluation["counts"] == {
        "patients": 3,
        "images": 4,
        "images_with_lesions": 1,
        "lesion_free_images": 2,
        "lesions": 1,
        "ignored_boxes": 1,
        "predictions": 7,
    }
    assert evaluation["operating_points"][0]["threshold"] == 0.9
    # At 0.9: two of the three predictions on the two lesion-free images.
    assert evaluation["false_positives_per_lesion_free_image"]["0.5"]["value"] == pytest.approx(1.0)
    # With all images in the FROC, the 0.95 comes first: 1 false positive over 4 images.
    every = evaluate_detections(results, resamples=0, froc_images="all")
    assert every["operating_points"][0]["false_positives_per_image"]["value"] == pytest.approx(2 / 4)
    assert evaluation["operating_points"][0]["false_positives_per_image"]["value"] == 0


def test_no_lesions_at_all(make):
    evaluation = evaluate_detections([make(str(i), [], [A], [0.5]) for i in range(3)], resamples=20)
    assert all(evaluation[name] == NOTHING for name in METRICS)
    assert evaluation["curve"]["sensitivity"] == []
    assert any("AUFROC" in note for note in evaluation["notes"])
    json.dumps(evaluation, allow_nan=False)
    assert scalars(evaluation) == {}


def test_no_images():
    evaluation = evaluate_detections([], resamples=20)
    assert all(evaluation[name] == NOTHING for name in METRICS)


def test_no_predictions(make):
    evaluation = evaluate_detections([make("1", [A]), make("2", [B])], resamples=20)
    assert all(evaluation[name] == {"value": 0.0, "low": 0.0, "high": 0.0} for name in METRICS)
    assert evaluation["operating_points"][0]["threshold"] is None
    assert any("no predictions" in note for note in evaluation["notes"])


def test_several_classes_are_noted(make):
    told = lambda labels: any("classes" in note for note in evaluate_detections([found(labels)], resamples=0)["notes"])
    found = lambda labels: make("1", [A], [A], [0.9], labels=labels)
    assert told([1]) and not told([0])


def test_one_patient_has_no_interval(make):
    results = [make("1", [A], [A], [0.9], patient="x"), make("2", [B], [], [], patient="x")]
    evaluation = evaluate_detections(results, resamples=20)
    assert evaluation["mean_sensitivity"] == {"value": 0.5, "low": None, "high": None}
    assert evaluation["curve"]["band_at"] is None
    assert any("no intervals" in note for note in evaluation["notes"])


def test_all_scores_equal(make):
    results = [make(str(i), [A], [A, ELSEWHERE], [0.5, 0.5]) for i in range(4)]
    evaluation = evaluate_detections(results, resamples=20)
    assert evaluation["sensitivity_at"]["0.5"]["value"] == pytest.approx(0.5)  # half way up the only segment
    assert evaluation["sensitivity_at"]["1"]["value"] == pytest.approx(1.0)
    assert evaluation["operating_points"][0]["threshold"] is None  # no threshold keeps within 0.5
    assert evaluation["operating_points"][1]["threshold"] == 0.5


def test_score_floor_drops_predictions(make):
    results = [make("1", [A], [A], [0.05]), make("2", [A], [A], [0.5])]
    assert evaluate_detections(results, resamples=0)["mean_sensitivity"]["value"] == 1.0
    assert evaluate_detections(results, resamples=0, score_floor=0.1)["mean_sensitivity"]["value"] == 0.5


def test_the_criterion_is_the_caller_s(make):
    results = [make("1", [A], [[40, 40, 60, 60], ELSEWHERE], [0.9, 0.95])]
    evaluation = evaluate_detections(results, criterion=centre_in_box(), resamples=0)
    assert evaluation["criterion"] == "centre in box"
    assert [v["value"] for v in evaluation["sensitivity_at"].values()] == [0.0, 1.0, 1.0, 1.0]
    assert evaluation["aufroc_2"]["value"] == pytest.approx(0.5)
    assert evaluate_detections(results, resamples=0)["mean_sensitivity"]["value"] == 0.0


def test_equal_runs_do_not_differ(random):
    compared = compare_detections(random(2), random(2), resamples=50)
    assert set(METRICS) <= set(compared) and "sensitivity_at_0.5" in compared
    for name in METRICS:
        entry = compared[name]
        assert entry["difference"] == entry["low"] == entry["high"] == 0.0 and entry["p_value"] == 1.0


def test_better_run_is_seen_in_any_order_of_images(random):
    results = random(3)
    compared = compare_detections(results, perfect(results)[::-1], resamples=200)["mean_sensitivity"]
    assert compared["second"] == 1.0 and compared["first"] < 1.0
    assert compared["low"] > 0 and compared["p_value"] < 0.02


@pytest.mark.parametrize(
    "change, word",
    [
        ({"scores": np.array([0.5, np.nan])}, "scores"),
        ({"scores": np.array([0.5])}, "scores"),
        ({"scores": np.array(["0.5", "0.6"])}, "scores"),
        ({"boxes": np.array([A, [0, 0, np.inf, 9]])}, "boxes"),
        ({"boxes": np.array([A, [9, 0, 2, 9]])}, "inverted"),
        ({"boxes": np.array([[0, 0, 9], [1, 1, 9]])}, "boxes"),
        ({"boxes": np.array(A)}, "boxes"),
        ({"labels": np.array([0, -1])}, "labels"),
        ({"labels": np.array([0, 0.5])}, "labels"),
        ({"gt_boxes": np.array([[0, 0, 0, 9]])}, "empty"),
        ({"gt_boxes": np.array([[0, 0, np.nan, 9]])}, "gt_boxes"),
        ({"gt_labels": np.array([0, 0])}, "gt_labels"),
        ({"gt_ignore": np.array([2])}, "gt_ignore"),
        ({"gt_ignore": np.array(["false"])}, "gt_ignore"),
        ({"width": 0}, "width"),
        ({"height": None}, "height"),
    ],
)
def test_arguments_are_checked_as_files_are(make, change, word):
    good, bad = make("1", [A], [A, B], [0.9, 0.8]), make("2", [A], [A, B], [0.9, 0.8])
    bad = dataclasses.replace(bad, **change)
    with refused(word, where="image 2"):
        evaluate_detections([good, bad], resamples=0)
    with refused(word, where="image 2"):
        compare_detections([good, bad], [good, bad], resamples=0)


def test_an_image_twice_and_settings_that_cannot_be_are_refused(make):
    results = [make("1", [A], [A], [0.9]), make("2", [B], [B], [0.8])]
    for again in ("2", 2, "2 "):
        with refused(2, where="image 2"):
            evaluate_detections([*results, dataclasses.replace(results[1], image_id=again)], resamples=0)
    for setting, values in {
        "resamples": (-1, 2.0, 10**9),
        "seed": (-1, 1 << 32, 1 << 63, 0.5, True),
        "score_floor": (np.nan, "0.1"),
        "froc_images": ("some",),
        "criterion": ("iou:0.3",),
    }.items():
        for value in values:
            with refused(repr(value), where=setting):
                evaluate_detections(results, **{setting: value})


def test_arrays_of_other_types_give_the_same_numbers(make):
    results = [make("1", [A], [B, A], [1, 200]), make("2", [], [B], [5], patient="x")]
    small = [
        dataclasses.replace(
            result,
            gt_boxes=result.gt_boxes.astype(np.uint16),
            boxes=result.boxes.astype(np.int16).tolist(),
            scores=result.scores.astype(np.uint8),
            labels=result.labels.astype(float),
            gt_ignore=result.gt_ignore.astype(int),
        )
        for result in results
    ]
    assert evaluate_detections(small, resamples=9) == evaluate_detections(results, resamples=9)
    numpys = {"resamples": np.int64(9), "score_floor": np.float32(0.5), "criterion": iou_at_least(np.float32(0.25))}
    plain = {"resamples": 9, "score_floor": 0.5, "criterion": iou_at_least(0.25)}
    assert evaluate_detections(small, **numpys) == evaluate_detections(results, **plain)
    with refused("dict", where="results"):
        evaluate_detections([{"image_id": "1"}])
    assert evaluate_detections([], resamples=9)["mean_sensitivity"] == NOTHING
    unnamed = [dataclasses.replace(result, patient_id="") for result in results]
    assert evaluate_detections(unnamed, resamples=0)["counts"]["patients"] == 2


def test_runs_on_other_images_are_refused(random):
    results = random(4)
    with refused(1):
        compare_detections(results, results[:-1])
    chosen = next(result for result in results if result.has_lesions)
    moved = [dataclasses.replace(r, gt_boxes=r.gt_boxes + 1) if r is chosen else r for r in results]
    with refused(1, repr(chosen.image_id)):
        compare_detections(results, moved)
    other = [dataclasses.replace(r, gt_labels=r.gt_labels + 1) if r is chosen else r for r in results]
    with refused(1, repr(chosen.image_id)):
        compare_detections(results, other)


# ---- Several classes -------------------------------------------------------------------------------------------------

NAMES = ("mass", "a/b", "a_b")


def alone(results, label):
    """The data of one class as data of a single class."""
    parts = []
    for r in results:
        own, found = r.gt_labels == label, r.labels == label
        truth = {"gt_boxes": r.gt_boxes[own], "gt_ignore": r.gt_ignore[own], "gt_labels": r.gt_labels[own] * 0}
        boxes = {"boxes": r.boxes[found], "scores": r.scores[found], "labels": r.labels[found] * 0}
        parts.append(dataclasses.replace(r, **truth, **boxes))
    return parts


@pytest.mark.parametrize("froc_images", ["with_lesions", "all"])
@pytest.mark.parametrize("criterion", ["iou:0.3", "regions:0.3"])
def test_each_class_is_what_an_evaluation_of_it_alone_gives(random, froc_images, criterion):
    results = random(6, classes=3, ignored=0.2, ties=True)
    how = {"resamples": 60, "froc_images": froc_images, "criterion": criterion_from_text(criterion)}
    evaluation = evaluate_detections(results, classes=NAMES, **how)
    assert list(evaluation["classes"]) == list(NAMES)
    for label, own in enumerate(evaluation["classes"].values()):
        single = evaluate_detections(alone(results, label), **how)
        assert own["lesions"] == single["counts"]["lesions"] > 0
        assert own["images_with_lesions"] == single["counts"]["images_with_lesions"]
        for name in ("mean_sensitivity", "sensitivity_at", "ap", "ap50", "ap30"):
            assert own[name] == single[name], name
        assert own["ap50"]["low"] < own["ap50"]["high"]
    for name in ("ap", "ap50", "ap30"):
        mean = np.mean([own[name]["value"] for own in evaluation["classes"].values()])
        assert evaluation[name]["value"] == pytest.approx(mean)


def test_names_of_classes_change_no_other_figure(random):
    results, how = random(7, classes=2, ignored=0.2), {"resamples": 30, "several": SEVERAL}
    named, plain = evaluate_detections(results, classes=("x", "y"), **how), evaluate_detections(results, **how)
    assert named.keys() - plain.keys() == {"classes", "confusion"}
    assert {name: named[name] for name in plain} == plain
    compared = compare_detections(results, perfect(results), classes=("x", "y"), **how)
    del compared["classes"]
    assert compared == compare_detections(results, perfect(results), **how)
    one = alone(results, 0)
    assert evaluate_detections(one, classes=("x",), **how) == evaluate_detections(one, **how)
    assert compare_detections(one, one, classes=("x",), **how) == compare_detections(one, one, **how)


def test_two_classes_by_hand(make):
    """Class 0 has a lesion in images 1 and 2, class 1 in images 2 and 3.

    Class 0, images 1 and 2: false positive 0.95, found 0.9, false positive 0.85 (on the lesion of class 1), found 0.3.
    (The 0.99 is in image 3, without a lesion of class 0.) Half of the lesions are found from 0.5 false positives per
    image, all from 1.
    Class 1, images 2 and 3: found 0.8, false positive 0.7 (in image 2), never found.
    Together, images 1 to 3: false positives 0.99, 0.95, found 0.9, false positive 0.85, found 0.8, false positive 0.7,
    found 0.3: with 2/3, 1 and 4/3 false positives per image.
    """
    results = [
        make("1", [A], [A, ELSEWHERE], [0.9, 0.95], gt_labels=[0], labels=[0, 0]),
        make("2", [A, B], [A, B, B, ELSEWHERE], [0.3, 0.85, 0.8, 0.7], gt_labels=[0, 1], labels=[0, 0, 1, 1]),
        make("3", [B], [B], [0.99], gt_labels=[1], labels=[0]),
    ]
    evaluation = evaluate_detections(results, resamples=0, classes=("p", "q"))
    p, q = evaluation["classes"].values()
    read = lambda entry: [found["value"] for found in entry["sensitivity_at"].values()]
    assert (p["lesions"], p["images_with_lesions"], q["lesions"], q["images_with_lesions"]) == (2, 2, 2, 2)
    assert read(p) == [0.5, 1, 1, 1] and read(q) == [0.5, 0.5, 0.5, 0.5]
    assert p["mean_sensitivity"]["value"] == 0.875 and q["mean_sensitivity"]["value"] == 0.5
    # p by score: false positive, false positive, hit, false positive, hit: precision 2/5 up to the recall of 1
    # q: hit, false positive: precision 1 up to the recall of 1/2, the first 51 of 101
    for name in ("ap", "ap50", "ap30"):
        assert p[name]["value"] == pytest.approx(2 / 5) and q[name]["value"] == pytest.approx(51 / 101)
        assert evaluation[name]["value"] == pytest.approx((2 / 5 + 51 / 101) / 2)
    assert evaluation["mean_sensitivity"]["value"] == pytest.approx(np.mean([0, 0.5, 0.75, 0.75]))
    # at 1 false positive per image, the threshold is 0.8: the lesion of image 3 has a box of class p alone, that of
    # class q in image 2 a better box of class p
    assert evaluation["confusion"] == {"rate": 1.0, "threshold": 0.8, "table": [[1, 0, 1], [2, 0, 0]]}
    everywhere = evaluate_detections(results, resamples=0, classes=("p", "q"), froc_images="all")["classes"]["p"]
    # also the 0.99, over three images: 2/3 until the first is found, 1 until the second
    assert read(everywhere) == [0, 1, 1, 1]


def test_a_class_without_a_lesion_is_undefined_and_named(make, random):
    results = [make(str(i), [A], [A, B], [0.9, 0.8], gt_labels=[0], labels=[0, 1]) for i in range(4)]
    evaluation = evaluate_detections(results, resamples=20, classes=("mass", "calcification", "other"))
    json.dumps(evaluation, allow_nan=False)
    mass, *others = evaluation["classes"].values()
    for own in others:
        assert own["lesions"] == own["images_with_lesions"] == 0
        assert all(own[name] == NOTHING for name in ("mean_sensitivity", "ap", "ap50", "ap30"))
        assert list(own["sensitivity_at"].values()) == [NOTHING] * 4
    assert mass["ap"]["value"] == evaluation["ap"]["value"] == 1.0
    assert any("no lesion of calcification, other:" in note for note in evaluation["notes"])
    assert not any("no lesion of" in note for note in evaluate_detections(results, resamples=0)["notes"])
    compared = compare_detections(results, results, resamples=20, classes=("mass", "calcification", "other"))
    json.dumps(compared, allow_nan=False)
    assert compared["classes"]["other"]["ap50"]["difference"] is None
    empty = evaluate_detections([make("1", [], [A], [0.5])], resamples=20, classes=("mass", "other"))
    assert empty["confusion"] == {} and empty["classes"]["mass"]["ap"] == NOTHING


def test_differences_of_a_class_are_those_of_an_evaluation_of_it_alone(random):
    first, how = random(8, classes=3), {"resamples": 60}
    second = [dataclasses.replace(r, scores=r.scores**2, boxes=r.boxes + [2, 0, 2, 0]) for r in first]
    compared = compare_detections(first, second, classes=NAMES, **how)["classes"]
    assert list(compared) == list(NAMES)
    for label, own in enumerate(compared.values()):
        single = compare_detections(alone(first, label), alone(second, label), **how)
        assert "sensitivity_at_0.5" in own and own["ap"]["difference"] != 0
        assert own == {name: single[name] for name in own}


@pytest.mark.parametrize("classes", [("mass",), ("mass", "other"), ("mass", "mass", "other")])
def test_classes_that_do_not_name_the_labels_are_refused(make, classes):
    results = [make("1", [A], [A], [0.9], gt_labels=[2], labels=[0])]
    with refused(where="classes"):
        evaluate_detections(results, resamples=0, classes=classes)
    with refused(where="classes"):
        compare_detections(results, results, resamples=0, classes=classes)


# ---- The share of a gain ---------------------------------------------------------------------------------------------


def finding(make, found: int):
    """Eight patients of one lesion each, of which the first `found` are found."""
    return [make(f"{n}", [A], [A] if n < found else [], [0.9] * (n < found)) for n in range(8)]


@pytest.mark.parametrize("after, share", [(2, 0.0), (5, 0.75), (6, 1.0), (8, 1.5), (0, -0.5)])
def test_the_share_of_a_gain_is_of_what_the_reference_gains(make, after, share):
    found = share_of_gain(finding(make, 2), finding(make, after), finding(make, 6), resamples=200)
    assert found["value"] == pytest.approx(share)
    assert found["low"] <= found["value"] + 1e-9 and found["value"] <= found["high"] + 1e-9


def test_a_reference_without_a_gain_has_no_share(make):
    assert share_of_gain(finding(make, 5), finding(make, 6), finding(make, 5), resamples=50) == NOTHING
    with refused(1):
        share_of_gain(finding(make, 2), finding(make, 3), finding(make, 4)[:-1])


# ---- Several criteria ------------------------------------------------------------------------------------------------


def test_each_of_several_criteria_is_measured_as_if_it_were_the_only_one(random):
    results = random(4)
    evaluation = evaluate_detections(results, resamples=30, several=SEVERAL)
    assert list(evaluation["criteria"]) == list(SEVERAL)
    json.dumps(evaluation, allow_nan=False)
    for text, entry in evaluation["criteria"].items():
        alone = evaluate_detections(results, criterion=criterion_from_text(text), resamples=30)
        assert entry["name"] == alone["criterion"]
        for key in ("mean_sensitivity", "sensitivity_at", "curve"):
            assert entry[key] == alone[key], f"{text}, {key}"
    assert evaluation["criteria"]["iou:0.1"]["ap"] == evaluation["ap10"]
    assert evaluation["criteria"]["iou:0.3"]["ap"] == evaluation["ap30"]
    assert not {"ap"} & (evaluation["criteria"]["centre_in_box"].keys() | evaluation["criteria"]["regions:0.3"].keys())
    assert evaluation["criteria"]["iou:0.3"]["to_find"] == evaluation["counts"]["lesions"]
    assert evaluation["criteria"]["regions:0.3"]["to_find"] < evaluation["counts"]["lesions"]


def test_several_criteria_leave_the_others_alone_and_are_compared(random):
    results = random(4)
    plain, more = (evaluate_detections(results, resamples=9, several=several) for several in ((), SEVERAL))
    assert plain["criteria"] == {} and {**more, "criteria": {}} == plain
    assert scalars(plain) == scalars(more), "logs and the choice of checkpoints do not change"
    compared = compare_detections(results, perfect(results), resamples=9, several=SEVERAL)
    for text in SEVERAL:
        entry = compared[f"criteria_{text}_mean_sensitivity"]
        assert entry["first"] == more["criteria"][text]["mean_sensitivity"]["value"] < entry["second"] == 1


def test_names_of_the_statistic_are_the_keys_of_the_file(random):
    results = random(4)
    statistic = DetectionStatistic(results, ELK_RULE, several=SEVERAL)
    evaluation = evaluate_detections(results, resamples=0, several=SEVERAL)
    for name, (value,) in statistic(np.ones((1, len(statistic.patients)))).items():
        if name.startswith("criteria/"):
            entry = evaluation
            for key in name.split("/"):
                entry = entry[key]
            assert entry["value"] == pytest.approx(value)


def test_mistakes_are_of_the_images_of_the_curve(make):
    results = [make("1", [A], [A, ELSEWHERE], [0.9, 0.95]), make("2", [], [A], [0.99])]
    found = evaluate_detections(results, resamples=0)["mistakes"]
    assert (found["rate"], found["threshold"], found["false_positives"]["elsewhere"]) == (1.0, 0.9, 1)
    every = evaluate_detections(results, resamples=0, froc_images="all")["mistakes"]
    assert every["false_positives"]["elsewhere"] == 2 and sum(every["misses"].values()) == 0
    assert evaluate_detections([make("1", [A])], resamples=0)["mistakes"] == {}
