"""Metrics of classifiers beside scikit-learn's (tests/golden/make_classification.py), by hand, and their properties."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.classifier_thresholds import others, simulated
from elk_jax.evaluation import roc
from elk_jax.evaluation.bootstrap import draw_weights, on_others
from elk_jax.evaluation.classification import (
    ClassificationStatistic,
    compare_classification,
    confident_errors,
    evaluate_classification,
)
from elk_jax.evaluation.evaluate import scalars
from elk_jax.evaluation.thresholds import HALF, ChosenOn, OperatingPoint, Rule, choose, doubt, rule_from_text
from tests.refusals import refused

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "classification.json").read_text())
GOLDEN.pop("version")


def of_images(predictions, positive="malignant", points=(HALF,)):
    """The metrics of the sample itself."""
    statistic = ClassificationStatistic(predictions, positive, points)
    return {name: value[0] for name, value in statistic(np.ones((1, len(statistic.patients)))).items()}


@pytest.mark.parametrize("case", GOLDEN)
def test_equals_scikit_learn(case, classified):
    wanted = GOLDEN[case]
    predictions = classified(wanted["scores"], wanted["truth"])
    statistic = ClassificationStatistic(predictions, "malignant")
    order = [statistic.patients.index(patient) for patient in predictions.patient_ids]
    weights = np.zeros((1, len(predictions)))
    weights[0, order] = wanted["weights"]
    found = {name: value[0] for name, value in statistic(weights).items()}
    names = {
        "average_precision": "average_precision/malignant",
        "average_precision_reversed": "average_precision/benign",
        "sensitivity_at_specificity_0.9": "sensitivity_at_specificity/0.9",
        "specificity_at_sensitivity_0.9": "specificity_at_sensitivity/0.9",
    }
    for name in wanted.keys() - {"truth", "scores", "weights"}:
        key = next(k for k in (names.get(name, name), f"at_threshold/0/{name}") if k in found)
        precision = 1e-4 if name == "calibration_slope" else 1e-12  # its optimiser stops there
        assert found[key] == pytest.approx(wanted[name], rel=precision), name


def test_by_hand(classified):
    # Falling: positive .9, tie of positive and negative .6, negative .2: of 4 pairs 3 are won and one is half won.
    found = of_images(classified([0.9, 0.6, 0.6, 0.2], [1, 1, 0, 0]))
    assert found["auroc"] == 3.5 / 4
    assert found["average_precision/malignant"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert found["average_precision/benign"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert found["sensitivity_at_specificity/0.9"] == 0.5  # at .9; at .6 specificity is 0.5
    assert found["brier"] == pytest.approx((0.01 + 0.16 + 0.36 + 0.04) / 4)
    assert found["calibration_error"] == pytest.approx((0.1 + abs(1.2 - 1) + 0.2) / 4)
    assert found["at_threshold/0/accuracy"] == 0.75


def test_a_perfect_and_a_wrong_classifier(classified):
    right, wrong = (of_images(classified([0.9, 0.8, 0.2, 0.1], truth)) for truth in ([1, 1, 0, 0], [0, 0, 1, 1]))
    assert (right["auroc"], wrong["auroc"]) == (1, 0)
    assert right["sensitivity_at_specificity/0.9"] == 1 and wrong["sensitivity_at_specificity/0.9"] == 0
    assert np.isnan([right["calibration_slope"], wrong["calibration_slope"]]).all()  # no finite slope is best


def test_constant_scores_are_chance(classified):
    found = of_images(classified([0.3] * 10, [1, 1, 1] + [0] * 7))
    assert found["auroc"] == 0.5 and found["average_precision/malignant"] == pytest.approx(0.3)
    assert found["calibration_error"] == pytest.approx(0) and found["calibration_intercept"] == pytest.approx(0)
    assert np.isnan(found["calibration_slope"])


def test_only_the_order_counts_for_the_ranking(random_classified):
    predictions = random_classified(0)
    scores, truth = predictions.scores("malignant"), predictions.truth("malignant")
    maps = (np.array, np.log, lambda s: s**3)
    curves = [roc.corners(roc.rank(rising(scores), truth), np.ones((1, len(truth)))) for rising in maps]
    for measure in (roc.area, roc.average_precision, lambda c: roc.sensitivity_at_specificity(c, 0.9)):
        assert measure(curves[0]) == measure(curves[1]) == measure(curves[2])


def test_exchanged_classes(random_classified):
    predictions = random_classified(1)
    one, other = of_images(predictions), of_images(predictions, "benign")
    assert one["auroc"] == pytest.approx(other["auroc"])
    for name in ("average_precision/malignant", "average_precision/benign", "brier", "cross_entropy"):
        assert one[name] == pytest.approx(other[name])
    assert one["calibration_slope"] == pytest.approx(other["calibration_slope"])
    assert one["calibration_intercept"] == pytest.approx(-other["calibration_intercept"])
    assert one["at_threshold/0/sensitivity"] == other["at_threshold/0/specificity"]


def test_calibrated_probabilities_are_found_calibrated(classified):
    rng = np.random.default_rng(0)
    p = rng.uniform(0.02, 0.98, 8000)
    truth = rng.uniform(size=len(p)) < p
    found = of_images(classified(p, truth))
    assert found["calibration_slope"] == pytest.approx(1, abs=0.06)
    assert found["calibration_intercept"] == pytest.approx(0, abs=0.06) and found["calibration_error"] < 0.02
    sharp = p**2 / (p**2 + (1 - p) ** 2)  # twice the logit: over-confident
    assert of_images(classified(sharp, truth))["calibration_slope"] == pytest.approx(0.5, abs=0.03)


def test_weights_are_repeated_patients(random_classified, classified):
    predictions = random_classified(2)
    statistic = ClassificationStatistic(predictions, "malignant")
    weights = np.random.default_rng(0).integers(0, 3, (3, len(statistic.patients)))
    found = statistic(weights)
    for row, times in enumerate(weights):
        of = dict(zip(statistic.patients, times))
        again = np.repeat(np.arange(len(predictions)), [of[patient] for patient in predictions.patient_ids])
        repeated = of_images(classified(predictions.scores("malignant")[again], predictions.labels[again]))
        for name, value in repeated.items():
            assert found[name][row] == pytest.approx(value, rel=1e-9, nan_ok=True), name


def test_resamples_of_one_class_are_left_out(classified):
    predictions = classified([0.9, 0.4, 0.3], [1, 0, 0])
    found = ClassificationStatistic(predictions, "malignant")(np.array([[0, 2, 1], [3, 0, 0], [1, 1, 1]]))
    for name in ("auroc", "sensitivity_at_specificity/0.9", "specificity_at_sensitivity/0.9", "calibration_intercept"):
        assert np.isnan(found[name]).tolist() == [True, True, False], name
    assert np.isfinite(found["brier"]).all()
    estimate = evaluate_classification(predictions, positive="malignant", resamples=200)["auroc"]
    assert estimate == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_evaluation_is_json_with_intervals_around_the_values(random_classified):
    predictions = random_classified(3)
    points = [choose(random_classified(4), "malignant", rule_from_text(rule)) for rule in ("youden", "sensitivity:0.9")]
    evaluation = evaluate_classification(predictions, positive="malignant", points=points, resamples=300)
    assert json.loads(json.dumps(evaluation, allow_nan=False)) == evaluation
    estimates = [evaluation[name] for name in ("auroc", "brier", "calibration_slope", "auroc_delong")]
    estimates += evaluation["average_precision"].values()
    estimates += [point["f1"] for point in evaluation["operating_points"]]
    for estimate in estimates:
        assert estimate["low"] < estimate["value"] < estimate["high"]
    assert [point["threshold"] for point in evaluation["operating_points"]] == [point.threshold for point in points]
    assert {"auroc", "average_precision_malignant", "brier"} <= scalars(evaluation).keys()
    curve = evaluation["curve"]
    assert curve["false_positive_rate"][-1] == curve["sensitivity"][-1] == curve["high"][-1] == 1
    assert sum(one["images"] for one in evaluation["reliability"]) == len(predictions)
    assert sum(map(sum, evaluation["histogram"]["counts"].values())) == len(predictions)


def test_no_intervals_without_resamples(random_classified):
    evaluation = evaluate_classification(random_classified(3), positive="malignant", resamples=0)
    assert evaluation["auroc"]["low"] is evaluation["curve"]["band_at"] is None
    assert evaluation["reliability"][5]["share"]["high"] is None


def test_images_of_a_patient_carry_the_information_of_one(classified, random_classified):
    one = random_classified(5, images_of_a_patient=1)
    again = np.repeat(np.arange(len(one)), 5)
    patients = [one.patient_ids[row] for row in again]
    five = classified(one.scores("malignant")[again], one.labels[again], patients)
    a, b = (evaluate_classification(p, positive="malignant", resamples=200) for p in (one, five))
    for name in ("auroc", "auroc_delong", "brier"):
        assert a[name] == pytest.approx(b[name]), name


def test_three_classes_are_one_against_the_others(classified, random_classified):
    two = random_classified(6)
    p = two.scores("malignant")
    rows = np.stack([(1 - p) * 0.3, p, (1 - p) * 0.7], 1)
    labels = np.where(two.labels == 1, 1, np.arange(len(p)) % 2 * 2)
    three = classified(rows, labels, two.patient_ids, classes=("benign", "malignant", "normal"))
    a, b = (of_images(predictions) for predictions in (two, three))
    assert b.pop("average_precision/not malignant") == pytest.approx(a.pop("average_precision/benign"))
    assert a == pytest.approx(b)


def test_comparison_is_paired_and_signed(random_classified):
    first, second = random_classified(7, signal=0.5), random_classified(7, signal=2.0)
    compared = compare_classification(first, second, positive="malignant", resamples=300)
    assert compared["auroc"]["difference"] > 0 and compared["auroc"]["low"] > 0
    assert compared["auroc"]["p_value"] < 0.05 and compared["auroc_delong"]["p_value"] < 0.05
    assert compared["auroc"]["difference"] == pytest.approx(compared["auroc_delong"]["difference"])
    assert compared["brier"]["difference"] < 0
    same = compare_classification(first, first, positive="malignant", resamples=100)
    for name, entry in same.items():
        assert (entry["difference"], entry["p_value"]) == (0, 1), name


def test_order_of_images_does_not_matter_for_a_comparison(random_classified, classified):
    first, second = random_classified(7), random_classified(7, signal=2.0)
    mixed = classified(second, order=np.random.default_rng(0).permutation(len(second)))
    one, other = (compare_classification(first, s, positive="malignant", resamples=50) for s in (second, mixed))
    assert one == other


@pytest.mark.parametrize(
    "rule, threshold",
    [
        ("youden", 0.4),
        ("accuracy", 0.4),
        ("f1", 0.4),
        ("sensitivity:0.6", 0.7),
        ("sensitivity:1", 0.4),
        ("sensitivity:0", np.nextafter(0.9, 1)),  # no image is called positive
        ("specificity:0.75", 0.4),
        ("specificity:1", 0.7),
        ("specificity:0", 0.1),
    ],
)
def test_choice_of_a_threshold(rule, threshold, classified):
    validation = classified([0.9, 0.7, 0.6, 0.4, 0.3, 0.2, 0.1], [1, 1, 0, 1, 0, 0, 0])
    point = choose(validation, "malignant", rule_from_text(rule), "val")
    assert (point.threshold, point.rule, point.chosen_on) == (threshold, rule, "val")
    there = of_images(validation, points=[point])
    for name, value in point.there.items():
        assert there[f"at_threshold/0/{name}"] == pytest.approx(np.nan if value is None else value, nan_ok=True)


def test_rare_positives_may_be_best_left_out(classified):
    validation = classified([0.8, 0.5, 0.4, 0.3, 0.2], [0, 0, 1, 0, 0])
    assert choose(validation, "malignant", Rule("accuracy")).threshold == np.nextafter(0.8, 1)


@pytest.mark.parametrize("rule", ["youden", "accuracy", "f1", "sensitivity:0.8", "specificity:0.8"])
def test_expected_values_hold_the_choice(rule, random_classified, classified):
    """Each resample as its own data set, patients drawn twice under two names: a threshold is chosen on it, and tried
    on the whole sample."""
    whole, of = random_classified(4, images_of_a_patient=2), rule_from_text(rule)
    point = choose(whole, "malignant", of, resamples=40, seed=5)
    patients, scores = sorted(set(whole.patient_ids)), whole.scores("malignant")
    drawn = []
    for weights in draw_weights(len(patients), 40, 5).astype(int):
        times = [weights[patients.index(patient)] for patient in whole.patient_ids]
        names = [f"{patient} {copy}" for patient, n in zip(whole.patient_ids, times) for copy in range(n)]
        again = classified(np.repeat(scores, times), np.repeat(whole.labels, times), names)
        drawn.append(choose(again, "malignant", of, resamples=0))
    thresholds = np.quantile([one.threshold for one in drawn], [0.025, 0.975])
    assert [point.low, point.high] == pytest.approx(thresholds, abs=1e-6) and point.low < point.high
    kinds = {"sensitivity": point.on.patients_of_positives, "specificity": point.on.patients_of_negatives}
    assert set(point.intervals) == set(point.there) and kinds["sensitivity"] != kinds["specificity"]
    for name, value in point.there.items():
        there = np.array([one.there[name] for one in drawn], float)
        tried = [of_images(whole, points=[OperatingPoint(one.threshold)])[f"at_threshold/0/{name}"] for one in drawn]
        expected = on_others(value, there, np.array(tried), kinds.get(name, min(kinds.values())))
        assert point.intervals[name] == pytest.approx(expected, abs=1e-6)
    assert choose(whole, "malignant", of, resamples=0).intervals == {}


def test_expected_values_hold_on_fresh_patients_where_those_of_a_fixed_threshold_do_not():
    """Youden's index, 15 simulated patients at a time, of 95 % intervals. The optimism is gone, but for a third."""
    rng, rule = np.random.default_rng(0), Rule("youden")
    fresh = simulated(1500, 0.6, 1.4, rng)
    held, too_good = {"expected": 0, "fixed": 0}, []
    for _ in range(60):
        few = simulated(15, 0.6, 1.4, rng)
        point = choose(few, "malignant", rule, resamples=100)
        comes = of_images(fresh, points=[point])["at_threshold/0/balanced_accuracy"]
        expected = point.intervals["balanced_accuracy"]
        low, high = others(few, rule, point.threshold, 100, 0)["fixed"]["balanced_accuracy"]
        held["expected"] += expected["low"] <= comes <= expected["high"]
        held["fixed"] += low <= comes <= high
        too_good.append([point.there["balanced_accuracy"] - comes, expected["value"] - comes])
    before, after = np.mean(too_good, axis=0)
    assert held["expected"] >= 0.9 * 60 > held["fixed"] + 3 and abs(after) < before / 3


def test_where_a_kind_has_one_patient_its_share_on_others_is_not_known(classified):
    """Its images are always drawn together; the other kind has enough."""
    truth = np.arange(40) < 3
    patients = ["ill"] * 3 + [f"p{i}" for i in range(37)]
    scores = np.linspace(0.2, 0.7, 40)[::-1] + 0.2 * np.sin(np.arange(40))
    found = choose(classified(scores, truth, patients), "malignant", Rule("specificity", 0.8)).intervals
    nothing = {"value": None, "low": None, "high": None}
    assert found["sensitivity"] == found["f1"] == nothing
    assert found["specificity"]["low"] < found["specificity"]["value"] < found["specificity"]["high"]
    alone = choose(classified(scores, truth, ["one"] * 40), "malignant", Rule())
    assert alone.intervals == {} and alone.low is None


def test_few_patients_of_either_kind_are_warned_of(classified):
    truth = np.arange(60) % 3 == 0
    scores = np.linspace(0, 0.5, 60) + 0.2 * truth
    point = choose(classified(scores, truth, [f"p{i}" for i in range(60)]), "malignant", Rule())
    assert doubt([point]) == "" and point.on == ChosenOn(20, 40, 20, 40)
    few = choose(classified(scores, truth, [f"p{i // 4}" for i in range(60)]), "malignant", Rule(), "val")
    assert few.on == ChosenOn(20, 40, 15, 15) and all(word in doubt([few]) for word in ("few", "val", "15 patients"))
    rare = choose(classified(scores, np.arange(60) < 19, [f"p{i}" for i in range(60)]), "malignant", Rule())
    assert "19 positive images of 19 patients, 41" in doubt([rare])
    unknown = choose(classified(scores, truth, [f"p{i}" for i in range(60)]), "malignant", Rule(), resamples=0)
    assert "not resampled" in doubt([unknown]) and "unknown" in doubt([OperatingPoint(0.5, "youden")])
    assert doubt([HALF]) == ""


def test_a_threshold_at_an_end_of_the_scores_is_warned_of(classified):
    equal = classified(np.full(60, 0.3), np.arange(60) % 2)
    points = [choose(equal, "malignant", rule_from_text(rule)) for rule in ("sensitivity:0.9", "specificity:0.9")]
    assert "sensitivity:0.9 every image" in doubt(points) and "specificity:0.9 no image" in doubt(points)
    assert evaluate_classification(equal, positive="malignant", points=points, resamples=0)["warning"] == doubt(points)
    apart = choose(classified(np.arange(60) / 60, np.arange(60) >= 30), "malignant", Rule())
    assert "youden no image is wrong" in doubt([apart])
    earlier = OperatingPoint(0.1, "youden", "validation", {"sensitivity": 1.0, "specificity": 0.0})
    assert "unknown" in doubt([earlier]) and "every image" in doubt([earlier])


def test_confident_errors(classified):
    predictions = classified([0.99, 0.05, 0.9, 0.6, 0.45, 0.2], [0, 1, 1, 0, 1, 0])
    found = confident_errors(predictions, "malignant", 0.5, number=3)
    assert [(error["image_id"], error["called"]) for error in found] == [
        ("0", "positive"),
        ("1", "negative"),
        ("3", "positive"),
    ]
    assert found[1]["label"] == "malignant" and found[1]["score"] == 0.05
    assert confident_errors(classified([0.9, 0.1], [1, 0]), "malignant") == []


def test_refusals(classified, random_classified):
    one, benign = random_classified(8), classified([0.1, 0.2], [0, 0])
    for what in (
        lambda p, c: evaluate_classification(p, positive=c, resamples=0),
        lambda p, c: choose(p, c, Rule()),
        lambda p, c: compare_classification(p, p, positive=c, resamples=0),
    ):
        with refused("malignant", 2):
            what(benign, "malignant")
        with refused("a class other than benign"):
            what(benign, "benign")
        with refused("cancer", "benign, malignant", where="positive"):
            what(one, "cancer")
    with refused(-1, where="resamples"):
        evaluate_classification(one, positive="malignant", resamples=-1)
    with refused(1, 2, where="second_points"):
        compare_classification(one, one, positive="malignant", second_points=(HALF, HALF))
    for text in ("best", "sensitivity", "youden:0.5", "specificity:2", "sensitivity:x"):
        with refused(text, where="rule"):
            rule_from_text(text)
    with refused("nan", where="threshold"):
        OperatingPoint(float("nan"))
