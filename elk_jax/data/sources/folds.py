"""Patients dealt out to folds, and the resulting sources: each fold validates once while the others train.

Shapes: K folds.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from elk_jax.data.sources import patients
from elk_jax.data.sources.source import ImageSource, concatenate, subset
from elk_jax.data.sources.splits import split_patients
from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo


def deal(infos: Sequence[ImageInfo], count: int, seed: int, where: object = "") -> tuple[frozenset[str], ...]:
    """The patients of each of `count` folds, stratified by class and number of lesions, and drawn by the seed.

    UserError if there are fewer patients than folds.
    """
    kinds: dict[str, np.ndarray] = {}
    classes = 1 + max([-1, *(int(label) for info in infos for label in info.labels)])
    for info in infos:
        found = np.bincount(info.labels[~info.ignore], minlength=classes)
        kinds[info.patient_id] = kinds.get(info.patient_id, np.zeros(classes, int)) + found
    if len(kinds) < count:
        todo = f"use at most {max(0, len(kinds))} folds, or give more patients"
        raise UserError(f"{count} folds of {len(kinds)} patients", where=where, todo=todo)
    # by the patient's classes, then by the number of lesions
    key = lambda patient: (*(kinds[patient] > 0).tolist(), int(kinds[patient].sum()), *kinds[patient].tolist())
    ranks = {kind: rank for rank, kind in enumerate(sorted({key(patient) for patient in kinds}))}
    names = [str(number) for number in range(count)]
    given = split_patients({patient: ranks[key(patient)] for patient in kinds}, dict.fromkeys(names, 1.0), seed)
    return tuple(frozenset(patient for patient, own in given.items() if own == name) for name in names)


def pooled(train: ImageSource, validation: ImageSource) -> ImageSource:
    """Both splits of a data source as one collection, the training split first."""
    both = concatenate([train, validation])
    infos = tuple(replace(info, source=0) for info in both.infos)
    return replace(both, name=train.name, infos=infos, mixed=train.mixed)


def of_patients(source: ImageSource, held_out: Collection[str]) -> ImageSource:
    """The images of these patients."""
    return subset(source, [i for i, info in enumerate(source.infos) if info.patient_id in held_out])


def without_patients(source: ImageSource, held_out: Collection[str]) -> ImageSource:
    """The images of all other patients. In another data source, such as a painted one, patients with the same ID, in
    any spelling, are left out as well."""
    named = patients.named(source.infos)
    keys = {patients.patient_key(patient) for patient in held_out}
    out = {patient for patient in named if patients.patient_key(patient) in keys} | set(held_out)
    return subset(source, [i for i, info in enumerate(source.infos) if info.patient_id not in out])
