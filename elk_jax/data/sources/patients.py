"""Who a patient is, however tables write the ID, and which patients a model has seen.

A model folder keeps hashes, so that it does not name patients. Hashing does not protect IDs that can be enumerated:
trying all possible IDs finds the patients.
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
"""Dashes that part no two numbers, and zeros before a number."""
_NUMBER = re.compile(r"(?:p|pt|pat|patient|id)?[._-]*0*([0-9]+)(?:\.0+)?")
"""A patient's number as programs write it: 3, 3.0, 003, P3, P_003."""


def unnamed(image_id: str, volume: str, file_name: str = "", frame: object = None) -> str:
    """The patient of an image that names none: its volume, or the file that it is a frame of, or the image itself."""
    return volume or (image_id if frame is None else file_name)


def named(infos: Iterable[ImageInfo]) -> set[str]:
    """The patients that images name. One of `unnamed` is unknown to other files."""
    own = lambda info: (info.image_id, info.volume, info.file_name, info.meta.get("canvas"))
    return {info.patient_id for info in infos if info.patient_id not in own(info)}


def from_file_names(infos: Sequence[ImageInfo], pattern: str, where: object = "") -> tuple[ImageInfo, ...]:
    """The same images, their patients being the one group of `pattern` in the names of their files.

    UserError that names the first image whose file name has no such part.
    """
    found = []
    for info in infos:
        match = re.search(pattern, Path(info.file_name).name)
        patient = checked_text(match[1], "a patient", where) if match else ""
        if not patient:
            what = f"the file name {Path(info.file_name).name} names no patient by the pattern {pattern}"
            raise UserError(what, where=f"{where}, image {info.image_id}", todo="correct patient_pattern, or the name")
        found.append(replace(info, patient_id=patient))
    return tuple(found)


def patient_key(patient_id: str) -> str:
    """The ID without what differs when tables write it: case, blanks, dashes, zeros before a number, and the P and ".0"
    around a number alone.

    Two IDs with one key are not known to be one patient, but too alike to be told apart.
    """
    text = look(patient_id)
    number = _NUMBER.fullmatch(text)
    return number[1] if number else _ZEROS.sub("", _BETWEEN.sub("", text))


def patient_hash(patient_id: str) -> str:
    """A short hash of a patient's ID."""
    return hashlib.sha256(patient_id.encode()).hexdigest()[:12]


def among(patients: Iterable[str], hashes: Collection[str]) -> list[str]:
    """Those of `patients` whose hashes are in `hashes`, in order; also where the hashed ID was written otherwise."""
    hashes = frozenset(hashes)
    return sorted(p for p in patients if not hashes.isdisjoint(map(patient_hash, _spellings(p)))) if hashes else []


def _spellings(patient_id: str) -> set[str]:
    """Usual ways to write an ID: those with its key."""
    key = patient_key(patient_id)
    found = {patient_id, key, key.upper()}
    if key.isdecimal():
        numbers = {f"{key:0>{digits}}{end}" for digits in range(1, 7) for end in ("", ".0")}
        found |= {prefix + number for prefix in ("", "P", "p") for number in numbers}
    return found
