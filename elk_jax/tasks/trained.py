"""The patients that a trained model has seen, as its folder names them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from elk_jax import files
from elk_jax.images.schema import ImageInfo
from elk_jax.weights import model_folder as store


def named_patients(infos: Iterable[ImageInfo]) -> set[str]:
    """The patients that images name; one that is called by its image's own number is known in no other file."""
    return {info.patient_id for info in infos if info.patient_id not in (info.image_id, info.meta.get("canvas"))}


def mark(patient_id: str) -> str:
    """What model.json calls a patient: a short hash, by which those who know the patient find it again.

    So may those who try all numbers that a patient could have.
    """
    return hashlib.sha256(patient_id.encode()).hexdigest()[:12]


def patient_marks(model: Path) -> frozenset[str]:
    """The marks of all patients that a model was trained on; none of one that does not say."""
    description = files.read_json(model / store.CONFIG) if (model / store.CONFIG).is_file() else {}
    training = description.get("trained")
    return frozenset(training.get("patients", ()) if isinstance(training, Mapping) else ())


def those_marked(patients: Iterable[str], marks: Collection[str]) -> list[str]:
    """Those of `patients` that are among `marks`."""
    return sorted(patient for patient in patients if mark(patient) in marks)
