"""The grey values of the slices of a whole tomosynthesis volume, as a detector sees them."""

from __future__ import annotations

from functools import partial
from typing import Literal

import numpy as np

from elk_jax.data.sources.source import ImageSource, Read, reread

SliceGreys = Literal["window", "own"]
"""window: one window shows all slices of a volume. own: each is shown in 8 bits from its own darkest to its own
brightest pixel, as CoMoTo tests: a slice without a lesion is as bright as any."""


def slices_in(source: ImageSource, greys: SliceGreys, white: int = 255) -> ImageSource:
    """A source of slices with these grey values. white: as of `own_range`."""
    return source if greys == "window" else reread(source, lambda read: partial(_read_own, read, white))


def own_range(image: np.ndarray, white: int = 255) -> np.ndarray:
    """An image [H, W, I] in [0, 1] as numbers of 8 bits from its own darkest to its own brightest pixel, cut off to
    whole ones.

    white: the number that 1 is in the files that a detector knows. Where these have 16 bits, an image of 8 bits is
    nearly black, as published. What a window has cut off before stays so. An image of one grey, for which the published
    code divides by zero, is black.
    """
    darkest, brightest = image.min(), image.max()
    if darkest == brightest:
        return np.zeros_like(image)
    return np.floor((image - darkest) / (brightest - darkest) * np.float32(255)) * np.float32(1 / white)


def _read_own(read: Read, white: int, position: int) -> np.ndarray:
    """A function of the module, which worker processes can be sent."""
    return own_range(read(position), white)
