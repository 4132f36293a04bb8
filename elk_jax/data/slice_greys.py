"""Grey values of the slices of a whole tomosynthesis volume, as a detector sees them."""

from __future__ import annotations

from functools import partial
from typing import Literal

import numpy as np

from elk_jax.data.sources.source import ImageSource, Read, reread

SliceGreys = Literal["window", "own"]
"""window: all slices of a volume share one window. own: each slice is scaled to 8 bits from its own darkest to its own
brightest pixel, as CoMoTo tests: a slice without a lesion is as bright as any other."""


def slices_in(source: ImageSource, greys: SliceGreys, white: int = 255) -> ImageSource:
    """A source of slices with these grey values. white: as in `own_range`."""
    return source if greys == "window" else reread(source, lambda read: partial(_read_own, read, white))


def own_range(image: np.ndarray, white: int = 255) -> np.ndarray:
    """An image [H, W, I] in [0, 1] scaled to 8 bits from its own darkest to its own brightest pixel, truncated to whole
    numbers.

    white: the number that corresponds to 1 in the detector's training files. If these have 16 bits, an image of 8 bits
    is nearly black, as published. Values clipped earlier by a window stay clipped. A uniform image, for which the
    published code divides by zero, becomes black.
    """
    darkest, brightest = image.min(), image.max()
    if darkest == brightest:
        return np.zeros_like(image)
    return np.floor((image - darkest) / (brightest - darkest) * np.float32(255)) * np.float32(1 / white)


def _read_own(read: Read, white: int, position: int) -> np.ndarray:
    """A module-level function, so that it can be sent to worker processes."""
    return own_range(read(position), white)
