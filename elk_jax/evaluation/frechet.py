"""Distances between two sets of images, in any features.

Shapes: N and M images, D features. Features are [N, D], from any extractor.
Sources: Heusel et al. 2017 (Frechet distance); Binkowski et al. 2018 (kernel distance).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from elk_jax.errors import UserError


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a set of features."""

    mean: np.ndarray  # [D]
    factor: np.ndarray  # [K, D]: covariance = factor.T @ factor, K the smaller of N and D
    count: int

    @property
    def covariance(self) -> np.ndarray:
        """[D, D], with N - 1 in the denominator."""
        return self.factor.T @ self.factor


def moments(features: np.ndarray) -> Moments:
    """Of features [N, D]. UserError for fewer than two images or values that are not finite."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise UserError(f"features of shape {features.shape}", todo="give at least two images, [images, features]")
    if not np.isfinite(features).all():
        raise UserError("features are NaN or infinite", todo="leave out the images or features concerned")
    mean = features.mean(0)
    factor = (features - mean) / np.sqrt(len(features) - 1)
    if len(factor) > factor.shape[1]:
        factor = np.linalg.qr(factor, mode="r")
    return Moments(mean, factor, len(features))


def distance_of(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + Tr(C_a + C_b - 2 (C_a C_b)^(1/2)), never negative.

    With C = F'F the last trace is the sum of the singular values of F_a F_b': no root of a matrix is taken, so that
    singular covariances (fewer images than features) need no correction.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(f"{len(a.mean)} features against {len(b.mean)}", todo="use one extractor for both sets")
    cross = np.linalg.svd(a.factor @ b.factor.T, compute_uv=False).sum()
    squared = ((a.mean - b.mean) ** 2).sum() + (a.factor**2).sum() + (b.factor**2).sum() - 2 * cross
    return float(max(squared, 0.0))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet (2-Wasserstein) distance of the Gaussians fitted to features [N, D] and [M, D].

    Biased upwards by sampling, the more the fewer images: only values of the same N and M may be compared, and the
    yardstick for a synthetic set is the distance between two real ones (`compare_sets`).
    """
    return distance_of(moments(a), moments(b))


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared maximum mean discrepancy under the kernel (x'y / D + 1)^3, unbiased at any N and M; so it can be
    slightly negative. Features [N, D] and [M, D]."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape[1] != b.shape[1]:
        raise UserError(f"{a.shape[1]} features against {b.shape[1]}", todo="use one extractor for both sets")
    n, m = len(a), len(b)
    if min(n, m) < 2:
        raise UserError(f"{n} and {m} images", todo="give at least two of each")

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / a.shape[1] + 1) ** 3

    within_a, within_b = kernel(a, a), kernel(b, b)
    return float(
        (within_a.sum() - np.trace(within_a)) / (n * (n - 1))
        + (within_b.sum() - np.trace(within_b)) / (m * (m - 1))
        - 2 * kernel(a, b).mean()
    )


def compare_sets(
    real: np.ndarray, synthetic: np.ndarray, patients: Sequence[str], seed: int = 0, splits: int = 10
) -> dict[str, float | int | None]:
    """How far synthetic images [M, D] are from real ones [N, D], against how far real ones are from each other.

    patients: of each real image. The real set is cut in two by patient, `splits` times; then
        `real_to_real`: mean Frechet distance of the halves, and
        `synthetic_to_real`: that of a synthetic sample as large as one half to the other half, so that the small-sample
        bias is the same and the two can be compared. None with fewer than two patients or too few images.
    Also `distance` and `kernel_distance` of the whole sets, and the counts `real`, `synthetic`, `half`.
    """
    rng = np.random.default_rng(seed)
    real, synthetic = np.asarray(real, np.float64), np.asarray(synthetic, np.float64)
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    if len(owner) != len(real):
        raise ValueError(f"{len(owner)} patients for {len(real)} images")
    within, across, sizes = [], [], []
    for _ in range(splits):
        first = np.isin(owner, rng.permutation(len(names))[: len(names) // 2])
        size = min(first.sum(), (~first).sum(), len(synthetic))
        if size < 2:
            continue
        one, other = (rng.permutation(np.flatnonzero(side))[:size] for side in (first, ~first))
        drawn = rng.permutation(len(synthetic))[:size]
        within.append(frechet_distance(real[one], real[other]))
        across.append(frechet_distance(real[one], synthetic[drawn]))
        sizes.append(size)
    return {
        "distance": frechet_distance(real, synthetic),
        "kernel_distance": kernel_distance(real, synthetic),
        "real_to_real": float(np.mean(within)) if within else None,
        "synthetic_to_real": float(np.mean(across)) if across else None,
        "real": len(real),
        "synthetic": len(synthetic),
        "half": int(np.mean(sizes)) if sizes else 0,
    }
