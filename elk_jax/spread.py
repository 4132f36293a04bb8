"""A few of many, evenly spread."""

from __future__ import annotations

import numpy as np


def spread(total: int, count: int) -> np.ndarray:
    """`count` positions below `total` (all, where there are fewer), ascending, from the first to the last."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(int)
