"""Canvases of padded batches: every image is assigned to one, and a training step is compiled once for each.

A bucket is the number of a canvas. No pixels are read here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from elk_jax.data.augment import Augmentation, Resize
from elk_jax.data.transforms import short_side_scale
from elk_jax.errors import UserError
from elk_jax.fields import SIDE
from elk_jax.images.schema import ImageInfo

Canvas = tuple[int, int]
"""(height, width) in px."""
Side = Annotated[int, SIDE]
"""Largest side of a canvas, px: that of the largest mammograms, with room to spare. A batch's memory grows with its
square."""
Canvases = tuple[tuple[Side, Side], ...]
"""A canvas as a setting."""
MULTIPLE = 32


def padded(canvas: Sequence[int]) -> Canvas:
    """The canvas with sides rounded up to multiples of MULTIPLE."""
    height, width = (-(-side // MULTIPLE) * MULTIPLE for side in canvas)
    return height, width


def worst_size(info: ImageInfo, resize: Resize, augmentation: Augmentation) -> Canvas:
    """The largest (height, width) this record can have in a batch."""
    size = resize.stretched((info.height, info.width))
    scale = max(short_side_scale(size, side, resize.max_long_side) for side in resize.short_sides)
    height, width = resize.size(size, scale)
    if augmentation.rotate90 > 0 and not resize.stretch:
        return max(height, width), max(height, width)
    return height, width


def choose_buckets(infos: Sequence[ImageInfo], resize: Resize, augmentation: Augmentation) -> tuple[Canvas, ...]:
    """One canvas that holds every record, sides rounded up to a multiple of MULTIPLE. Not for `jitter`."""
    sizes = np.array([worst_size(info, resize, augmentation) for info in infos])
    return (padded(sizes.max(axis=0).tolist()),)


def assign_buckets(
    infos: Sequence[ImageInfo], buckets: Sequence[Canvas], resize: Resize, augmentation: Augmentation
) -> np.ndarray:
    """Bucket [n] of each record: the smallest canvas that holds it; with jitter, the one that it fills best.

    UserError for the first record that fits no bucket.
    """
    area = np.array([height * width for height, width in buckets])
    chosen = np.zeros(len(infos), int)
    for position, info in enumerate(infos):
        if resize.jitter:
            # every image is scaled to fit, so none is too large: the least empty canvas is the best
            own = height, width = resize.stretched((info.height, info.width))
            filled = np.array([resize.scale(own, bucket) for bucket in buckets]) ** 2 * height * width / area
            chosen[position] = int(np.argmax(filled))
            continue
        height, width = worst_size(info, resize, augmentation)
        fits = np.array([h >= height and w >= width for h, w in buckets])
        if not fits.any():
            raise UserError(
                f"image {info.image_id} becomes {height} x {width} px (height x width) and fits no bucket of "
                f"{[tuple(bucket) for bucket in buckets]}",
                where=info.file_name,
                todo="add a larger bucket or lower short_sides or max_long_side",
            )
        chosen[position] = int(np.argmin(np.where(fits, area, np.inf)))
    return chosen
