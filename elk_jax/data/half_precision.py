"""Images in half precision, as CoMoTo reads them, and the one warning of those that it cannot hold.

A float16 has 11 bits: whole numbers above 2048 lose some, and from OVERFLOW on they are infinite.
"""

from __future__ import annotations

import logging
from threading import Lock

import numpy as np

OVERFLOW = 65520
"""The least number that is rounded up beyond 65504, the largest float16."""
SAME = 2.0**-22
"""Share of white by which a grey value may miss the whole number that its file has, since it is a float32."""

_WARNED = Lock()
"""Acquired at the first such image and never released: one warning per process is enough."""


def in_half_precision(image: np.ndarray, white: int, name: object) -> np.ndarray:
    """An image [H, W, I] in [0, 1] as it comes back from float16, in which 1 is the number `white`.

    Numbers from OVERFLOW on come back as infinite, and are warned of once. name: of the image, for that.
    """
    values = image * np.float32(white)
    whole = np.round(values)
    values = np.where(np.abs(values - whole) <= white * SAME, whole, values)  # halves between two float16 are frequent
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if np.isinf(half).any():
        _warn(float(values.max()), name)
    return half.astype(np.float32) * np.float32(1.0 / white)


def _warn(brightest: float, name: object) -> None:
    if _WARNED.acquire(blocking=False):
        logging.getLogger(__name__).warning(
            f"the image {name} reaches {brightest:.0f}, beyond what a float16 holds (65504): such pixels are infinite, "
            "and so is the loss. Set loader.resize.float16_white=0 to read images in full precision, as they are"
        )
