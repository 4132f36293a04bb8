"""An evenly spread selection of a few out of many."""

from __future__ import annotations

import numpy as np


def spread(total: int, count: int) -> np.ndarray:
    """`count` positions below `total` (all if there are fewer), ascending, including the first and the last."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(int)
