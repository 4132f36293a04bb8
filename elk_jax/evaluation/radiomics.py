"""Radiomics of image patches: 74 features of grey values and texture, without shape or size.

Shapes: H, W patch in pixels; N patches; F features; G grey levels. Patches are [H, W] float in [0, 1].
Definitions: Zwanenburg et al., Image biomarker standardisation initiative (arXiv 1612.07003), 2-D, averaged over the
four directions. Frechet radiomics distance: Konz, Osuala et al., arXiv 2412.01496.
"""

from __future__ import annotations

import numpy as np

from elk_jax.errors import UserError
from elk_jax.evaluation import frechet, texture_features, texture_matrices

LEVELS = 32
"""Grey levels between black and white. Their width is fixed, so that contrast matters; few enough for small lesions."""

LEFT_OUT = (
    "cooccurrence_dissimilarity",  # equals the difference average
    "cooccurrence_sum_average",  # equals twice the joint average
    "cooccurrence_cluster_tendency",  # equals the sum variance
    "intensity_energy",  # this and the next grow with the region; a mean or normalised version of each is included
    *("run_grey_level_non_uniformity", "run_run_length_non_uniformity"),
    *("zone_grey_level_non_uniformity", "zone_zone_size_non_uniformity"),
)
"""Those of the 82 published features that are redundant, or that measure the size, which is compared separately."""

LIMIT = 6.0
"""Standard deviations at which a feature is clipped in the robust distance."""


Features = dict[str, float]


def radiomics(patch: np.ndarray, mask: np.ndarray | None = None, count: int = LEVELS) -> Features:
    """All features of the region `mask` [H, W] bool (None: all) of patch [H, W]: finite floats, always the same names.

    UserError for an empty mask, or values that are not finite.
    """
    mask = np.ones(patch.shape, bool) if mask is None else mask.astype(bool)
    values = patch[mask].astype(np.float64)
    if not len(values):
        raise UserError("the mask is empty", where="mask")
    if not np.isfinite(values).all():
        raise UserError("NaN or infinity found", where="patch")
    features = {
        **_named("intensity", texture_features.intensity_features(values[None])),
        **texture(np.where(mask, discretise(patch, count), 0).astype(np.int32)[None], count),
    }
    return {name: float(value[0]) for name, value in features.items() if name not in LEFT_OUT}


def discretise(patch: np.ndarray, count: int) -> np.ndarray:
    """Grey values in [0, 1] -> levels 1 to count of equal width, [H, W] int32."""
    return np.clip(np.floor(np.nan_to_num(patch) * count) + 1, 1, count).astype(np.int32)


def texture(levels: np.ndarray, count: int) -> texture_features.Features:
    """2 histogram and 62 texture features of levels [N, H, W] (0: outside), [N]; directions are averaged."""
    pixels = (levels > 0).sum((1, 2))
    pairs = texture_matrices.neighbours(levels)
    lonely = pairs.totals().reshape(4, -1).sum(0) == 0
    if lonely.any():  # single pixels, which are uniform
        twice = np.repeat(levels.max((1, 2))[lonely], 2).reshape(-1, 1, 2)
        of_lonely = texture_features.cooccurrence_features(texture_matrices.neighbours(twice), count)
    found = texture_features.averaged(texture_features.cooccurrence_features(pairs, count))
    if lonely.any():
        for name, values in texture_features.averaged(of_lonely).items():
            found[name][lonely] = values
    runs, zones = texture_matrices.runs(levels), texture_matrices.zones(levels)
    of_runs = texture_features.size_features(runs, np.tile(pixels, 4), "short", "long", "run", "length")
    return {
        **_named("histogram", texture_features.histogram_features(levels.reshape(len(levels), -1))),
        **_named("cooccurrence", found),
        **_named("run", texture_features.averaged(of_runs)),
        **_named("zone", texture_features.size_features(zones, pixels, "small", "large", "zone", "size")),
        **_named("tone", texture_features.tone_features(*texture_matrices.tone_differences(levels))),
    }


def standardise(reference: np.ndarray, *others: np.ndarray, limit: float = np.inf) -> tuple[np.ndarray, ...]:
    """Feature tables [N, F] standardised by mean and standard deviation of `reference`, and clipped to +-`limit`.

    Features that do not vary (`varying`) are dropped from all.
    """
    usable = varying(reference, *others)
    mean, spread = reference[:, usable].mean(0), reference[:, usable].std(0)
    return tuple(np.clip((table[:, usable] - mean) / spread, -limit, limit) for table in (reference, *others))


def varying(reference: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """The features [F] that are finite in all tables [N, F] and, apart from rounding, not constant in the reference."""
    spread = reference.std(0)
    finite = np.isfinite(np.concatenate((reference, *others))).all(0)
    return finite & (spread > 1e-12 * (1 + np.abs(reference).max(0)))


def frechet_radiomics(real: np.ndarray, synthetic: np.ndarray) -> dict[str, float | int | None]:
    """Frechet distance of feature tables [N, F] and [M, F], standardised by the real one.

    Returns `distance` (squared), its natural logarithm `log_distance` (None at 0), `robust_distance`, with deviations
    clipped to LIMIT, and the counts. Clipping matters because a single uniform or saturated patch deviates by a hundred
    standard deviations in the run and zone emphases, and then dominates `distance`. With fewer patches than features,
    all distances are biased upwards: compare them with those of two real sets of the same size
    (`frechet.compare_sets`).
    """
    tables = np.asarray(real, np.float64), np.asarray(synthetic, np.float64)
    a, b = standardise(*tables)
    distance = frechet.frechet_distance(a, b)
    return {
        "distance": distance,
        "log_distance": float(np.log(distance)) if distance > 0 else None,
        "robust_distance": frechet.frechet_distance(*standardise(*tables, limit=LIMIT)),
        "real": len(a),
        "synthetic": len(b),
        "features": a.shape[1],
    }


def _named(family: str, features: texture_features.Features) -> texture_features.Features:
    return {f"{family}_{name}": value for name, value in features.items()}
