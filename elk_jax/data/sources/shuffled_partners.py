"""Pairs that say nothing of each other: every image beside the partner of another patient, as a control."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import cv2
import numpy as np

from elk_jax.data.sources.source import ImageSource, Read, read_at
from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo
from elk_jax.randomness import Purpose, random_order


def shuffle_partners(pairs: ImageSource, seed: int = 0) -> ImageSource:
    """The pairs with their partners exchanged: each stands once beside an image of another patient, in its size.

    UserError where one patient has more than half of the images, so that no such exchange exists.
    """
    assert pairs.partner is not None
    others = partial(read_at, pairs.partner, _of_another_patient(pairs.infos, seed, pairs.name))
    return replace(pairs, partner=partial(_read_in_size, others, pairs.infos))


def _of_another_patient(infos: tuple[ImageInfo, ...], seed: int, where: str) -> tuple[int, ...]:
    """For each image the position of one of another patient; every position once.

    With the images of each patient side by side, the image as many places on as the largest patient has images is of
    another one.
    """
    counts = Counter(info.patient_id for info in infos)
    patient, step = counts.most_common(1)[0]
    if 2 * step > len(infos):
        raise UserError(
            f"patient {patient!r} has {step} of {len(infos)} images, which is more than half",
            where=f"{where}, shuffled_partners",
            todo="use images of more patients, so that every image can be shown with that of another",
        )
    names = sorted(counts)
    place = {names[position]: at for at, position in enumerate(random_order(len(names), seed, Purpose.PARTNERS))}
    order = sorted(range(len(infos)), key=lambda position: place[infos[position].patient_id])
    partner_of = {position: order[(at + step) % len(order)] for at, position in enumerate(order)}
    return tuple(partner_of[position] for position in range(len(infos)))


def _read_in_size(read: Read, infos: tuple[ImageInfo, ...], position: int) -> np.ndarray:
    """The image [H, W, 1], resized to the width and height of `infos[position]`."""
    image, size = read(position), (infos[position].width, infos[position].height)
    if image.shape[1::-1] == size:
        return image
    shrinks = size[0] <= image.shape[1] and size[1] <= image.shape[0]
    return cv2.resize(image[..., 0], size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)[..., None]
