"""Images in half precision, as CoMoTo reads them, and one warning for values that it cannot represent.

A float16 has 11 significant bits: whole numbers above EXACT are rounded, and from OVERFLOW on they become infinite.
"""

from __future__ import annotations

import logging
from threading import Lock

import numpy as np

EXACT = 2048
OVERFLOW = 65520
"""The smallest number that is rounded beyond 65504, the largest float16."""
SAME = 2.0**-22
"""Share of white by which a grey value may differ from the whole number in its file, since it is a float32."""

BLOCK = 1 << 15
"""Pixels that are converted at once, so that they stay in the cache of a core."""

_WARNED = Lock()
"""Acquired at the first such image and never released: one warning per process is enough."""


def in_half_precision(image: np.ndarray, white: int, name: object) -> np.ndarray:
    """An image [H, W, I] in [0, 1] after a round trip through float16, in which 1 is the number `white`.

    Numbers from OVERFLOW on become infinite, with one warning. name: of the image, for the warning.
    """
    found = np.array(image, np.float32, order="C")
    for block in np.split(found.reshape(-1), range(BLOCK, found.size, BLOCK)):
        numbers = block * np.float32(white)
        whole = np.rint(numbers)
        between = np.abs(numbers - whole) > white * SAME
        if between.any() or whole.max(initial=0) > EXACT:
            np.copyto(whole, numbers, where=between)  # whole numbers halfway between two float16 are frequent
            with np.errstate(over="ignore"):
                block[:] = whole.astype(np.float16)
            block *= np.float32(1.0 / white)
    if np.isinf(found).any():
        _warn(float(image.max()) * white, name)
    return found


def _warn(brightest: float, name: object) -> None:
    if _WARNED.acquire(blocking=False):
        logging.getLogger(__name__).warning(
            f"image {name}: pixel values up to {brightest:.0f} exceed the largest float16 (65504). Such pixels become "
            "infinite, and so does the loss. Set loader.resize.float16_white=0 to read images in full precision"
        )
