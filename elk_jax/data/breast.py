"""Crop images to the breast: in mammograms padded to a square, half of the pixels, and of the time, are air."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from elk_jax.data.sources.source import ImageSource, one_of, reread
from elk_jax.data.sources.volumes import volume_id
from elk_jax.images.breast import breast_mask
from elk_jax.images.windows import Window
from elk_jax.threads import ProgressBar, map_in_threads, no_bar


def breast_window(image: np.ndarray, margin: float = 0.02) -> Window | None:
    """The rectangle around the breast (`images/breast.py`) in image [H, W, 1], extended on every side by `margin` of
    the long side. None if there is no breast.
    """
    height, width = image.shape[:2]
    breast = breast_mask(image)
    if not breast.any():
        return None
    rows, columns = np.flatnonzero(breast.any(1)), np.flatnonzero(breast.any(0))
    x, y, x1, y1 = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    pad = round(margin * max(height, width))
    return max(x - pad, 0), max(y - pad, 0), min(x1 + pad, width), min(y1 + pad, height)


def crop_to_breast(source: ImageSource, progress: ProgressBar = no_bar) -> tuple[ImageSource, tuple[Window, ...]]:
    """`source` with every image cropped to its breast, and the windows in pixels of `source`.

    Pairs are cropped to the breast of the first image, and the slices of a volume to one window that contains the
    breast of every slice; slices of air do not widen it. An image or a volume without a breast is not cropped. Decodes
    every image once (for pairs, the first image). A window is widened to contain all annotated boxes, so none is lost.
    """
    first = one_of(source, 0)
    breasts = map_in_threads(lambda position: breast_window(first[position].image), len(source), progress)
    windows = _one_per_volume(source, breasts)
    infos = []
    for info, (x0, y0, x1, y1) in zip(source.infos, windows):
        shift = np.array([x0, y0, x0, y0], np.float32)
        infos.append(replace(info, width=x1 - x0, height=y1 - y0, boxes=info.boxes - shift))
    return reread(source, lambda read: partial(_read, replace(first, read=read), windows), tuple(infos)), windows


def _one_per_volume(source: ImageSource, breasts: Sequence[Window | None]) -> tuple[Window, ...]:
    """The window of each image; slices of one volume and size share one, around all their breasts and boxes."""
    together: dict[object, list[int]] = defaultdict(list)
    for position, info in enumerate(source.infos):
        key = (info.source, volume_id(info), info.width, info.height) if volume_id(info) else position
        together[key].append(position)
    windows = dict[int, Window]()
    for positions in together.values():
        whole = 0, 0, source.infos[positions[0]].width, source.infos[positions[0]].height
        found = [window for position in positions if (window := breasts[position])] or [whole]
        boxes = (source.infos[position].boxes for position in positions)
        found += [_around_boxes(of_image) for of_image in boxes if len(of_image)]
        windows |= dict.fromkeys(positions, _around(found))
    return tuple(windows[position] for position in range(len(source)))


def _around_boxes(boxes: np.ndarray) -> Window:
    (x0, y0), (x1, y1) = np.floor(boxes[:, :2].min(0)), np.ceil(boxes[:, 2:].max(0))
    return int(x0), int(y0), int(x1), int(y1)


def _around(windows: Sequence[Window]) -> Window:
    x0, y0, x1, y1 = zip(*windows)
    return min(x0), min(y0), max(x1), max(y1)


def _read(source: ImageSource, windows: tuple[Window, ...], position: int) -> np.ndarray:
    x0, y0, x1, y1 = windows[position]
    return source[position].image[y0:y1, x0:x1]
