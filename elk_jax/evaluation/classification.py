"""All metrics of a classifier for one named class, with confidence intervals over patients.

One class is positive, and all others are negative, so every metric depends only on the probability of that class; with
two classes this covers everything. Average precision, sensitivity and F1 depend on which class is positive: name it.

Shapes: N images, P patients, R weightings of the patients, G places of the curve, B bins of probability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from elk_jax.errors import UserError
from elk_jax.evaluation import bootstrap, calibration, roc
from elk_jax.evaluation.delong import compare_delong, delong
from elk_jax.evaluation.froc import sensitivity_at
from elk_jax.evaluation.predictions import Predictions, aligned
from elk_jax.evaluation.thresholds import HALF, OperatingPoint, called, doubt

TARGETS = (0.9, 0.95)
"""Specificities at which sensitivity is read, and sensitivities at which specificity is read."""
CURVE_GRID = tuple(np.round(np.linspace(0.0, 1.0, 101), 6))
HISTOGRAM = 20
"""Number of bins (of equal width) in histograms of scores."""


class ClassificationStatistic:
    """The metrics of one classifier as a function of patient weights (see bootstrap.py). Images are sorted once.

    In a resample of patients without an image of one kind, metrics that need both kinds are NaN, and their intervals
    exclude it. Thresholds of operating points are fixed: they were chosen on other images.

    Attributes: patients (in order of the weights).
    """

    def __init__(self, predictions: Predictions, positive: str, points: Sequence[OperatingPoint] = (HALF,)):
        self._truth, self._scores = predictions.truth(positive), predictions.scores(positive)
        patients, self._row_of = np.unique(np.array(predictions.patient_ids), return_inverse=True)
        self.patients: list[str] = patients.tolist()
        self._positive, self._negative = positive, other_name(predictions, positive)
        self._ranking = roc.rank(self._scores, self._truth)
        self._points = points

    def _of_images(self, weights: np.ndarray) -> np.ndarray:
        """Weights of patients [R, P] expanded to images [R, N]."""
        return np.asarray(weights, float)[:, self._row_of]

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        images = self._of_images(weights)
        found = roc.corners(self._ranking, images)
        values = {
            "auroc": roc.area(found),
            f"average_precision/{self._positive}": roc.average_precision(found),
            f"average_precision/{self._negative}": roc.average_precision(roc.reversed_corners(found)),
        }
        for target in TARGETS:
            values[f"sensitivity_at_specificity/{target:g}"] = roc.sensitivity_at_specificity(found, target)
            values[f"specificity_at_sensitivity/{target:g}"] = roc.specificity_at_sensitivity(found, target)
        measures = {
            "brier": calibration.brier,
            "cross_entropy": calibration.cross_entropy,
            "calibration_error": calibration.expected_error,
            "calibration_slope": calibration.slope,
            "calibration_intercept": calibration.intercept,
        }
        values |= {name: measure(self._scores, self._truth, images) for name, measure in measures.items()}
        for index, point in enumerate(self._points):
            right = called(self._scores, self._truth, point.threshold, images)
            values |= {f"at_threshold/{index}/{name}": value for name, value in right.items()}
        return values

    def curve(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Sensitivity on CURVE_GRID, {"sensitivity": [R, G]}, for the band around the curve."""
        found = roc.corners(self._ranking, self._of_images(weights))
        return {"sensitivity": sensitivity_at(found.false_positive_rate, found.sensitivity, CURVE_GRID)}

    def corners(self) -> roc.Corners:
        """The curve of the sample itself, R = 1."""
        return roc.corners(self._ranking, np.ones((1, len(self._truth))))

    def reliability(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Share of the class in each bin of probability, and the weight of the bin; [R, B] each."""
        return calibration.bins(self._scores, self._truth, self._of_images(weights))


def other_name(predictions: Predictions, positive: str) -> str:
    """The name of the negatives: the other of two classes, or "not" the class `positive`."""
    others = [name for name in predictions.classes if name != positive]
    return others[0] if len(others) == 1 else f"not {positive}"


def evaluate_classification(
    predictions: Predictions,
    *,
    positive: str,
    points: Sequence[OperatingPoint] = (HALF,),
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """All metrics of a classifier on one split, ready for JSON.

    predictions: per image. positive: the class indicated by high scores.
    points: thresholds of the operating points, chosen on other images (`thresholds.choose`).
    resamples: of patients, for 95 % percentile intervals; 0 for none.

    A metric is {"value", "low", "high"}, with None if it is not defined; see roc.py, calibration.py and delong.py:
    auroc, auroc_delong (and its "error"), brier, cross_entropy, calibration_error, calibration_slope,
    calibration_intercept; average_precision {class: ..., other class: ...}, each of them as the positive one;
    sensitivity_at_specificity and specificity_at_sensitivity {"0.9": ...}.
    operating_points: [{the fields of `thresholds.OperatingPoint`, and the metrics of `thresholds.called`}]; warning:
    reservations about them, or "".
    Besides: curve {false_positive_rate, sensitivity, band_at, low, high}; reliability [{low, high, images, probability,
    share}]; histogram {edges, counts: {class: [...]}}; counts, notes, and the settings of the evaluation.

    UserError if the predictions do not have the class, or unless there are images of both kinds.
    """
    bootstrap.check(resamples, seed)
    statistic = ClassificationStatistic(predictions, positive, points)
    patients = len(statistic.patients)
    estimates = bootstrap.estimate(statistic, patients, resamples=resamples, seed=seed)
    metrics: dict[str, Any] = {}
    for name, value in estimates.items():
        group, _, key = name.partition("/")
        if group != "at_threshold":
            metrics = metrics | {group: {**metrics.get(group, {}), key: value} if key else value}
    return {
        "positive": positive,
        "negative": other_name(predictions, positive),
        **metrics,
        "auroc_delong": delong(predictions, positive),
        "operating_points": _operating_points(points, estimates),
        "warning": doubt(points),
        "curve": _curve(statistic, resamples, seed),
        "reliability": _reliability(statistic, resamples, seed),
        "histogram": _histogram(predictions, positive),
        "counts": _counts(predictions),
        "bootstrap": {"over": "patients", "resamples": resamples, "seed": seed, "level": bootstrap.LEVEL},
        "notes": _notes(predictions, estimates, resamples, patients),
    }


def compare_classification(
    first: Predictions,
    second: Predictions,
    *,
    positive: str,
    first_points: Sequence[OperatingPoint] = (HALF,),
    second_points: Sequence[OperatingPoint] = (HALF,),
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, dict[str, float | None]]:
    """Paired comparison of two classifiers of the same images: second minus first, per metric, on the same resamples.

    Returns {name: {"first", "second", "difference", "low", "high", "p_value"}} with the names of `evaluate.scalars`
    (`average_precision_malignant`, ...), `auroc_delong` by DeLong's test, and `operating_point_0_accuracy`, ... for the
    operating points; each classifier has its own, in the same order.

    UserError unless both have the same images, patients, labels and classes, and the same number of operating points.
    """
    bootstrap.check(resamples, seed)
    if len(first_points) != len(second_points):
        what = f"the first has {len(first_points)} operating points, the second {len(second_points)}"
        raise UserError(what, where="second_points", todo="choose both by the same rules")
    first, second = aligned([first, second])
    a = ClassificationStatistic(first, positive, first_points)
    b = ClassificationStatistic(second, positive, second_points)
    compared = bootstrap.compare(a, b, len(a.patients), resamples=resamples, seed=seed)
    named = {name.replace("at_threshold", "operating_point").replace("/", "_"): v for name, v in compared.items()}
    return named | {"auroc_delong": compare_delong(first, second, positive)}


def confident_errors(
    predictions: Predictions, positive: str, threshold: float = HALF.threshold, number: int = 12
) -> list[dict[str, Any]]:
    """The `number` images that are farthest on the wrong side of `threshold`, farthest first.

    Each is {"image_id", "label" (its class), "score" (probability of `positive`), "called" ("positive", "negative")}.
    Distance is measured in logits, so that 0.01 and 0.99 are equally far from 0.5.
    """
    own, scores = predictions.position(positive), predictions.scores(positive)
    wrong = np.flatnonzero((scores >= threshold) != (predictions.labels == own))
    far = np.abs(calibration.logits(scores[wrong]) - calibration.logits(np.array(threshold)))
    order = sorted(range(len(wrong)), key=lambda i: (-far[i], predictions.image_ids[wrong[i]]))
    return [
        {
            "image_id": predictions.image_ids[row],
            "label": predictions.classes[predictions.labels[row]],
            "score": float(scores[row]),
            "called": "positive" if scores[row] >= threshold else "negative",
        }
        for row in wrong[order[:number]]
    ]


def _operating_points(
    points: Sequence[OperatingPoint], estimates: Mapping[str, bootstrap.Estimate]
) -> list[dict[str, Any]]:
    found = []
    for index, point in enumerate(points):
        prefix = f"at_threshold/{index}/"
        right = {name.removeprefix(prefix): value for name, value in estimates.items() if name.startswith(prefix)}
        found.append({**asdict(point), **right})
    return found


def _curve(statistic: ClassificationStatistic, resamples: int, seed: int) -> dict[str, list[float | None] | None]:
    """The corners of the curve, and the band on the grid (None without intervals)."""
    found = statistic.corners()
    curve: dict[str, list[float | None] | None] = {
        "false_positive_rate": found.false_positive_rate[0].tolist(),
        "sensitivity": found.sensitivity[0].tolist(),
        **dict.fromkeys(("band_at", "low", "high")),
    }
    band = bootstrap.bands(statistic.curve, len(statistic.patients), resamples=resamples, seed=seed)
    if not band:
        return curve
    low, high = ([bounds[end] for bounds in band["sensitivity"]] for end in ("low", "high"))
    return curve | {"band_at": list(CURVE_GRID), "low": low, "high": high}


def _reliability(statistic: ClassificationStatistic, resamples: int, seed: int) -> list[dict[str, Any]]:
    patients = len(statistic.patients)
    sample = {name: value[0] for name, value in statistic.reliability(np.ones((1, patients))).items()}
    band = bootstrap.bands(statistic.reliability, patients, resamples=resamples, seed=seed)
    none: bootstrap.Estimate = {"low": None, "high": None}
    found = []
    for index in range(calibration.BINS):
        filled = sample["weight"][index] > 0
        share = {"value": float(sample["share"][index]) if filled else None}
        found.append(
            {
                "low": index / calibration.BINS,
                "high": (index + 1) / calibration.BINS,
                "images": int(sample["weight"][index]),
                "probability": float(sample["probability"][index]) if filled else None,
                "share": share | (band["share"][index] if band else none),
            }
        )
    return found


def _histogram(predictions: Predictions, positive: str) -> dict[str, Any]:
    scores, truth = predictions.scores(positive), predictions.truth(positive)
    names = {positive: truth, other_name(predictions, positive): ~truth}
    edges = np.linspace(0.0, 1.0, HISTOGRAM + 1)
    counts = {name: np.histogram(scores[chosen], edges)[0].tolist() for name, chosen in names.items()}
    return {"edges": np.round(edges, 6).tolist(), "counts": counts}


def _counts(predictions: Predictions) -> dict[str, Any]:
    per_class = np.bincount(predictions.labels, minlength=len(predictions.classes))
    return {
        "patients": len(set(predictions.patient_ids)),
        "images": len(predictions),
        "classes": dict(zip(predictions.classes, per_class.tolist())),
    }


def _notes(
    predictions: Predictions, estimates: Mapping[str, bootstrap.Estimate], resamples: int, patients: int
) -> list[str]:
    notes = bootstrap.doubts(resamples, patients, estimates["auroc"])
    if estimates["calibration_slope"]["value"] is None:
        notes.append("the calibration slope is not defined: the scores are all equal, or separate the classes")
    if len(np.unique(predictions.probabilities, axis=0)) == 1:
        notes.append("all images have the same probabilities")
    return notes
