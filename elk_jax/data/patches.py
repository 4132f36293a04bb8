"""Square patches of equal size: one for every box, or of a whole image.

Shapes: H, W size of an image; S side of a patch; boxes xyxy, px.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np

from elk_jax.data.sources.source import ImageSource
from elk_jax.errors import UserError
from elk_jax.fields import ABOVE_ZERO, AtLeast, Checked
from elk_jax.images.boxes import area
from elk_jax.images.windows import Window, cut
from elk_jax.threads import ProgressBar, map_in_threads, no_bar

WHOLE = 0.99
"""Share of its image from which a box counts as the whole image."""


@dataclass(frozen=True)
class Cutting(Checked):
    """How a patch is cut around a box. If the box covers its image, the whole image is the patch.

    margin: side of the window divided by the longer side of the box. least: smallest side of the window, px.
    """

    margin: Annotated[float, ABOVE_ZERO] = 1.35
    least: Annotated[int, AtLeast(2)] = 40


def window_around(
    box: np.ndarray, height: int, width: int, cutting: Cutting, centre: tuple[float, float] = (0.5, 0.5)
) -> Window:
    """The square of a box [4], shifted into the image of H x W, and no larger than it.

    centre: row and column of the box's centre, as shares of the window.
    """
    x0, y0, x1, y1 = (float(value) for value in box)
    side = min(round(max(cutting.margin * max(x1 - x0, y1 - y0), cutting.least)), height, width)
    left = round((x0 + x1) / 2 - side * centre[1])
    top = round((y0 + y1) / 2 - side * centre[0])
    left, top = min(max(left, 0), width - side), min(max(top, 0), height - side)
    return left, top, left + side, top + side


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """An image [H, W, 1] as float32 [S, S, 1]."""
    if image.shape[:2] == (size, size):
        return image
    shrinks = min(image.shape[:2]) > size
    scaled = cv2.resize(image[..., 0], (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return scaled[..., None].astype(np.float32)


def whole_images(source: ImageSource, size: int, progress: ProgressBar = no_bar) -> np.ndarray:
    """Every image of a source as a patch: [N, S, S, 1] float32 in [0, 1]."""
    found = map_in_threads(lambda position: resized(source[position].image, size), len(source), progress)
    return np.stack(found)


def around_boxes(
    source: ImageSource,
    size: int,
    cutting: Cutting,
    centre: tuple[float, float] = (0.5, 0.5),
    progress: ProgressBar = no_bar,
) -> np.ndarray:
    """A patch of every box of a source, except ignore boxes: [N, S, S, 1] float32 in [0, 1].

    UserError if there is none.
    """

    def of_image(position: int) -> list[np.ndarray]:
        info = source.infos[position]
        boxes = info.boxes[~info.ignore]
        if not len(boxes):
            return []
        image = source[position].image
        is_whole = area(boxes) >= WHOLE * info.width * info.height
        windows = [window_around(box, info.height, info.width, cutting, centre) for box in boxes]
        return [resized(image if whole else cut(image, window), size) for whole, window in zip(is_whole, windows)]

    found = [patch for patches in map_in_threads(of_image, len(source), progress) for patch in patches]
    if not found:
        raise UserError("no box to cut a patch around", where=source.name, todo="give images with boxes")
    return np.stack(found)
