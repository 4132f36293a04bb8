"""Power of images at the finest frequencies, where upsampling networks leave checkerboards.

Shapes: H, W size of an image in pixels; images of a set may have different sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def checkerboard(images: Sequence[np.ndarray]) -> float:
    """The share of a checkerboard of single pixels in the power of images [H, W], each without its mean.

    This is the diagonal Nyquist frequency. An odd row or column at the end is left out. NaN for constant images, and
    for images with a single row or column.
    """
    found = total = 0.0
    for image in images:
        height, width = (size - size % 2 for size in image.shape)
        values = image[:height, :width].astype(np.float64)
        if not values.size or values.min() == values.max():
            continue  # no power but that of rounding
        values = values - values.mean()
        signs = np.outer((-1.0) ** np.arange(height), (-1.0) ** np.arange(width))
        found += float((values * signs).sum() ** 2) / values.size
        total += float((values**2).sum())
    return found / total if total > 0 else float("nan")


def fine(images: Sequence[np.ndarray]) -> float:
    """The share of waves shorter than four pixels in the power of images [H, W], each without its mean.

    NaN for constant images.
    """
    found = total = 0.0
    for image in images:
        if image.min() == image.max():
            continue  # no power but that of rounding
        values = image.astype(np.float64)
        power = np.abs(np.fft.fft2(values - values.mean())) ** 2 / image.size
        down, right = np.meshgrid(*(np.fft.fftfreq(size) for size in image.shape), indexing="ij")
        found += float(power[np.hypot(down, right) > 0.25].sum())
        total += float(power.sum())
    return found / total if total > 0 else float("nan")
