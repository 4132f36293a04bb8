"""Operating points of a classifier: the score from which an image is called positive, and what it is then right about.

A threshold is chosen on predictions of one split, and applied to another.

Shapes: N images, R weightings of the images, J distinct scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np

from elk_jax.errors import UserError
from elk_jax.evaluation import roc
from elk_jax.evaluation.froc import ratio
from elk_jax.evaluation.predictions import Predictions
from elk_jax.fields import SHARE, Checked

Aim = Literal["youden", "accuracy", "f1", "sensitivity", "specificity"]
WITH_TARGET = ("sensitivity", "specificity")


@dataclass(frozen=True)
class Rule(Checked):
    """How a threshold is chosen.

    youden: largest sensitivity + specificity - 1, which is also the best balanced accuracy.
    accuracy, f1: largest. Of equally good thresholds of these three, the lowest is taken, with the most sensitivity.
    sensitivity: the highest threshold with at least the target; specificity: the lowest one with at least the target.
    """

    aim: Aim = "youden"
    target: Annotated[float, SHARE] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.aim in WITH_TARGET) != (self.target is not None):
            what = f"target is {self.target!r} for the aim {self.aim}"
            raise UserError(what, where="target", todo=f"give a target for {' and '.join(WITH_TARGET)} alone")

    @property
    def name(self) -> str:
        """As `rule_from_text` reads it."""
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
class OperatingPoint(Checked):
    """A threshold, the rule that chose it, and the data that it was chosen on; "" for a threshold that is given.

    there: what `called` says of those data, so that a report shows what the threshold promised.
    """

    threshold: float
    rule: str = ""
    chosen_on: str = ""
    there: Mapping[str, float | None] = field(default_factory=dict)


HALF = OperatingPoint(0.5)
"""The more probable of two classes."""


def choose(predictions: Predictions, positive: str, rule: Rule, chosen_on: str = "validation") -> OperatingPoint:
    """The operating point that `rule` chooses on `predictions`, usually of a validation split.

    Its threshold is one of the scores, or the next number above them, where it is best to call no image positive.
    UserError unless there are images of the class `positive` and of others.
    """
    truth, scores = predictions.truth(positive, chosen_on), predictions.scores(positive)
    ranking = roc.rank(scores, truth)
    found = roc.corners(ranking, np.ones((1, len(truth))))
    true, false = found.true[0], found.false[0]
    positives, negatives = true[-1], false[-1]
    goodness = {
        "youden": true / positives - false / negatives,
        "accuracy": true - false,
        "f1": 2 * true / (true + false + positives),
    }
    if rule.aim == "sensitivity":
        corner = int(np.flatnonzero(true >= (rule.target or 0) * positives - roc.EXACT)[0])
    elif rule.aim == "specificity":
        corner = int(np.flatnonzero(false <= (1 - (rule.target or 0)) * negatives + roc.EXACT)[-1])
    else:
        value = goodness[rule.aim]
        corner = int(np.flatnonzero(value >= value.max() - 1e-12)[-1])
    threshold = float(np.nextafter(ranking.scores[0], np.inf) if corner == 0 else ranking.scores[corner - 1])
    there = called(scores, truth, threshold, np.ones((1, len(truth))))
    values = {name: float(value[0]) if np.isfinite(value[0]) else None for name, value in there.items()}
    return OperatingPoint(threshold, rule.name, chosen_on, values)


def called(scores: np.ndarray, truth: np.ndarray, threshold: float, weights: np.ndarray) -> dict[str, np.ndarray]:
    """What is right at a threshold, [R] by name, for weightings [R, N] of the images; NaN where not defined.

    accuracy, balanced_accuracy (mean of sensitivity and specificity), f1, sensitivity, specificity, precision (of the
    images called positive) and negative_predictive_value (of the others). f1 is 0 if no positive image is
    found.
    """
    positive = scores >= threshold
    counts = [
        weights @ chosen for chosen in (positive & truth, positive & ~truth, ~positive & truth, ~positive & ~truth)
    ]
    true, false, missed, rejected = (count.astype(float) for count in counts)
    sensitivity, specificity = ratio(true, true + missed), ratio(rejected, rejected + false)
    return {
        "accuracy": ratio(true + rejected, true + false + missed + rejected),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "f1": np.where(true + missed > 0, ratio(2 * true, 2 * true + false + missed), np.nan),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "precision": ratio(true, true + false),
        "negative_predictive_value": ratio(rejected, rejected + missed),
    }
