"""Distances between two sets of images in any feature space.

Shapes: N and M images, D features. Features are [N, D] from any extractor.
Sources: Heusel et al. 2017 (Frechet distance); Binkowski et al. 2018 (kernel distance).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from elk_jax.errors import UserError

SPLITS = 10
ROWS = 1024
"""Images of a set that the kernel distance compares with all of the other set at once: limits the memory."""


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and a factor [K, D] of the covariance of features [N, D]; K is the smaller of N and D.

    factor.T @ factor is the covariance, with N - 1 in the denominator. UserError for fewer than two images, or
    non-finite values.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2:
        todo = "give an array [images, features] with at least two images"
        raise UserError(f"shape {features.shape}", where="features", todo=todo)
    if not np.isfinite(features).all():
        raise UserError("NaN or infinity found", where="features", todo="omit the images or features concerned")
    mean = features.mean(0)
    factor = (features - mean) / np.sqrt(len(features) - 1)
    if len(factor) > factor.shape[1]:
        factor = np.linalg.qr(factor, mode="r")
    return mean, factor


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet (2-Wasserstein) distance of the Gaussians fitted to features [N, D] and [M, D].

    |mean_a - mean_b|^2 + Tr(C_a + C_b - 2 (C_a C_b)^(1/2)), never negative. With C = F'F the last trace is the sum of
    the singular values of F_a F_b'. No matrix square root is needed, so that singular covariances (fewer images than
    features) need no correction.

    The estimate is biased upwards, and more so with fewer images. Compare only values with the same N and M; the
    reference for a synthetic set is the distance between two real sets (`compare_sets`).
    """
    (mean_a, factor_a), (mean_b, factor_b) = moments(a), moments(b)
    _check_features(mean_a, mean_b)
    cross = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    squared = ((mean_a - mean_b) ** 2).sum() + (factor_a**2).sum() + (factor_b**2).sum() - 2 * cross
    return float(max(squared, 0.0))


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared maximum mean discrepancy with the kernel (x'y / D + 1)^3, of features [N, D] and [M, D].

    It is unbiased for any N and M, and can therefore be slightly negative.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    _check_features(a, b)
    n, m = len(a), len(b)
    if min(n, m) < 2:
        raise UserError(f"one set has {n} images, the other {m}", where="images", todo="give at least two in each")

    within = [_kernel_sums(one, one) for one in (a, b)]
    (all_a, own_a), (all_b, own_b) = within
    return float(
        (all_a - own_a) / (n * (n - 1)) + (all_b - own_b) / (m * (m - 1)) - 2 * (_kernel_sums(a, b)[0] / (n * m))
    )


def _kernel_sums(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The sum of the kernel over all pairs, and over pairs of the same position. The table of all pairs is never
    materialised: for 20,000 images it has 3 GB."""
    total = diagonal = 0.0
    for start in range(0, len(x), ROWS):
        kernel = (x[start : start + ROWS] @ y.T / x.shape[1] + 1) ** 3
        total += kernel.sum()
        diagonal += np.trace(kernel, offset=start)
    return float(total), float(diagonal)


class Draw(NamedTuple):
    """Positions of equal numbers of images: two sets of real ones, from different patients, and one synthetic set."""

    one: np.ndarray
    other: np.ndarray
    synthetic: np.ndarray


def draws(patients: Sequence[str], synthetic: int, seed: int = 0, most: int | None = None) -> list[Draw]:
    """SPLITS random halves of the real images by patient, each with as many `synthetic` images; at least two per set.

    patients: patient of each real image. most: most images per set; None: no limit.
    """
    rng = np.random.default_rng(seed)
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    found = []
    for _ in range(SPLITS):
        first = np.isin(owner, rng.permutation(len(names))[: len(names) // 2])
        size = min(first.sum(), (~first).sum(), synthetic, *(() if most is None else (most,)))
        if size < 2:
            continue
        one, other = (rng.permutation(np.flatnonzero(side))[:size] for side in (first, ~first))
        found.append(Draw(one, other, rng.permutation(synthetic)[:size]))
    return found


def compare_sets(
    real: np.ndarray, synthetic: np.ndarray, patients: Sequence[str], seed: int = 0
) -> dict[str, float | int | None]:
    """Distance of synthetic images [M, D] from real ones [N, D], beside the distance of real images from each other.

    patients: patient of each real image. The real set is split in two by patient, SPLITS times. The result has
        `real_to_real`: mean Frechet distance between the halves;
        `synthetic_to_real`: mean distance between a synthetic sample of the size of one half and the other half, with
        the same small-sample bias, so that the two can be compared; None for fewer than two patients or too few images;
        `distance` and `kernel_distance` of the whole sets, and the counts `real`, `synthetic`, `half`.
    """
    real, synthetic = np.asarray(real, np.float64), np.asarray(synthetic, np.float64)
    if len(patients) != len(real):
        raise ValueError(f"{len(patients)} patients for {len(real)} images")
    drawn = draws(patients, len(synthetic), seed)
    within = [frechet_distance(real[draw.one], real[draw.other]) for draw in drawn]
    across = [frechet_distance(real[draw.one], synthetic[draw.synthetic]) for draw in drawn]
    return {
        "distance": frechet_distance(real, synthetic),
        "kernel_distance": kernel_distance(real, synthetic),
        "real_to_real": float(np.mean(within)) if within else None,
        "synthetic_to_real": float(np.mean(across)) if across else None,
        "real": len(real),
        "synthetic": len(synthetic),
        "half": int(np.mean([len(draw.one) for draw in drawn])) if drawn else 0,
    }


def _check_features(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape[-1] != b.shape[-1]:
        what = f"one set has {a.shape[-1]} features, the other {b.shape[-1]}"
        raise UserError(what, where="features", todo="use the same extractor for both sets")
