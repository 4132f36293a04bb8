"""Crop images to the breast: in mammograms padded to a square, half of the pixels (and of the time) is air."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from elk_jax.data.sources.source import ImageSource
from elk_jax.images.breast import breast_mask
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

    Pairs are cut to the breast of the first image. Decodes every image once. A window is widened to hold all annotated
    boxes, so that none is lost.
    """
    window_of = lambda position: breast_window(source[position].image[..., :1])
    breasts = map_in_threads(window_of, len(source), progress)
    windows, infos = [], []
    for info, (x0, y0, x1, y1) in zip(source.infos, breasts):
        if len(info.boxes):
            low, high = np.floor(info.boxes[:, :2].min(0)), np.ceil(info.boxes[:, 2:].max(0))
            x0, y0 = min(x0, int(low[0])), min(y0, int(low[1]))
            x1, y1 = max(x1, int(high[0])), max(y1, int(high[1]))
        windows.append((x0, y0, x1, y1))
        shift = np.array([x0, y0, x0, y0], np.float32)
        infos.append(replace(info, width=x1 - x0, height=y1 - y0, boxes=info.boxes - shift))
    read = partial(_read, source, tuple(windows))
    return replace(source, infos=tuple(infos), read=read), tuple(windows)


def _read(source: ImageSource, windows: tuple[Window, ...], position: int) -> np.ndarray:
    x0, y0, x1, y1 = windows[position]
    return source[position].image[y0:y1, x0:x1]
