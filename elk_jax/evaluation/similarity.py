"""Similarity of two images: mean absolute error, PSNR and SSIM inside a mask, and their means over patients.

Shapes: H, W image size in pixels; N images; P patients; R resamples. Grey values are in [0, 1].

Sources: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004 (Gaussian window
of 11 pixels and deviation 1.5, K1 = 0.01, K2 = 0.03).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from elk_jax.evaluation import bootstrap
from elk_jax.evaluation.bootstrap import Statistic
from elk_jax.images.windows import blocked_by

MEASURES = ("mae", "psnr", "ssim")

MOST_PSNR = 100.0
"""Largest PSNR in dB: that of equal images is infinite and must not dominate a mean."""

WINDOW, DEVIATION = 11, 1.5
STABLE = 0.01**2, 0.03**2


def similarity(image: np.ndarray, real: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """`mae`, `psnr` (dB) and `ssim` of two images [H, W] over the pixels of mask [H, W] bool; NaN if it is empty."""
    if not mask.any():
        return dict.fromkeys(MEASURES, float("nan"))
    error = image.astype(np.float64)[mask] - real.astype(np.float64)[mask]
    square = float((error**2).mean())
    psnr = MOST_PSNR if square == 0 else min(MOST_PSNR, -10 * float(np.log10(square)))
    return {"mae": float(np.abs(error).mean()), "psnr": psnr, "ssim": float(ssim_map(image, real)[mask].mean())}


def ssim_map(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """SSIM [H, W] float64 around every pixel; images are mirrored at their borders."""
    a, b = image.astype(np.float64), other.astype(np.float64)
    blur = lambda x: cv2.GaussianBlur(x, (WINDOW, WINDOW), DEVIATION, borderType=cv2.BORDER_REFLECT)
    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    light = (2 * mean_a * mean_b + STABLE[0]) / (mean_a**2 + mean_b**2 + STABLE[0])
    return light * (2 * covariance + STABLE[1]) / (variance_a + variance_b + STABLE[1])


def lesion_contrast(image: np.ndarray, boxes: np.ndarray, mask: np.ndarray) -> float:
    """Mean grey value of image [H, W] inside boxes [N, 4] minus that of the rest of the mask; NaN without either."""
    inside = blocked_by(boxes, *mask.shape)
    lesion, rest = inside & mask, ~inside & mask
    if not lesion.any() or not rest.any():
        return float("nan")
    return float(image[lesion].astype(np.float64).mean() - image[rest].astype(np.float64).mean())


def mean_over_images(values: Mapping[str, np.ndarray], patients: Sequence[str]) -> tuple[Statistic, int]:
    """(statistic of patient weights, P): the mean of each of `values` [N] over images, without NaN.

    For `bootstrap.estimate` and `compare`. patients: patient of each of the N images.
    """
    names = sorted(set(patients))
    of = np.array([names.index(patient) for patient in patients], int)
    sums, counts = {}, {}
    for name, column in values.items():
        known = np.isfinite(column)
        sums[name] = np.bincount(of, np.where(known, column, 0), len(names))
        counts[name] = np.bincount(of, known, len(names))

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return {name: (weights @ sums[name]) / (weights @ counts[name]) for name in sums}

    return statistic, len(names)


def estimates(
    values: Mapping[str, np.ndarray], patients: Sequence[str], resamples: int, seed: int
) -> dict[str, bootstrap.Estimate]:
    """Means over images with intervals over patients, {"value", "low", "high"} by name."""
    statistic, count = mean_over_images(values, patients)
    return bootstrap.estimate(statistic, count, resamples=resamples, seed=seed)


def differences(
    first: Mapping[str, np.ndarray],
    second: Mapping[str, np.ndarray],
    patients: Sequence[str],
    resamples: int,
    seed: int,
) -> dict[str, dict[str, float | None]]:
    """Second minus first on the same images, paired over patients; see `bootstrap.compare`."""
    (a, count), (b, _) = mean_over_images(first, patients), mean_over_images(second, patients)
    return bootstrap.compare(a, b, count, resamples=resamples, seed=seed)
