"""Pairs of unrelated images, as a control: every image gets the partner of another patient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from elk_jax.data.sources.patients import named, patient_key
from elk_jax.data.sources.source import ImageSource, Read, read_at
from elk_jax.data.transforms import resized_pixels
from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo
from elk_jax.randomness import Purpose, random_order


def shuffle_partners(pairs: ImageSource, seed: int = 0, where: str = "") -> ImageSource:
    """The pairs with exchanged partners: each is used once, with an image of another patient and in its size, and with
    the same side and view if the images have them and enough patients do.

    where: the setting, for the UserError if images have no patient ID, or if one patient has more than half of the
    images, so that no such exchange exists.
    """
    assert pairs.partner is not None
    others = partial(read_at, pairs.partner, _of_another_patient(pairs.infos, seed, where or pairs.name))
    return replace(pairs, partner=partial(_read_in_size, others, pairs.infos))


def _of_another_patient(infos: Sequence[ImageInfo], seed: int, where: str) -> tuple[int, ...]:
    """For each image the position of an image of another patient; every position occurs once."""
    if unnamed := [info for info in infos if not named([info])]:
        raise UserError(
            f"image {unnamed[0].image_id} has no patient ID, so its partner might come from the same patient",
            where=where,
            todo="identify the patients: patient_id of the images, or patient_pattern",
        )
    alike: dict[tuple[str, str], list[int]] = {}
    for position, info in enumerate(infos):
        alike.setdefault((str(info.meta.get("laterality")), str(info.meta.get("view"))), []).append(position)
    patient = lambda position: patient_key(infos[position].patient_id)
    can_exchange = lambda positions: 2 * _largest(map(patient, positions))[1] <= len(positions)
    groups = [group for group in alike.values() if can_exchange(group)]
    rest = [position for group in alike.values() if not can_exchange(group) for position in group]
    if rest and not can_exchange(rest):
        groups, rest = [], list(range(len(infos)))
    if rest and not can_exchange(rest):
        key, count = _largest(map(patient, rest))
        name = next(info.patient_id for info in infos if patient_key(info.patient_id) == key)
        raise UserError(
            f"patient {name!r} has {count} of {len(rest)} images, which is more than half",
            where=where,
            todo="use images of more patients, so that each can be paired with another patient's",
        )
    names = sorted(set(map(patient, range(len(infos)))))
    place = {names[number]: at for at, number in enumerate(random_order(len(names), seed, Purpose.PARTNERS))}
    partner_of: dict[int, int] = {}
    for group in filter(None, (*groups, rest)):
        # With the images sorted by patient, a shift by the number of images of the largest patient always reaches
        # another patient.
        order = sorted(group, key=lambda position: place[patient(position)])
        step = _largest(map(patient, order))[1]
        partner_of |= {position: order[(at + step) % len(order)] for at, position in enumerate(order)}
    return tuple(partner_of[position] for position in range(len(infos)))


def _largest(names: Iterable[str]) -> tuple[str, int]:
    """(patient, number of images) of the patient with the most images."""
    return Counter(names).most_common(1)[0]


def _read_in_size(read: Read, infos: Sequence[ImageInfo], position: int) -> np.ndarray:
    """The image [H, W, 1], resized to the width and height of `infos[position]`."""
    return resized_pixels(read(position), (infos[position].height, infos[position].width))
