"""Split the patients of CDD-CESM into train, val and test, reproducing the published split.

The published split of 131 patients (80 / 19 / 32) is a stratified group K-fold with seed 42. The first of 4 folds is
the test split. The rest is split into 5 folds; the first fold with more than 10 % of all patients is the validation
split. The training patients are split into 3 folds; the first is the few-shot subset. The class of a box is the number
of lesions of its patient. In the release that was used, the shuffle separated the patients from their lesion counts, so
the split is in fact random with respect to the number of lesions; `stratified_split` implements the intention.
`published_split` reproduces the published sizes exactly.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from elk_jax.data.sources.splits import split_patients

PUBLISHED_SHARES = {"train": 80, "val": 19, "test": 32}


def published_split(lesions: Mapping[str, int], seed: int = 42) -> tuple[dict[str, str], frozenset[str]]:
    """Patient id -> split, and the few-shot training patients. lesions: patient id -> number of boxes > 0."""
    everyone = dict(lesions)
    fold_of = group_folds(everyone, 4, seed)
    test = {patient for patient, fold in fold_of.items() if fold == 0}
    rest = {patient: count for patient, count in everyone.items() if patient not in test}
    fold_of = group_folds(rest, 5, seed)
    folds = [{patient for patient, fold in fold_of.items() if fold == number} for number in range(5)]
    val = next((fold for fold in folds if len(fold) > 0.1 * len(everyone)), folds[-1])
    train = {patient: count for patient, count in rest.items() if patient not in val}
    few = frozenset(patient for patient, fold in group_folds(train, 3, seed).items() if fold == 0)
    names = dict.fromkeys(train, "train") | dict.fromkeys(val, "val") | dict.fromkeys(test, "test")
    return {patient: names[patient] for patient in everyone}, few


def stratified_split(lesions: Mapping[str, int], seed: int = 42) -> tuple[dict[str, str], frozenset[str]]:
    """The same sizes, with patients balanced by their number of lesions (`splits.split_patients`)."""
    split = split_patients(lesions, PUBLISHED_SHARES, seed)
    train = {patient: lesions[patient] for patient, name in split.items() if name == "train"}
    few = split_patients(train, {"few": 26, "more": 54}, seed) if len(train) > 1 else {}
    return split, frozenset(patient for patient, name in few.items() if name == "few")


def extended_split(split: Mapping[str, str], others: Mapping[str, int], seed: int = 42) -> dict[str, str]:
    """`split` plus the patients of `others` (id -> regions) in the same proportions.

    The same split is used for every filter and modality, so a model pretrained on low-energy images has not seen the
    test patients of the subtracted images.
    """
    rest = {patient: count for patient, count in others.items() if patient not in split}
    return dict(split) | (
        split_patients(rest, PUBLISHED_SHARES, seed) if len(rest) >= 3 else dict.fromkeys(rest, "train")
    )


def group_folds(lesions: Mapping[str, int], folds: int, seed: int) -> dict[str, int]:
    """Patient id -> fold: greedy stratified grouping, with shuffled counts (see above).

    Groups are assigned from the most to the least uneven class histogram, each to the fold that minimises the standard
    deviation over folds of the class shares, averaged over classes; of equal folds, to the smaller. Source:
    StratifiedGroupKFold of scikit-learn, as in its user guide.
    """
    patients = sorted(
        lesions, key=lambda patient: (len(patient), patient) if patient.isdecimal() else (1 << 30, patient)
    )
    counts = np.array([lesions[patient] for patient in patients])
    classes, class_of = np.unique(counts, return_inverse=True)
    histogram = np.zeros((len(patients), len(classes)))
    histogram[np.arange(len(patients)), class_of] = counts
    totals = histogram.sum(0)
    np.random.RandomState(seed).shuffle(histogram)  # only rows, which separates them from their patients
    filled = np.zeros((folds, len(classes)))
    fold_of = {}
    for index in np.argsort(-histogram.std(axis=1), kind="stable"):
        best, best_spread, best_size = 0, np.inf, np.inf
        for fold in range(folds):
            size = filled[fold].sum() + histogram[index].sum()
            candidate = filled.copy()
            candidate[fold] += histogram[index]
            spread = float((candidate / totals).std(axis=0).mean())
            if spread < best_spread or (np.isclose(spread, best_spread) and size < best_size):
                best, best_spread, best_size = fold, spread, size
        filled[best] += histogram[index]
        fold_of[patients[index]] = best
    return fold_of
