"""One set of probabilities from those of several classifiers of the same images.

Private models trained on the same patients spend the sum of their budgets: an ensemble of k of them is as private as k
releases, not as one.

Shapes: K classifiers, N images, Q classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from elk_jax.evaluation.calibration import SMALLEST
from elk_jax.evaluation.predictions import Predictions, aligned


def mean_of_probabilities(sets: Sequence[Predictions]) -> Predictions:
    """The mean [N, Q] of the probabilities, in the order of the first set.

    UserError unless all sets have the same images, patients, labels and classes.
    """
    same = aligned(sets)
    mean = _mean(np.stack([one.probabilities for one in same]))
    return replace(same[0], probabilities=np.clip(mean, 0.0, 1.0))


def mean_of_logits(sets: Sequence[Predictions]) -> Predictions:
    """The softmax of the mean logits: the normalised geometric mean of the probabilities. UserError as above."""
    same = aligned(sets)
    mean = _mean(np.log(np.maximum(np.stack([one.probabilities for one in same]), SMALLEST)))
    powers = np.exp(mean - mean.max(axis=1, keepdims=True))
    return replace(same[0], probabilities=powers / powers.sum(axis=1, keepdims=True))


def _mean(values: np.ndarray) -> np.ndarray:
    """[K, N, Q] -> [N, Q]."""
    return np.tensordot(np.full(len(values), 1 / len(values)), values, 1)
