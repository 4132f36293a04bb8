"""The grey values of the slices of a whole tomosynthesis volume, as a detector sees them."""

from __future__ import annotations

from functools import partial
from typing import Literal

import numpy as np

from elk_jax.data.sources.source import ImageSource, Read, reread

SliceGreys = Literal["window", "own"]
"""window: one window shows all slices of a volume. own: each is shown in 8 bits from its own darkest to its own
brightest pixel, as CoMoTo tests: a slice without a lesion is as bright as any."""


def slices_in(source: ImageSource, greys: SliceGreys) -> ImageSource:
    """A source of slices with these grey values."""
    return source if greys == "window" else reread(source, lambda read: partial(_read_own, read))


def own_range(image: np.ndarray) -> np.ndarray:
    """An image [H, W, I] in [0, 1] from its own darkest to its brightest pixel, cut off to whole 255ths.

    What a window has cut off before stays so. An image of one grey, for which the published code divides by zero, is
    black.
    """
    darkest, brightest = image.min(), image.max()
    if darkest == brightest:
        return np.zeros_like(image)
    return np.floor((image - darkest) / (brightest - darkest) * np.float32(255)) * np.float32(1 / 255)


def _read_own(read: Read, position: int) -> np.ndarray:
    """A function of the module, which worker processes can be sent."""
    return own_range(read(position))
