"""Which patients a model has seen: by hashes, so that a model folder does not name them.

Hashing does not protect IDs that can be enumerated: trying all possible IDs finds the patients.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable

from elk_jax.images.schema import ImageInfo


def named(infos: Iterable[ImageInfo]) -> set[str]:
    """The patients that images name. One that is called by its image's own number is unknown to other files."""
    return {info.patient_id for info in infos if info.patient_id not in (info.image_id, info.meta.get("canvas"))}


def patient_hash(patient_id: str) -> str:
    """A short hash of a patient's ID."""
    return hashlib.sha256(patient_id.encode()).hexdigest()[:12]


def among(patients: Iterable[str], hashes: Collection[str]) -> list[str]:
    """Those of `patients` whose hashes are in `hashes`, in order."""
    return sorted(patient for patient in patients if patient_hash(patient) in hashes)
