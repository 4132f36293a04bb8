"""The largest batch that fits, with as few compilations as possible."""

from __future__ import annotations

import math
from collections.abc import Callable

MOST = 4096
"""Largest batch that is tried, in examples per chip."""


def largest_batch(total: Callable[[int], float], start: int, limit: float) -> int:
    """The largest batch with total(batch) <= limit, to within an eighth; 0 if not even one example fits.

    total: bytes of a batch, non-decreasing in its size; infinite for one that cannot be compiled. It is called as
    rarely as possible: memory grows almost linearly, so two values predict the others. The returned batch has been
    tried and fits.
    """
    known: dict[int, float] = {}
    size = max(start, 1)
    while True:
        known[size] = total(size)
        fits = max((s for s, need in known.items() if need <= limit), default=0)
        fails = min((s for s, need in known.items() if need > limit), default=2 * MOST)
        if fails - fits <= max(1, fits // 8) or fits >= MOST:
            return fits
        size = _next(known, fits, fails, limit)
        if size <= fits:
            return fits


def _next(known: dict[int, float], fits: int, fails: int, limit: float) -> int:
    """The batch to try next, above `fits` and below `fails`; `fits` itself if linear extrapolation predicts that no
    more fit."""
    finite = sorted(size for size, need in known.items() if math.isfinite(need))
    if len(finite) > 1:
        low, high = finite[-2:]
        each = (known[high] - known[low]) / (high - low)
        if each > 0:
            predicted = int(low + (limit - known[low]) / each)
            if predicted <= fits and fits in (low, high):
                return fits
            return min(max(predicted, fits + 1), fails - 1, MOST)
    return min(2 * fits, MOST) if fails > MOST and fits else (fits + fails) // 2
