"""Operating points of a classifier: the score from which an image is called positive, and the resulting performance.

A threshold is chosen on the predictions of one split and applied to another.

Shapes: N images, P patients, R weightings of them, J distinct scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np

from elk_jax.errors import UserError
from elk_jax.evaluation import bootstrap, roc
from elk_jax.evaluation.froc import ratio
from elk_jax.evaluation.predictions import Predictions
from elk_jax.evaluation.roc import Corners
from elk_jax.fields import SHARE, AtLeast, Checked

Aim = Literal["youden", "accuracy", "f1", "sensitivity", "specificity"]
WITH_TARGET = ("sensitivity", "specificity")


@dataclass(frozen=True)
class Rule(Checked):
    """How a threshold is chosen.

    youden: largest sensitivity + specificity - 1, which is also the best balanced accuracy.
    accuracy, f1: largest. For these three, the lowest of equally good thresholds is taken, the most sensitive one.
    sensitivity: the highest threshold with at least the target; specificity: the lowest one with at least the target.
    """

    aim: Aim = "youden"
    target: Annotated[float, SHARE] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.aim in WITH_TARGET) != (self.target is not None):
            what = f"target is {self.target!r} for the aim {self.aim}"
            raise UserError(what, where="target", todo=f"give a target only for {' and '.join(WITH_TARGET)}")

    @property
    def name(self) -> str:
        """The rule in the form read by `rule_from_text`."""
        return self.aim if self.target is None else f"{self.aim}:{self.target:g}"


def rule_from_text(text: str) -> Rule:
    """`youden`, `accuracy`, `f1`, `sensitivity:0.9` or `specificity:0.9` -> a rule."""
    aim, _, target = text.partition(":")
    try:
        return Rule(aim, float(target) if target else None)  # type: ignore[arg-type]
    except (ValueError, UserError) as error:
        todo = "use youden, accuracy, f1, sensitivity:0.9 or specificity:0.9"
        raise UserError(f"unknown rule {text!r}", where="rule", todo=todo) from error


@dataclass(frozen=True)
class ChosenOn:
    """Numbers of images and patients on which a threshold was chosen; a patient may have images of both kinds."""

    positives: Annotated[int, AtLeast(0)] = 0
    negatives: Annotated[int, AtLeast(0)] = 0
    patients_of_positives: Annotated[int, AtLeast(0)] = 0
    patients_of_negatives: Annotated[int, AtLeast(0)] = 0

    def patients_for(self, measure: str) -> int:
        """The number of patients behind a measure of `called`: those of one kind, or of the rarer kind."""
        kinds = {"sensitivity": self.patients_of_positives, "specificity": self.patients_of_negatives}
        return kinds.get(measure, min(kinds.values()))

    @property
    def counted(self) -> str:
        """The counts in words."""
        return (
            f"{self.positives} positive images of {self.patients_of_positives} patients, {self.negatives} negative "
            f"ones of {self.patients_of_negatives}"
        )


@dataclass(frozen=True)
class OperatingPoint(Checked):
    """A threshold, the rule that chose it, and the data on which it was chosen; "" for a given threshold.

    there: the results of `called` on that data, which are too good, since the threshold was optimised there.
    low, high: 95 % interval of the threshold over patients; None if patients were not resampled.
    intervals: what to expect on other patients, {"value", "low", "high"} for each of `there`, accounting for the choice
    (`bootstrap.on_others`); {} if patients were not resampled. In some earlier folders they have no "value", and are
    for a fixed threshold.
    on: the images; None for a given threshold, and in folders of earlier versions.
    """

    threshold: float
    rule: str = ""
    chosen_on: str = ""
    there: Mapping[str, float | None] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    intervals: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    on: ChosenOn | None = None


HALF = OperatingPoint(0.5)
"""The threshold that selects the more probable of two classes."""


def by_rules(
    predictions: Predictions, positive: str, rules: Sequence[str], chosen_on: str = "validation"
) -> tuple[OperatingPoint, ...]:
    """`choose` for each of several rules, given as text."""
    return tuple(choose(predictions, positive, rule_from_text(rule), chosen_on) for rule in rules)


def choose(
    predictions: Predictions,
    positive: str,
    rule: Rule,
    chosen_on: str = "validation",
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> OperatingPoint:
    """The operating point that `rule` chooses on `predictions`, usually of a validation split.

    Its threshold is one of the scores, or the next number above them if it is best to call no image positive.
    resamples: of patients, for the intervals; 0 for none.
    UserError unless there are images of the class `positive` and of others.
    """
    truth, scores = predictions.truth(positive, chosen_on), predictions.scores(positive)
    patients, row_of = np.unique(np.array(predictions.patient_ids), return_inverse=True)
    ranking = roc.rank(scores, truth)
    levels = np.append(np.nextafter(ranking.scores[0], np.inf), ranking.scores)
    whole = roc.corners(ranking, np.ones((1, len(truth))))
    corner = chosen_corner(whole, rule)
    values = {name: _number(value[0]) for name, value in at_corner(whole, corner).items()}
    on = ChosenOn(
        positives=int(truth.sum()),
        negatives=int((~truth).sum()),
        patients_of_positives=len(set(row_of[truth])),
        patients_of_negatives=len(set(row_of[~truth])),
    )

    def chosen_again(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = roc.corners(ranking, np.asarray(weights, float)[:, row_of])
        again, defined = chosen_corner(found, rule), (found.positives * found.negatives)[:, 0] > 0
        there = {f"there/{name}": value for name, value in at_corner(found, again).items()}
        transferred = {f"transferred/{name}": value for name, value in at_corner(whole, again).items()}
        drawn = there | transferred | {"threshold": levels[again]}
        return {name: np.where(defined, value, np.nan) for name, value in drawn.items()}

    threshold, weights = float(levels[corner[0]]), bootstrap.weights_of(len(patients), resamples, seed)
    draws = bootstrap.evaluate(chosen_again, weights) if len(weights) else {}

    def expected(name: str, value: float | None) -> bootstrap.Estimate:
        there, transferred = draws[f"there/{name}"], draws[f"transferred/{name}"]
        return bootstrap.on_others(value, there, transferred, on.patients_for(name))

    return OperatingPoint(
        threshold,
        rule.name,
        chosen_on,
        values,
        **bootstrap.interval(draws.get("threshold"), threshold),
        intervals={name: expected(name, value) for name, value in values.items()} if draws else {},
        on=on,
    )


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def chosen_corner(found: Corners, rule: Rule) -> np.ndarray:
    """The corner [R] that a rule chooses in each weighting: 0 calls no image positive, j those with the j highest
    scores.

    Of corners with the same images (a weighting may leave some out) the first is taken: its score was drawn. If no
    image is called positive, the last: the threshold is directly above the scores that were drawn.
    """
    true, false, total = found.true, found.false, found.true + found.false
    if rule.aim == "sensitivity":
        good = true >= (rule.target or 0) * found.positives - roc.EXACT
        last = good.argmax(1)
    else:
        if rule.aim == "specificity":
            good = false <= (1 - (rule.target or 0)) * found.negatives + roc.EXACT
        else:
            value = {
                "youden": ratio(true, found.positives) - ratio(false, found.negatives),
                "accuracy": true - false,
                "f1": ratio(2 * true, true + false + found.positives),
            }[rule.aim]
            good = value >= value.max(1, keepdims=True) - 1e-12
        last = good.shape[1] - 1 - good[:, ::-1].argmax(1)
    chosen = np.take_along_axis(total, last[:, None], 1)
    alike = np.abs(total - chosen) <= roc.EXACT
    return np.where(chosen[:, 0] > roc.EXACT, alike.argmax(1), alike.shape[1] - 1 - alike[:, ::-1].argmax(1))


def doubt(points: Sequence[OperatingPoint]) -> str:
    """Reservations about thresholds chosen on the same images, in sentences; "" if there are none."""
    ruled = [point for point in points if point.rule]
    if not ruled:
        return ""
    first = ruled[0]
    few = _too_few(first, first.on) if first.on else "The number of patients behind the thresholds is unknown."
    return " ".join(filter(None, (few, *map(_at_an_end, ruled))))


def _too_few(point: OperatingPoint, on: ChosenOn) -> str:
    if min(on.patients_of_positives, on.patients_of_negatives) < bootstrap.LEAST_PATIENTS:
        return (
            f"The thresholds were chosen on few patients ({point.chosen_on}: {on.counted}): with fewer than "
            f"{bootstrap.LEAST_PATIENTS} of one kind, sensitivity and specificity on other patients are very uncertain."
        )
    if point.low is None:
        what = "Sensitivity and specificity on other patients are unknown"
        return f"{what}: patients were not resampled ({point.chosen_on}: {on.counted})."
    return ""


def _at_an_end(point: OperatingPoint) -> str:
    """A sentence about a threshold that separates nothing, or everything."""
    both = point.there.get("sensitivity"), point.there.get("specificity")
    if both == (1.0, 0.0):
        return (
            f"With {point.rule} every image is called positive: its threshold is the lowest score on {point.chosen_on}."
        )
    if both == (0.0, 1.0):
        return f"With {point.rule} no image is called positive: its threshold is above all scores on {point.chosen_on}."
    if both == (1.0, 1.0):
        return f"With {point.rule} no image is wrong on {point.chosen_on}, so there is no interval for others."
    return ""


def in_words(points: Sequence[OperatingPoint]) -> str:
    """Rules with their thresholds and intervals: "youden 0.412 (0.300 to 0.550), ..."."""
    bounds = lambda one: "" if one.low is None else f" ({one.low:.3f} to {one.high:.3f})"
    return ", ".join(f"{one.rule} {one.threshold:.3f}{bounds(one)}" for one in points)


def called(scores: np.ndarray, truth: np.ndarray, threshold: float, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Performance at a threshold, [R] by name, for weightings [R, N] of the images; NaN if undefined.

    accuracy, balanced_accuracy (mean of sensitivity and specificity), f1, sensitivity, specificity, precision (of the
    images called positive) and negative_predictive_value (of the others). f1 is 0 if no positive image is found.
    """
    positive = scores >= threshold
    true, false = (weights @ (positive & kind) for kind in (truth, ~truth))
    return _measures(true, false, weights @ truth, weights @ ~truth)


def at_corner(found: Corners, corner: np.ndarray) -> dict[str, np.ndarray]:
    """Like `called`, at a corner [R] of each weighting, or at several corners of one weighting."""
    rows = np.arange(len(corner)) if len(found.true) == len(corner) else 0
    kinds = found.positives[:, 0], found.negatives[:, 0]
    return _measures(found.true[rows, corner], found.false[rows, corner], *kinds)


def _measures(
    true: np.ndarray, false: np.ndarray, positives: np.ndarray, negatives: np.ndarray
) -> dict[str, np.ndarray]:
    """`called` from the weights of images: correctly and wrongly called positive, and the totals of both kinds."""
    true, false, positives, negatives = (np.asarray(count, float) for count in (true, false, positives, negatives))
    missed, rejected = positives - true, negatives - false
    sensitivity, specificity = ratio(true, positives), ratio(rejected, negatives)
    return {
        "accuracy": ratio(true + rejected, positives + negatives),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "f1": np.where(positives > 0, ratio(2 * true, true + false + positives), np.nan),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "precision": ratio(true, true + false),
        "negative_predictive_value": ratio(rejected, rejected + missed),
    }
