"""Crop images to the breast: in mammograms padded to a square, half of the pixels (and of the time) is air."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from elk_jax.data.sources.source import ImageSource, one_of, reread
from elk_jax.data.sources.volumes import volume_id
from elk_jax.images.breast import breast_mask
from elk_jax.images.schema import ImageInfo
from elk_jax.images.windows import Window
from elk_jax.threads import ProgressBar, map_in_threads, no_bar


def breast_window(image: np.ndarray, margin: float = 0.02) -> Window:
    """The rectangle around the breast (`images/breast.py`) of image [H, W, 1], wider by `margin` of the long
    side on every side. The whole image where there is no breast.
    """
    height, width = image.shape[:2]
    breast = breast_mask(image)
    if not breast.any():
        return 0, 0, width, height
    rows, columns = np.flatnonzero(breast.any(1)), np.flatnonzero(breast.any(0))
    x, y, x1, y1 = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    pad = round(margin * max(height, width))
    return max(x - pad, 0), max(y - pad, 0), min(x1 + pad, width), min(y1 + pad, height)


def crop_to_breast(source: ImageSource, progress: ProgressBar = no_bar) -> tuple[ImageSource, tuple[Window, ...]]:
    """`source` with every image cut to its breast, and the windows in the pixels of `source`.

    Pairs are cut to the breast of the first image, and the slices of a volume by one window, which holds the breast of
    each of them. Decodes every image once, of pairs the first. A window is widened to hold all annotated boxes, so that
    none is lost.
    """
    first = one_of(source, 0)
    breasts = map_in_threads(lambda position: breast_window(first[position].image), len(source), progress)
    windows = _one_per_volume(source, [_with_boxes(*one) for one in zip(breasts, source.infos, strict=True)])
    infos = []
    for info, (x0, y0, x1, y1) in zip(source.infos, windows):
        shift = np.array([x0, y0, x0, y0], np.float32)
        infos.append(replace(info, width=x1 - x0, height=y1 - y0, boxes=info.boxes - shift))
    return reread(source, lambda read: partial(_read, replace(first, read=read), windows), tuple(infos)), windows


def _with_boxes(window: Window, info: ImageInfo) -> Window:
    if not len(info.boxes):
        return window
    low, high = np.floor(info.boxes[:, :2].min(0)), np.ceil(info.boxes[:, 2:].max(0))
    return _around([window, (int(low[0]), int(low[1]), int(high[0]), int(high[1]))])


def _one_per_volume(source: ImageSource, windows: Sequence[Window]) -> tuple[Window, ...]:
    """The window of each image; of slices of one volume and size, one around the windows of all."""
    of_volume: dict[object, list[Window]] = defaultdict(list)
    keys = [
        (info.source, volume_id(info), info.width, info.height) if volume_id(info) else position
        for position, info in enumerate(source.infos)
    ]
    for key, window in zip(keys, windows, strict=True):
        of_volume[key].append(window)
    return tuple(_around(of_volume[key]) for key in keys)


def _around(windows: Sequence[Window]) -> Window:
    x0, y0, x1, y1 = zip(*windows)
    return min(x0), min(y0), max(x1), max(y1)


def _read(source: ImageSource, windows: tuple[Window, ...], position: int) -> np.ndarray:
    x0, y0, x1, y1 = windows[position]
    return source[position].image[y0:y1, x0:x1]
