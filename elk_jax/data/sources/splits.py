"""Splits by patient: all images of a patient are in one split; lesion counts are distributed alike in every split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from elk_jax.errors import UserError
from elk_jax.images.names import look
from elk_jax.images.schema import ImageInfo
from elk_jax.randomness import Purpose, random_order

SPLITS = ("train", "val", "test")
UNUSED = "unused"
"""A split for images that are left out on purpose."""


def meant(name: str) -> str:
    """The one of SPLITS that a name differs from by a slip of the pen; "" if there is none.

    A slip is another case, two letters exchanged (tarin), one too many or too few within (tesst, tran), or a wrong one
    (tesr). Names that contain a split (test2, valid, eval), that begin with another letter (rest) or that are only
    three letters with a wrong one (vae) may be meant as they are.
    """
    text = look(name)
    return next((split for split in SPLITS if text == split or (split not in text and _is_slip(text, split))), "")


def _is_slip(text: str, split: str) -> bool:
    head = _same(text, split)
    tail = _same(text[head:][::-1], split[head:][::-1])
    own, its = text[head : len(text) - tail], split[head : len(split) - tail]
    if len(own) == 2 and own == its[::-1]:
        return True
    return head > 0 and len(text) > 2 and len(own) <= 1 and len(its) <= 1 and (len(own) != len(its) or len(split) > 3)


def _same(one: str, other: str) -> int:
    """Letters that two texts have in common at their beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def draw_splits(infos: Sequence[ImageInfo], shares: Sequence[float], where: object = "") -> tuple[ImageInfo, ...]:
    """The same images with splits drawn for their patients; see `split_patients`.

    shares: of SPLITS, in this order, above 0. Splits are drawn over all images with their own seed, so neither later
    filters nor the seed of a training run move a patient. UserError if any image already has a split.
    """
    splits = {info.split for info in infos}
    if len(splits) > 1:
        todo = "leave split_shares out, or the field `split`"
        named, some = ", ".join(sorted(splits - {""})), "some of " if "" in splits else ""
        raise UserError(f"{some}the images already have splits: {named}", where=where, todo=todo)
    lesions: Counter[str] = Counter()
    for info in infos:
        lesions[info.patient_id] += int((~info.ignore).sum())
    drawn = split_patients(lesions, dict(zip(SPLITS, shares)))
    return tuple(replace(info, split=drawn[info.patient_id]) for info in infos)


def split_patients(lesions: Mapping[str, int], shares: Mapping[str, float], seed: int = 42) -> dict[str, str]:
    """Assign every patient to a split, stratified by the patient's number of lesions.

    lesions: patient id -> number of lesions. shares: split name -> share (any positive numbers; {"train": 80,
    "val": 19, "test": 32} gives exactly these sizes for 131 patients). Patients are ordered by lesion count, with ties
    shuffled by `seed`, and each goes to the split that lags furthest behind its share. The result depends only on the
    set of patients and the seed, not on the order of `lesions`. UserError if a split would be empty.
    """
    names = list(shares)
    share = np.array([shares[name] for name in names], float)
    patients = sorted(lesions)
    if len(patients) < len(names):
        todo = "add patients or use fewer splits"
        raise UserError(f"{len(patients)} patients cannot fill {len(names)} splits", todo=todo)
    sizes = largest_remainder(share, len(patients), at_least=1)
    shuffled = random_order(len(patients), seed, Purpose.PATIENTS)
    order = sorted(range(len(patients)), key=lambda i: (lesions[patients[i]], shuffled[i]))
    given = np.zeros(len(names))
    result = {}
    for rank, index in enumerate(order, start=1):
        lag = sizes / len(patients) * rank - given
        chosen = int(np.argmax(np.where(given < sizes, lag, -np.inf)))
        given[chosen] += 1
        result[patients[index]] = names[chosen]
    return result


def largest_remainder(shares: np.ndarray, total: int, at_least: int = 0) -> np.ndarray:
    """Whole numbers approximately proportional to `shares`, with sum `total`, none below `at_least`."""
    exact = shares / shares.sum() * total
    counts = np.maximum(np.floor(exact), at_least).astype(int)
    while counts.sum() < total:
        counts[np.argmax(exact - counts)] += 1
    while counts.sum() > total:
        counts[np.argmax(np.where(counts > at_least, counts - exact, -np.inf))] -= 1
    return counts
