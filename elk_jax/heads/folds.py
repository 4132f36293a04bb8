"""Folds for cross-validation that keep the images of a patient together.

Shapes: N images, K folds.
"""

from __future__ import annotations

import numpy as np

from elk_jax.errors import UserError


def grouped(groups: np.ndarray, truth: np.ndarray, count: int, rng: np.random.Generator, where: str = "") -> np.ndarray:
    """The fold [N] of every image, 0 to count - 1. groups: the patient of each image [N], numbered from 0.

    Patients are dealt out in random order, those with an image of the positive class (truth [N]) first, so that every
    fold has about the same number of both. UserError if a fold would leave no image of a class for fitting or scoring.
    """
    patients = np.unique(groups)
    positive = np.isin(patients, groups[truth])
    order = np.concatenate([rng.permutation(patients[kind]) for kind in (positive, ~positive)])
    fold_of = np.empty(int(patients.max()) + 1 if len(patients) else 0, np.int64)
    fold_of[order] = np.arange(len(order)) % count
    folds = fold_of[groups]
    for fold in range(count):
        out = folds == fold
        if any(len(set(truth[part])) < 2 for part in (out, ~out)):
            what = f"{count} folds of {len(patients)} patients: one of them lacks a class"
            raise UserError(what, where=where, todo="use fewer folds, or give more patients")
    return folds
