"""Texture features, from the counts of `texture_matrices.py`.

Shapes: G grey levels; R runs or zones. Names and formulas follow the image biomarker standardisation initiative
(Zwanenburg et al., arXiv 1612.07003, chapter 3); logarithms are binary. A quotient that is undefined for a
uniform region takes the value of the standard, or else its limit; it is never NaN.
"""

from __future__ import annotations

import numpy as np

Features = dict[str, float]

COARSEST = 1e6  # coarseness of a uniform region, instead of infinity


def cooccurrence_features(matrix: np.ndarray) -> Features:
    """25 features of one symmetric co-occurrence matrix [G, G] with at least one pair."""
    p = matrix / matrix.sum()
    levels = np.arange(1, len(p) + 1, dtype=np.float64)
    i, j = levels[:, None], levels[None]
    apart = np.abs(i - j)
    margin = p.sum(1)
    difference = np.bincount(apart.astype(int).ravel(), weights=p.ravel(), minlength=len(p))
    total = np.bincount((i + j).astype(int).ravel(), weights=p.ravel(), minlength=2 * len(p) + 1)
    k, sums = np.arange(len(difference), dtype=np.float64), np.arange(len(total), dtype=np.float64)
    mean = float(levels @ margin)
    variance = float((levels - mean) ** 2 @ margin)
    mean_difference, mean_sum = float(k @ difference), float(sums @ total)
    from_mean = i + j - 2 * mean
    product = np.outer(margin, margin)
    joint, single = entropy(p), entropy(margin)
    crossed = -float((p * _log2(product)).sum())
    separate = entropy(product)
    off = apart > 0
    return {
        "joint_maximum": float(p.max()),
        "joint_average": mean,
        "joint_variance": variance,
        "joint_entropy": joint,
        "difference_average": mean_difference,
        "difference_variance": float((k - mean_difference) ** 2 @ difference),
        "difference_entropy": entropy(difference),
        "sum_average": mean_sum,
        "sum_variance": float((sums - mean_sum) ** 2 @ total),
        "sum_entropy": entropy(total),
        "angular_second_moment": float((p**2).sum()),
        "contrast": float(k**2 @ difference),
        "dissimilarity": mean_difference,
        "inverse_difference": float((p / (1 + apart)).sum()),
        "normalised_inverse_difference": float((p / (1 + apart / len(p))).sum()),
        "inverse_difference_moment": float((p / (1 + apart**2)).sum()),
        "normalised_inverse_difference_moment": float((p / (1 + apart**2 / len(p) ** 2)).sum()),
        "inverse_variance": float((p[off] / apart[off] ** 2).sum()),
        "correlation": float(((i - mean) * (j - mean) * p).sum() / variance) if variance > 1e-12 else 1.0,
        "autocorrelation": float((i * j * p).sum()),
        "cluster_tendency": float((from_mean**2 * p).sum()),
        "cluster_shade": float((from_mean**3 * p).sum()),
        "cluster_prominence": float((from_mean**4 * p).sum()),
        "information_correlation_1": (joint - crossed) / single if single > 1e-12 else 0.0,
        "information_correlation_2": float(np.sqrt(max(0.0, 1 - np.exp(-2 * (separate - joint))))),
    }


def size_features(levels: np.ndarray, sizes: np.ndarray, pixels: int, what: str, measure: str) -> Features:
    """16 features of runs (what="run", measure="length") or zones ("zone", "size"): level [R] and size [R] of each.

    pixels: number of pixels of the region.
    """
    i, j = levels.astype(np.float64), sizes.astype(np.float64)
    number = len(i)
    per_level = np.bincount(levels).astype(np.float64)
    per_size = np.bincount(sizes).astype(np.float64)
    together = np.unique(np.stack([levels, sizes]), axis=1, return_counts=True)[1]
    small, large = ("short", "long") if what == "run" else ("small", "large")
    return {
        f"{small}_{what}_emphasis": float((1 / j**2).mean()),
        f"{large}_{what}_emphasis": float((j**2).mean()),
        f"low_grey_level_{what}_emphasis": float((1 / i**2).mean()),
        f"high_grey_level_{what}_emphasis": float((i**2).mean()),
        f"{small}_{what}_low_grey_level_emphasis": float((1 / (i * j) ** 2).mean()),
        f"{small}_{what}_high_grey_level_emphasis": float(((i / j) ** 2).mean()),
        f"{large}_{what}_low_grey_level_emphasis": float(((j / i) ** 2).mean()),
        f"{large}_{what}_high_grey_level_emphasis": float(((i * j) ** 2).mean()),
        "grey_level_non_uniformity": float((per_level**2).sum() / number),
        "normalised_grey_level_non_uniformity": float((per_level**2).sum() / number**2),
        f"{what}_{measure}_non_uniformity": float((per_size**2).sum() / number),
        f"normalised_{what}_{measure}_non_uniformity": float((per_size**2).sum() / number**2),
        f"{what}_percentage": number / pixels,
        "grey_level_variance": float(i.var()),
        f"{what}_{measure}_variance": float(j.var()),
        f"{what}_entropy": entropy(together / number),
    }


def tone_features(pixels: np.ndarray, differences: np.ndarray) -> Features:
    """5 features of neighbourhood grey tone differences, from pixels [G] and summed differences [G] of each level."""
    number = pixels.sum()
    present = np.flatnonzero(pixels)
    if not number:  # no pixel has a neighbour
        return {"coarseness": COARSEST, "contrast": 0.0, "busyness": 0.0, "complexity": 0.0, "strength": 0.0}
    level = present + 1.0
    share, s = pixels[present] / number, differences[present]
    weighted = share * s
    apart = np.abs(level[:, None] - level)
    groups = len(present)
    spread = (np.outer(share, share) * apart**2).sum() / (groups * (groups - 1)) if groups > 1 else 0.0
    activity = np.abs((level * share)[:, None] - level * share).sum()
    mixed = (weighted[:, None] + weighted) / (share[:, None] + share)
    return {
        "coarseness": float(min(COARSEST, 1 / weighted.sum())) if weighted.sum() > 1e-12 else COARSEST,
        "contrast": float(spread * s.sum() / number),
        "busyness": float(weighted.sum() / activity) if activity > 1e-12 else 0.0,
        "complexity": float((apart * mixed).sum() / number),
        "strength": float(((share[:, None] + share) * apart**2).sum() / s.sum()) if s.sum() > 1e-12 else 0.0,
    }


def entropy(p: np.ndarray) -> float:
    """Entropy in bits of probabilities that sum to 1."""
    return -float((p * _log2(p)).sum())


def _log2(p: np.ndarray) -> np.ndarray:
    return np.log2(p, out=np.zeros_like(p, dtype=np.float64), where=p > 0)
