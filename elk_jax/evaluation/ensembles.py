"""One set of probabilities from those of several classifiers of the same images.

Private models trained on the same patients spend the sum of their budgets: an ensemble of k of them is as private as k
releases, not as one.

Shapes: K classifiers, N images, Q classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from elk_jax.errors import UserError
from elk_jax.evaluation.calibration import SMALLEST
from elk_jax.evaluation.classification import ClassificationStatistic
from elk_jax.evaluation.predictions import Predictions, aligned
from elk_jax.fields import ABOVE_ZERO, Range, described, fits

Measure = Literal["auroc", "average_precision", "accuracy", "cross_entropy", "brier"]
"""Measures by which classifiers are weighted; for the last two the reciprocal is used, since less is better."""
LESS_IS_BETTER = ("cross_entropy", "brier")


def mean_of_probabilities(sets: Sequence[Predictions], weights: Sequence[float] | None = None) -> Predictions:
    """The mean [N, Q] of the probabilities, weighted by `weights` [K] (of any sum), in the order of the first set.

    UserError unless all sets have the same images, patients, labels and classes, and for impossible weights.
    """
    same, shares = _prepared(sets, weights)
    mean = np.tensordot(shares, np.stack([one.probabilities for one in same]), 1)
    return replace(same[0], probabilities=np.clip(mean, 0.0, 1.0))


def mean_of_logits(sets: Sequence[Predictions], weights: Sequence[float] | None = None) -> Predictions:
    """The softmax of the mean logits: the normalised geometric mean of the probabilities. Arguments as above."""
    same, shares = _prepared(sets, weights)
    logs = np.log(np.maximum(np.stack([one.probabilities for one in same]), SMALLEST))
    mean = np.tensordot(shares, logs, 1)
    powers = np.exp(mean - mean.max(axis=1, keepdims=True))
    return replace(same[0], probabilities=powers / powers.sum(axis=1, keepdims=True))


def weights_by(
    validation: Sequence[Predictions], positive: str, measure: Measure = "auroc", power: float = 1.0
) -> np.ndarray:
    """Weights [K] with sum 1, proportional to a measure on validation images to the power `power`.

    average_precision: of `positive`; accuracy: at the threshold 0.5. UserError unless all sets have the same images, of
    both kinds, and if no classifier has a measure above 0.
    """
    if not fits(measure, Measure):
        raise UserError(f"measure is {measure!r}", where="measure", todo=f"give {described(Measure)}")
    if not ABOVE_ZERO.takes(power):
        raise UserError(f"power is {power!r}", where="power", todo=f"give a number {ABOVE_ZERO}")
    keys = {"average_precision": f"average_precision/{positive}", "accuracy": "at_threshold/0/accuracy"}
    statistics = [ClassificationStatistic(one, positive) for one in aligned(validation)]
    values = np.array([s(np.ones((1, len(s.patients))))[keys.get(measure, measure)][0] for s in statistics])
    if measure in LESS_IS_BETTER:
        values = 1 / np.maximum(values, SMALLEST)
    if not values.max() > 0:
        raise UserError(f"no classifier has a {measure} above 0", where="validation", todo="weight them equally")
    powers = (values / values.max()) ** power
    return powers / powers.sum()


def _prepared(sets: Sequence[Predictions], weights: Sequence[float] | None) -> tuple[list[Predictions], np.ndarray]:
    """The aligned sets, and their weights [K] with sum 1."""
    same = aligned(sets)
    given = [1.0] * len(same) if weights is None else list(weights)
    if len(given) != len(same):
        what = f"{len(given)} weights for {len(same)} classifiers"
        raise UserError(what, where="weights", todo="give one per classifier")
    if not all(Range(0).takes(weight) for weight in given) or not sum(given) > 0:
        todo = "give numbers >= 0, at least one of them above 0"
        raise UserError(f"the weights are {', '.join(f'{weight}' for weight in given)}", where="weights", todo=todo)
    return same, np.array(given, float) / sum(given)
