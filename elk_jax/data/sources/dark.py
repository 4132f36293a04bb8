"""One warning about images whose values use little of the range of their files."""

from __future__ import annotations

import logging
from threading import Lock

DARK = 1 / 8
"""Share of the range: values of an image that stays below it probably have fewer bits than its file declares."""

_WARNED = Lock()
"""Acquired at the first such image and never released: one warning per process is enough."""


def warn_if_dark(extent: int, bits: int, where: object) -> None:
    """Log the first image whose integers use less than DARK of the range of `bits`.

    extent: the largest value; for signed values, the difference between the largest and the smallest.
    """
    if not 0 < extent < DARK * 2**bits or bits <= 8 or not _WARNED.acquire(blocking=False):
        return
    fewer = extent.bit_length()
    todo = (
        f"If such files have fewer significant bits, set for example bit_depth={fewer + fewer % 2} (--bit_depth, "
        "config.data.NAME.bit_depth, or a field of the COCO image). If they are meant to be dark, set bit_depth=16"
        if bits == 16
        else "Export such files with a window, or with the BitsStored that their values need"
    )
    logging.getLogger(__name__).warning(
        f"the image {where} is nearly black: its values span {extent} of {2**bits - 1}. {todo}"
    )
