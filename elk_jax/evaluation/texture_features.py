"""Texture features of many regions, from the counts of `texture_matrices.py`.

Shapes: M groups of counts (images, or images in four directions); G grey levels; P pixels. Features are [M] float64.
Names and formulas follow the image biomarker standardisation initiative (Zwanenburg et al., arXiv 1612.07003,
chapter 3); logarithms are binary. A quotient that is undefined for a uniform region takes the value of the standard, or
else its limit; only a group without any counts has NaN.
"""

from __future__ import annotations

import numpy as np

from elk_jax.evaluation.texture_matrices import Counts

Features = dict[str, np.ndarray]

COARSEST = 1e6  # coarseness of a uniform region, instead of infinity


def intensity_features(values: np.ndarray) -> Features:
    """18 statistics of the grey values [M, P] of M regions of P pixels."""
    values = np.asarray(values, np.float64)
    ordered = np.sort(values, axis=1)
    low, quarter, median, three_quarters, high = (_quantile(ordered, share) for share in (0.1, 0.25, 0.5, 0.75, 0.9))
    mean, variance = values.mean(1), values.var(1)
    spread = np.sqrt(variance)
    varies = spread > 1e-12
    centred = values - mean[:, None]
    squares = centred * centred
    middle = (values >= low[:, None]) & (values <= high[:, None])
    middle |= ~middle.any(1, keepdims=True)
    middle_mean = np.where(middle, values, 0).sum(1) / middle.sum(1)
    middle_deviation = np.where(middle, np.abs(values - middle_mean[:, None]), 0).sum(1) / middle.sum(1)
    return {
        "mean": mean,
        "variance": variance,
        "skewness": _ratio((squares * centred).mean(1), spread**3, varies),
        "excess_kurtosis": np.where(varies, _ratio((squares * squares).mean(1), variance**2, varies) - 3, 0.0),
        "median": median,
        "minimum": ordered[:, 0],
        "percentile_10": low,
        "percentile_90": high,
        "maximum": ordered[:, -1],
        "interquartile_range": three_quarters - quarter,
        "range": ordered[:, -1] - ordered[:, 0],
        "mean_absolute_deviation": np.abs(centred).mean(1),
        "robust_mean_absolute_deviation": middle_deviation,
        "median_absolute_deviation": np.abs(values - median[:, None]).mean(1),
        "coefficient_of_variation": _ratio(spread, mean, mean != 0),
        "quartile_coefficient_of_dispersion": _ratio(
            three_quarters - quarter, three_quarters + quarter, three_quarters + quarter != 0
        ),
        "energy": (values**2).sum(1),
        "root_mean_square": np.sqrt((values**2).mean(1)),
    }


def histogram_features(levels: np.ndarray) -> Features:
    """2 features of the shares of the levels [M, P], 0: outside."""
    size = int(levels.max(initial=0)) + 1
    codes = np.arange(len(levels))[:, None] * size + levels
    count = np.bincount(codes.ravel(), minlength=len(levels) * size).reshape(-1, size)[:, 1:]
    share = count / count.sum(1, keepdims=True)
    return {"entropy": entropy(share), "uniformity": (share**2).sum(1)}


def cooccurrence_features(pairs: Counts, count: np.ndarray | int) -> Features:
    """25 features of the co-occurrences of neighbours (`texture_matrices.neighbours`).

    count: number of levels [M], to which normalised features refer.
    """
    on_diagonal = pairs.first == pairs.second
    total = pairs.totals()
    with np.errstate(invalid="ignore", divide="ignore"):
        margin = (pairs.by_second() + _wide(pairs.by_first(), pairs.by_second())) / (2 * total)[:, None]
        difference = pairs.table(pairs.second - pairs.first, margin.shape[1]) / total[:, None]
        size = 2 * margin.shape[1] - 1
        summed = pairs.table(pairs.first + pairs.second, size) / total[:, None]
    share = pairs.number / total[pairs.group]
    joint = -pairs.sums(share * np.log2(np.where(on_diagonal, share, share / 2)))
    levels = np.arange(margin.shape[1], dtype=np.float64)
    apart, sums = levels, np.arange(size, dtype=np.float64)
    mean, single = margin @ levels, entropy(margin)
    from_mean = levels - mean[:, None]
    variance = (from_mean**2 * margin).sum(1)
    mean_difference, mean_sum = difference @ apart, summed @ sums
    off_sum = sums - mean_sum[:, None]
    squared = off_sum * off_sum
    tendency, contrast = (squared * summed).sum(1), difference @ apart**2
    count = np.broadcast_to(np.asarray(count, np.float64), total.shape)[:, None]
    varies = variance > 1e-12
    found = {
        "joint_maximum": pairs.largest(np.where(on_diagonal, share, share / 2)),
        "joint_average": mean,
        "joint_variance": variance,
        "joint_entropy": joint,
        "difference_average": mean_difference,
        "difference_variance": ((apart - mean_difference[:, None]) ** 2 * difference).sum(1),
        "difference_entropy": entropy(difference),
        "sum_average": mean_sum,
        "sum_variance": tendency,
        "sum_entropy": entropy(summed),
        "angular_second_moment": pairs.sums(np.where(on_diagonal, share**2, share**2 / 2)),
        "contrast": contrast,
        "dissimilarity": mean_difference,
        "inverse_difference": difference @ (1 / (1 + apart)),
        "normalised_inverse_difference": (difference / (1 + apart / count)).sum(1),
        "inverse_difference_moment": difference @ (1 / (1 + apart**2)),
        "normalised_inverse_difference_moment": (difference / (1 + apart**2 / count**2)).sum(1),
        "inverse_variance": difference[:, 1:] @ (1 / apart[1:] ** 2),
        "correlation": np.where(varies, _ratio((tendency - contrast) / 4, variance, varies), 1.0),
        "autocorrelation": summed @ sums**2 / 4 - contrast / 4,
        "cluster_tendency": tendency,
        "cluster_shade": (squared * off_sum * summed).sum(1),
        "cluster_prominence": (squared * squared * summed).sum(1),
        # A symmetric matrix has equal margins, whose entropies sum to both joint entropies of independent margins.
        "information_correlation_1": _ratio(joint - 2 * single, single, single > 1e-12),
        "information_correlation_2": np.sqrt(np.maximum(0.0, 1 - np.exp(-2 * (2 * single - joint)))),
    }
    return {name: np.where(total > 0, value, np.nan) for name, value in found.items()}


def maximal_correlation(pairs: Counts) -> np.ndarray:
    """The maximal correlation coefficient [M] of the co-occurrences; 1 for a single level.

    It is the second largest singular value of the (symmetric) matrix divided by the roots of its margins.
    """
    size = int(pairs.second.max(initial=0)) + 1
    matrix = np.zeros((pairs.groups, size, size))
    matrix[pairs.group, pairs.first, pairs.second] += pairs.number
    matrix += matrix.transpose(0, 2, 1).copy()
    margin = matrix.sum(2)
    root = np.sqrt(np.where(margin > 0, margin, np.inf))
    values = np.sort(np.abs(np.linalg.eigvalsh(matrix / root[:, :, None] / root[:, None])), axis=1)
    second = values[:, -2] if size > 1 else np.ones(pairs.groups)
    present = (margin > 0).sum(1)
    return np.where(present > 1, second, np.where(present == 1, 1.0, np.nan))


def size_features(
    counts: Counts, pixels: np.ndarray | int, small: str, large: str, what: str, measure: str
) -> Features:
    """16 features of runs ("short", "long", "run", "length"), zones ("small", "large", "zone", "size") or dependences
    ("low", "high", "dependence", "count").

    pixels: number of pixels [M] of the regions.
    """
    i, j, n = counts.first.astype(np.float64), counts.second.astype(np.float64), counts.number
    with np.errstate(invalid="ignore", divide="ignore"):
        number = counts.totals()
        i2, j2 = i * i, j * j

        def mean(values: np.ndarray) -> np.ndarray:
            return counts.sums(n * values) / number

        level, size = mean(i), mean(j)
        per_level = (counts.by_first() ** 2).sum(1)
        per_size = _squares_by_second(counts)
        share = n / number[counts.group]
        return {
            f"{small}_{what}_emphasis": mean(1 / j2),
            f"{large}_{what}_emphasis": mean(j2),
            f"low_grey_level_{what}_emphasis": mean(1 / i2),
            f"high_grey_level_{what}_emphasis": mean(i2),
            f"{small}_{what}_low_grey_level_emphasis": mean(1 / (i2 * j2)),
            f"{small}_{what}_high_grey_level_emphasis": mean(i2 / j2),
            f"{large}_{what}_low_grey_level_emphasis": mean(j2 / i2),
            f"{large}_{what}_high_grey_level_emphasis": mean(i2 * j2),
            "grey_level_non_uniformity": per_level / number,
            "normalised_grey_level_non_uniformity": per_level / number**2,
            f"{what}_{measure}_non_uniformity": per_size / number,
            f"normalised_{what}_{measure}_non_uniformity": per_size / number**2,
            f"{what}_percentage": number / pixels,
            "grey_level_variance": mean((i - level[counts.group]) ** 2),
            f"{what}_{measure}_variance": mean((j - size[counts.group]) ** 2),
            f"{what}_entropy": -counts.sums(share * np.log2(share)),
        }


def tone_features(pixels: np.ndarray, differences: np.ndarray) -> Features:
    """5 features of neighbourhood grey tone differences, from pixels [M, G] and summed differences [M, G] per level."""
    rows = [_tone_features(one, summed) for one, summed in zip(pixels, differences, strict=True)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _tone_features(pixels: np.ndarray, differences: np.ndarray) -> dict[str, float]:
    number = pixels.sum()
    present = np.flatnonzero(pixels)
    if not number:  # no pixel has a neighbour
        return {"coarseness": COARSEST, "contrast": 0.0, "busyness": 0.0, "complexity": 0.0, "strength": 0.0}
    level = present.astype(np.float64)
    share, s = pixels[present] / number, differences[present]
    groups = len(present)
    weighted = share * s
    mean = share @ level
    spread = 2 * float(share @ (level - mean) ** 2)  # the sum over pairs of levels, like the others below
    ordered = np.sort(level * share)
    activity = 2 * float((2 * np.arange(groups) - groups + 1) @ ordered)
    far = groups * level**2 - 2 * level * level.sum() + (level**2).sum()
    mixed = 2 * float(weighted @ (np.abs(level[:, None] - level) / (share[:, None] + share)).sum(1))
    return {
        "coarseness": float(min(COARSEST, 1 / weighted.sum())) if weighted.sum() > 1e-12 else COARSEST,
        "contrast": float(spread / (groups * (groups - 1)) * s.sum() / number) if groups > 1 else 0.0,
        "busyness": float(weighted.sum() / activity) if activity > 1e-12 else 0.0,
        "complexity": mixed / number,
        "strength": float(2 * share @ far / s.sum()) if s.sum() > 1e-12 else 0.0,
    }


def averaged(features: Features) -> Features:
    """Features [4 N] of four directions -> [N], the means over the directions that have values."""
    with np.errstate(invalid="ignore"):
        known = {name: np.isfinite(value).reshape(4, -1) for name, value in features.items()}
        return {
            name: np.where(known[name], value.reshape(4, -1), 0).sum(0) / known[name].sum(0)
            for name, value in features.items()
        }


def entropy(p: np.ndarray) -> np.ndarray:
    """Entropy in bits of probabilities [..., K] that sum to 1."""
    return -(p * np.log2(p, out=np.zeros_like(p, dtype=np.float64), where=p > 0)).sum(-1)


def _quantile(ordered: np.ndarray, share: float) -> np.ndarray:
    """A quantile of each row of ordered values, interpolated linearly."""
    place = share * (ordered.shape[1] - 1)
    before = int(place)
    after = min(before + 1, ordered.shape[1] - 1)
    return ordered[:, before] + (place - before) * (ordered[:, after] - ordered[:, before])


def _squares_by_second(counts: Counts) -> np.ndarray:
    """The sum, over second numbers, of the squared number of pairs with that number: [M].

    Zones have few sizes, far apart, so sizes are numbered as they occur.
    """
    occurs = np.bincount(counts.second) > 0
    place = np.cumsum(occurs) - 1
    return (counts.table(place[counts.second], int(occurs.sum())) ** 2).sum(1)


def _wide(table: np.ndarray, like: np.ndarray) -> np.ndarray:
    """A table [M, A] padded with columns of zeros to the width of `like`."""
    return np.pad(table, ((0, 0), (0, like.shape[1] - table.shape[1])))


def _ratio(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> np.ndarray:
    """a / b where defined, else 0."""
    return np.divide(a, b, out=np.zeros_like(a, dtype=np.float64), where=where)
