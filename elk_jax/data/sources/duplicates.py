"""Duplicate images in a collection, found by their decoded pixels, whatever the names of files and patients.

With a copy in another split, a model is evaluated on its training data, even if the patient has another ID there.
Copies with different classes cannot all be right. Only exact copies are found, not cropped, scaled, mirrored or
recompressed ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from elk_jax.data.sources.patients import patient_key
from elk_jax.data.sources.source import ImageSource
from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo
from elk_jax.threads import ProgressBar, map_in_threads, no_bar

Group = tuple[int, ...]
"""Positions of images with the same pixels, ascending; at least two."""


@dataclass(frozen=True)
class Duplicates:
    """Result of `find`: every group of copies, and those that indicate an error."""

    groups: tuple[Group, ...]
    contradicting: tuple[Group, ...]  # of different classes
    in_two_splits: tuple[Group, ...]
    of_two_patients: tuple[Group, ...]  # whose IDs cannot be spellings of one ID


def pixel_hash(image: np.ndarray) -> str:
    """Hash of an image [H, W, 1] in [0, 1]: 32 hex digits, the same for files of 8 and 16 bits."""
    grey = np.round(image * 65535.0).astype("<u2")
    return hashlib.sha256(f"{image.shape} ".encode() + grey.tobytes()).hexdigest()[:32]


def pixel_hashes(source: ImageSource, progress: ProgressBar = no_bar) -> list[str]:
    """The hash of every image of a source; decodes all. UserError for an image that cannot be read."""
    return map_in_threads(lambda position: pixel_hash(source[position].image), len(source), progress)


def check_apart(first: Sequence[tuple[str, str]], second: Sequence[tuple[str, str]], where: object) -> None:
    """UserError if an image is in both of two compared sets: the distance would measure the copies.

    first, second: (hash, title) of every image. where: of the second set.
    """
    seen = dict(first)
    shared = [(seen[key], title) for key, title in second if key in seen]
    if shared:
        many = "1 image is" if len(shared) == 1 else f"{len(shared)} images are"
        what = f"{many} in both sets, for example {shared[0][1]} as {shared[0][0]}"
        raise UserError(what, where=where, todo="compare sets that share no image")


def find(infos: Sequence[ImageInfo], hashes: Sequence[str], classes: Sequence[str]) -> Duplicates:
    """Images with equal `hashes`, and which of these groups differ in class (`classes`: one per image), split or
    patient.

    Images without a split do not count for the comparison of splits. Groups are in the order of their first images.
    """
    by_hash: dict[str, list[int]] = {}
    for position, (_, key, _) in enumerate(zip(infos, hashes, classes, strict=True)):
        by_hash.setdefault(key, []).append(position)
    groups = tuple(tuple(members) for members in by_hash.values() if len(members) > 1)
    splits = [info.split for info in infos]
    patients = [patient_key(info.patient_id) for info in infos]

    def differing(names: Sequence[str]) -> tuple[Group, ...]:
        return tuple(group for group in groups if len({names[i] for i in group} - {""}) > 1)

    return Duplicates(groups, differing(classes), differing(splits), differing(patients))


def notes(found: Duplicates, infos: Sequence[ImageInfo], classes: Sequence[str]) -> list[str]:
    """What to report before training: one line for each kind of copies, with an example; [] without copies."""

    def line(groups: Sequence[Group], what: str, value: Callable[[int], str]) -> list[str]:
        if not groups:
            return []
        first = groups[0]
        other = next((i for i in first[1:] if value(i) != value(first[0])), first[1])
        pair = " and ".join(f"{infos[i].image_id} ({value(i)})" for i in (first[0], other))
        return [f"{sum(map(len, groups))} images are copies of each other {what}, for example {pair}"]

    lines = line(found.contradicting, "with different classes", lambda i: classes[i])
    lines += line(found.in_two_splits, "in different splits", lambda i: infos[i].split or "no split")
    lines += line(found.of_two_patients, "of different patients", lambda i: infos[i].patient_id)
    faults = {*found.contradicting, *found.in_two_splits, *found.of_two_patients}
    harmless = [group for group in found.groups if group not in faults]
    return lines + line(harmless, "of one class, split and patient", lambda i: infos[i].patient_id)
