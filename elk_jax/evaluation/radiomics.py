"""Radiomics of image patches: 74 features of grey values and texture, none of shape or size.

Shapes: H, W patch in pixels; N patches; F features; G grey levels. Patches are [H, W] float in [0, 1].
Definitions: Zwanenburg et al., Image biomarker standardisation initiative (arXiv 1612.07003), 2-D, averaged over the
four directions. Frechet radiomics distance: Konz, Osuala et al., arXiv 2412.01496.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from elk_jax.errors import UserError
from elk_jax.evaluation import frechet, texture_matrices
from elk_jax.evaluation.texture_features import Features, cooccurrence_features, entropy, size_features, tone_features

LEVELS = 32
"""Grey levels between black and white. Their width is fixed, so that contrast counts; few enough for small lesions."""

LEFT_OUT = (
    "cooccurrence_dissimilarity",  # equals the difference average
    "cooccurrence_sum_average",  # equals twice the joint average
    "cooccurrence_cluster_tendency",  # equals the sum variance
    "intensity_energy",  # this and the next grow with the region; a mean or normalised form of each is included
    *("run_grey_level_non_uniformity", "run_run_length_non_uniformity"),
    *("zone_grey_level_non_uniformity", "zone_zone_size_non_uniformity"),
)
"""Features of the 82 published ones that are redundant, or measure the size, which is compared separately."""

LIMIT = 6.0
"""Standard deviations at which a feature is clipped in the robust distance."""


def radiomics(patch: np.ndarray, mask: np.ndarray | None = None, count: int = LEVELS) -> Features:
    """All features of the region `mask` [H, W] bool (None: all) of patch [H, W]: finite floats, always the same names.

    UserError for an empty mask, or values that are not finite.
    """
    mask = np.ones(patch.shape, bool) if mask is None else mask.astype(bool)
    values = patch[mask].astype(np.float64)
    if not len(values):
        raise UserError("no pixels", where="mask")
    if not np.isfinite(values).all():
        raise UserError("NaN or infinity", where="patch")
    features = {
        **_named("intensity", intensity_features(values)),
        **texture(np.where(mask, discretise(patch, count), 0).astype(np.int32), count),
    }
    return {name: value for name, value in features.items() if name not in LEFT_OUT}


def discretise(patch: np.ndarray, count: int) -> np.ndarray:
    """Grey values in [0, 1] -> levels 1 to count of equal width, [H, W] int32."""
    return np.clip(np.floor(np.nan_to_num(patch) * count) + 1, 1, count).astype(np.int32)


def intensity_features(values: np.ndarray) -> Features:
    """18 statistics of grey values [P]."""
    low, quarter, median, three_quarters, high = np.quantile(values, [0.1, 0.25, 0.5, 0.75, 0.9])
    mean, variance = values.mean(), values.var()
    spread = np.sqrt(variance)
    even = spread <= 1e-12
    centred = values - mean
    robust = values[(values >= low) & (values <= high)]
    robust = robust if len(robust) else values
    features = {
        "mean": mean,
        "variance": variance,
        "skewness": 0.0 if even else (centred**3).mean() / spread**3,
        "excess_kurtosis": 0.0 if even else (centred**4).mean() / variance**2 - 3,
        "median": median,
        "minimum": values.min(),
        "percentile_10": low,
        "percentile_90": high,
        "maximum": values.max(),
        "interquartile_range": three_quarters - quarter,
        "range": np.ptp(values),
        "mean_absolute_deviation": np.abs(centred).mean(),
        "robust_mean_absolute_deviation": np.abs(robust - robust.mean()).mean(),
        "median_absolute_deviation": np.abs(values - median).mean(),
        "coefficient_of_variation": spread / mean if mean else 0.0,
        "quartile_coefficient_of_dispersion": (
            (three_quarters - quarter) / (three_quarters + quarter) if three_quarters + quarter else 0.0
        ),
        "energy": (values**2).sum(),
        "root_mean_square": np.sqrt((values**2).mean()),
    }
    return {name: float(value) for name, value in features.items()}


def texture(levels: np.ndarray, count: int) -> Features:
    """2 histogram and 62 texture features of levels [H, W] (0: outside); directions are averaged."""
    inside = levels[levels > 0]
    share = np.bincount(inside) / len(inside)
    pairs = texture_matrices.cooccurrences(levels, count)
    pairs = pairs[pairs.sum((1, 2)) > 0]
    if not len(pairs):  # a single pixel, which is uniform
        pairs = np.zeros((1, count, count))
        pairs[0, inside[0] - 1, inside[0] - 1] = 1
    runs = texture_matrices.runs(levels)
    zone_levels, zone_sizes = texture_matrices.zones(levels)
    return {
        **_named("histogram", {"entropy": entropy(share), "uniformity": float((share**2).sum())}),
        **_named("cooccurrence", _mean([cooccurrence_features(matrix) for matrix in pairs])),
        **_named("run", _mean([size_features(i, j, len(inside), "run", "length") for i, j in runs])),
        **_named("zone", size_features(zone_levels, zone_sizes, len(inside), "zone", "size")),
        **_named("tone", tone_features(*texture_matrices.tone_differences(levels, count))),
    }


def standardise(reference: np.ndarray, *others: np.ndarray, limit: float = np.inf) -> tuple[np.ndarray, ...]:
    """Feature tables [N, F] standardised by mean and standard deviation of `reference`, and clipped to +-`limit`.

    Features that are not finite in some table, or constant in the reference, are dropped from all.
    """
    tables = (reference, *others)
    spread = reference.std(0)
    usable = np.isfinite(np.concatenate(tables)).all(0) & (spread > 1e-12 * (1 + np.abs(reference).max(0)))
    mean = reference[:, usable].mean(0)
    return tuple(np.clip((table[:, usable] - mean) / spread[usable], -limit, limit) for table in tables)


def frechet_radiomics(real: np.ndarray, synthetic: np.ndarray) -> dict[str, float | int | None]:
    """Frechet distance of feature tables [N, F] and [M, F], standardised by the real one.

    Returns `distance` (squared), its natural logarithm `log_distance` (None at 0), `robust_distance`, with deviations
    clipped to LIMIT, and the counts. Clipping matters since a single uniform or saturated patch deviates by a hundred
    standard deviations in the run and zone emphases, and then dominates `distance`. With fewer patches than features
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


def _named(family: str, features: Features) -> Features:
    return {f"{family}_{name}": value for name, value in features.items()}


def _mean(features: Sequence[Features]) -> Features:
    return {name: float(np.mean([one[name] for one in features])) for name in features[0]}
