"""Identity of patients, however tables spell their IDs, and the patients that a model has seen.

A model folder stores hashes rather than the IDs of patients. Hashing does not protect IDs that can be enumerated:
trying all possible IDs reveals the patients.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from elk_jax.errors import UserError
from elk_jax.images.names import checked_text, look
from elk_jax.images.schema import ImageInfo

_BETWEEN, _ZEROS = re.compile(r"(?<!\d)[-_]+|[-_]+(?!\d)"), re.compile(r"(?<![\d.])0+(?=\d)")
"""Dashes, except between two numbers, and leading zeros of a number."""
_NUMBER = re.compile(r"(?:p|pt|pat|patient|id)?[._-]*0*([0-9]+)(?:\.0+)?")
"""A patient's number in the usual spellings: 3, 3.0, 003, P3, P_003."""


def unnamed(image_id: str, volume: str, file_name: str = "", frame: object = None) -> str:
    """The patient of an image without patient ID: its volume, the file that it is a frame of, or the image itself."""
    return volume or (image_id if frame is None else file_name)


def named(infos: Iterable[ImageInfo]) -> set[str]:
    """The patients with an ID in the data. Those from `unnamed` are unknown to other files."""
    own = lambda info: (info.image_id, info.volume, info.file_name, info.meta.get("canvas"))
    return {info.patient_id for info in infos if info.patient_id not in own(info)}


def halving_doubt(infos: Sequence[ImageInfo]) -> str:
    """A reservation about halves of real images by patient, if some name no patient; "" if all do."""
    known = named(infos)
    count = sum(info.patient_id not in known for info in infos)
    if not count:
        return ""
    return (
        f"{count} of {len(infos)} real images name no patient: images of one patient may then be in both halves, and "
        "real images seem nearer to each other than they are"
    )


def from_file_names(infos: Sequence[ImageInfo], pattern: str, where: object = "") -> tuple[ImageInfo, ...]:
    """The same images, with the only group of `pattern` in their file names as patients.

    UserError for the first image whose file name does not match.
    """
    found = []
    for info in infos:
        match = re.search(pattern, Path(info.file_name).name)
        patient = checked_text(match[1], "a patient", where) if match else ""
        if not patient:
            what = f"the pattern {pattern} finds no patient in the file name {Path(info.file_name).name}"
            raise UserError(what, where=f"{where}, image {info.image_id}", todo="correct patient_pattern, or the name")
        found.append(replace(info, patient_id=patient))
    return tuple(found)


def patient_key(patient_id: str) -> str:
    """The ID without the parts that differ between tables: case, blanks, dashes, leading zeros, and the P and ".0"
    around an ID that is only a number.

    Two IDs with the same key are not known to be one patient, but are too similar to be distinguished.
    """
    text = look(patient_id)
    number = _NUMBER.fullmatch(text)
    return number[1] if number else _ZEROS.sub("", _BETWEEN.sub("", text))


def patient_hash(patient_id: str) -> str:
    """A short hash of a patient's ID."""
    return hashlib.sha256(patient_id.encode()).hexdigest()[:12]


def among(patients: Iterable[str], hashes: Collection[str]) -> list[str]:
    """Those of `patients` whose hashes are in `hashes`, in order, even if the hashed ID was spelled differently."""
    hashes = frozenset(hashes)
    return sorted(p for p in patients if not hashes.isdisjoint(map(patient_hash, _spellings(p)))) if hashes else []


def _spellings(patient_id: str) -> set[str]:
    """Usual spellings of an ID: those with the same key."""
    key = patient_key(patient_id)
    found = {patient_id, key, key.upper()}
    if key.isdecimal():
        numbers = {f"{key:0>{digits}}{end}" for digits in range(1, 7) for end in ("", ".0")}
        found |= {prefix + number for prefix in ("", "P", "p") for number in numbers}
    return found
