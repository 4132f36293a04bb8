"""The features compared by the Frechet radiomics distance, for many images, as in PyRadiomics and frd-score.

Shapes: N images; H, W size of an image in pixels; F features; B images of one size, in K filters.
Images are [H, W] grey values as in files, 0 to 255. Regions are [H, W] bool.

Sources: PyRadiomics (van Griethuysen et al. 2017), frd-score 1.0.1 (Osuala et al.; Konz, Osuala et al.,
arXiv 2412.01496). The names are theirs. Values differ from `radiomics.py`: here bins have a fixed width instead of a
fixed number, and start at the darkest pixel of the region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from elk_jax.errors import UserError
from elk_jax.evaluation import radiomics_images, texture_features, texture_matrices
from elk_jax.evaluation.texture_features import Features
from elk_jax.threads import ProgressBar, in_parts, map_in_threads, no_bar

DEVIATIONS = (2.0, 3.0, 4.0, 5.0)
"""Standard deviations of the Laplacian of Gaussians, in pixels of the image."""

MOST_PIXELS = 1 << 18
"""Pixels of all filtered images that are processed at once, so that they stay in the cache of a core."""


@dataclass(frozen=True)
class FeatureSet:
    """The features of an image that are measured, and how.

    prepared: the image is first normalised to a deviation of 100 and halved, and its statistics before and after are
    also features. filters: of the prepared image. families: of features, for every filter (shape: once).
    bin_width: grey values per level. shift: added to grey values before they are squared.
    """

    name: str
    prepared: bool
    filters: tuple[str, ...]
    families: tuple[str, ...]
    bin_width: float
    shift: float


V0 = FeatureSet(
    "v0", False, ("original",), ("shape", "firstorder", "glcm", "glrlm", "gldm", "glszm", "ngtdm"), 25.0, 0.0
)
"""102 features of an image (Osuala et al. 2024)."""

V1 = FeatureSet("v1", True, ("original", "wavelet"), ("firstorder", "glcm", "glrlm", "glszm", "ngtdm"), 5.0, 300.0)
"""398 features of an image (Konz, Osuala et al. 2026). PyRadiomics skips the Laplacians for a single slice."""

V1_LOG = FeatureSet("v1_log", True, ("original", "log", "wavelet"), V1.families, V1.bin_width, V1.shift)
"""V1 with the Laplacians that its settings request: 706 features."""

FEATURE_SETS = {one.name: one for one in (V0, V1, V1_LOG)}

_CAPITALS = {"grey": "Gray"}


def _words(name: str) -> str:
    return "".join(_CAPITALS.get(word, word.capitalize()) for word in name.split("_"))


FIRSTORDER = {
    "10Percentile": "percentile_10",
    "90Percentile": "percentile_90",
    **{
        _words(name): name
        for name in ("interquartile_range", "maximum", "mean_absolute_deviation", "mean", "median", "minimum", "range")
        + ("robust_mean_absolute_deviation", "skewness", "variance")
    },
}
GLCM = {
    "Autocorrelation": "autocorrelation",
    "ClusterProminence": "cluster_prominence",
    "ClusterShade": "cluster_shade",
    "ClusterTendency": "cluster_tendency",
    "Contrast": "contrast",
    "Correlation": "correlation",
    "DifferenceAverage": "difference_average",
    "DifferenceEntropy": "difference_entropy",
    "DifferenceVariance": "difference_variance",
    "Id": "inverse_difference",
    "Idm": "inverse_difference_moment",
    "Idmn": "normalised_inverse_difference_moment",
    "Idn": "normalised_inverse_difference",
    "Imc1": "information_correlation_1",
    "Imc2": "information_correlation_2",
    "InverseVariance": "inverse_variance",
    "JointAverage": "joint_average",
    "JointEnergy": "angular_second_moment",
    "JointEntropy": "joint_entropy",
    "MaximumProbability": "joint_maximum",
    "SumEntropy": "sum_entropy",
    "SumSquares": "joint_variance",
}
ONLY_V0 = {"SumAverage": "sum_average"}
NGTDM = {_words(name): name for name in ("busyness", "coarseness", "complexity", "contrast", "strength")}


def _sizes(small: str, large: str, thing: str, what: str, size: str, variance: str) -> dict[str, str]:
    """PyRadiomics' names for the features of `texture_features.size_features`."""
    grey = "GrayLevel"
    return {
        f"{small}Emphasis": f"small_{what}_emphasis",
        f"{large}Emphasis": f"large_{what}_emphasis",
        f"Low{grey}{thing}Emphasis": f"low_grey_level_{what}_emphasis",
        f"High{grey}{thing}Emphasis": f"high_grey_level_{what}_emphasis",
        f"{small}Low{grey}Emphasis": f"small_{what}_low_grey_level_emphasis",
        f"{small}High{grey}Emphasis": f"small_{what}_high_grey_level_emphasis",
        f"{large}Low{grey}Emphasis": f"large_{what}_low_grey_level_emphasis",
        f"{large}High{grey}Emphasis": f"large_{what}_high_grey_level_emphasis",
        f"{grey}NonUniformity": "grey_level_non_uniformity",
        f"{grey}NonUniformityNormalized": "normalised_grey_level_non_uniformity",
        f"{size}NonUniformity": f"{what}_size_non_uniformity",
        f"{size}NonUniformityNormalized": f"normalised_{what}_size_non_uniformity",
        f"{what.capitalize()}Percentage": f"{what}_percentage",
        f"{grey}Variance": "grey_level_variance",
        f"{variance}Variance": f"{what}_size_variance",
        f"{what.capitalize()}Entropy": f"{what}_entropy",
    }


GLRLM = _sizes("ShortRun", "LongRun", "Run", "run", "RunLength", "Run")
GLSZM = _sizes("SmallArea", "LargeArea", "Zone", "zone", "SizeZone", "Zone")
GLDM = {
    name: own
    for name, own in _sizes("SmallDependence", "LargeDependence", "", "dependence", "Dependence", "Dependence").items()
    if name not in ("DependencePercentage", "GrayLevelNonUniformityNormalized")
}


class Table(NamedTuple):
    """names of F features, and their values [N, F] float64; a row of NaN is an image with undefined features."""

    names: tuple[str, ...]
    values: np.ndarray


def table(
    images: Sequence[np.ndarray],
    kind: FeatureSet = V1,
    masks: Sequence[np.ndarray | None] | None = None,
    progress: ProgressBar = no_bar,
    titles: Sequence[str] | None = None,
) -> Table:
    """The features of images of any sizes, inside their masks (None: everywhere).

    titles: names of the images in errors; None: by their number.

    A constant image has no deviation to divide by: with a prepared set its features are NaN, whereas PyRadiomics raises
    an error.
    UserError for no image, images that do not consist of grey values, non-finite values, and a mask of another size,
    with fewer than two pixels or, with a prepared set, narrower than four.
    """
    if not len(images):
        raise UserError("no image", where="images", todo="give at least two")
    chosen = [None] * len(images) if masks is None else list(masks)
    if len(chosen) != len(images):
        raise UserError(f"{len(chosen)} masks for {len(images)} images", where="masks", todo="give one for each image")
    called = [f"image {number + 1}" for number in range(len(images))] if titles is None else titles
    regions = [_region(image, mask, kind, where) for image, mask, where in zip(images, chosen, called)]
    places: dict[tuple, list[int]] = {}
    for number, (image, region) in enumerate(zip(images, regions)):
        places.setdefault((image.shape, radiomics_images.bounds(region)), []).append(number)
    jobs = [job for (shape, _), numbers in places.items() for job in _jobs(shape, numbers, kind)]

    def work(number: int) -> Table:
        chosen = jobs[number]
        return _of_one_size([images[k] for k in chosen], [regions[k] for k in chosen], kind)

    parts = map_in_threads(work, len(jobs), in_parts(progress, [len(job) for job in jobs]))
    values = np.empty((len(images), len(parts[0].names)))
    for numbers, part in zip(jobs, parts):
        values[numbers] = part.values
    return Table(parts[0].names, values)


def _region(image: np.ndarray, mask: np.ndarray | None, kind: FeatureSet, where: str) -> np.ndarray:
    if image.ndim != 2:
        raise UserError(f"the shape is {image.shape}", where=where, todo="give grey values [height, width]")
    region = np.ones(image.shape, bool) if mask is None else np.asarray(mask, bool)
    if region.shape != image.shape:
        sizes = [" x ".join(map(str, one.shape[::-1])) for one in (region, image)]
        raise UserError(f"the mask has {sizes[0]} px, the image {sizes[1]}", where=where, todo="give masks that fit")
    if not np.isfinite(image).all():
        raise UserError("NaN or infinity found", where=where, todo="leave the image out")
    if region.sum() < 2:
        raise UserError(f"the region has {region.sum()} pixels", where=where, todo="give at least two, for texture")
    if kind.prepared and min(last - first for first, last in radiomics_images.bounds(region)) < 3:
        todo = f"give images or regions of at least 4 pixels in each direction, or leave {kind.name} out"
        raise UserError("the region is too narrow for halving", where=where, todo=todo)
    return region


def _jobs(shape: tuple[int, ...], numbers: list[int], kind: FeatureSet) -> list[list[int]]:
    """The images of one size, in parts that fit into the cache."""
    pixels = shape[0] * shape[1]
    if kind.prepared:
        pixels = pixels // 4 * len(_filter_names(kind))
    size = max(1, MOST_PIXELS // max(pixels, 1))
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


def _filter_names(kind: FeatureSet) -> tuple[str, ...]:
    of_kind = {
        "original": ("original",),
        "log": tuple(f"log-sigma-{str(one).replace('.', '-')}-mm-3D" for one in DEVIATIONS),
        "wavelet": radiomics_images.WAVELETS,
    }
    return tuple(name for filtered in kind.filters for name in of_kind[filtered])


def _of_one_size(images: list[np.ndarray], regions: list[np.ndarray], kind: FeatureSet) -> Table:
    """The features of images of one size whose regions have the same bounds."""
    found: Features = {}
    names = _filter_names(kind)
    whole = np.stack([image.astype(np.float64) for image in images])
    region = np.stack(regions)
    if kind.prepared:
        small, inside = radiomics_images.halved(radiomics_images.normalised(whole), region)
        found |= _diagnostics(whole, region, small, inside)
    else:
        (top, bottom), (left, right) = radiomics_images.bounds(region[0])
        small = whole[:, top : bottom + 1, left : right + 1]
        inside = region[:, top : bottom + 1, left : right + 1]
    defined = np.isfinite(small).all((1, 2)) & (inside.sum((1, 2)) > 1)
    if "shape" in kind.families:
        found |= _many("shape2D", [shape_features(one) for one in inside])
    filtered: dict[str, np.ndarray] = {}
    for one in kind.filters:
        if one == "original":
            filtered["original"] = small
        elif one == "wavelet":
            filtered |= radiomics_images.wavelets(small)
        else:
            filtered |= radiomics_images.laplacians(small, DEVIATIONS, spacing=2.0)
    values = np.concatenate([np.where(defined[:, None, None], filtered[name], 0) for name in names])
    of_filters = _measured(values, np.tile(inside | ~defined[:, None, None], (len(names), 1, 1)), kind)
    for prefix, at in zip(names, range(0, len(values), len(images))):
        for name, value in of_filters.items():
            column = np.where(defined, value[at : at + len(images)], np.nan)
            found[name if prefix == "original" else f"{prefix}_{name}"] = column
    return Table(tuple(found), np.stack(list(found.values()), axis=1))


def _measured(values: np.ndarray, inside: np.ndarray, kind: FeatureSet) -> Features:
    """The features of filtered images [B, h, w] inside their regions, of every family except shape: [B] each."""
    pixels = inside.sum((1, 2))
    levels = binned(values, inside, kind.bin_width)
    found = _first_order(values, inside, levels, kind)
    families: dict[str, tuple[dict[str, str], Features]] = {}
    pairs = texture_matrices.neighbours(levels)
    glcm = texture_features.cooccurrence_features(pairs, np.tile(levels.max((1, 2)), 4))
    own = GLCM if kind.prepared else GLCM | ONLY_V0
    families["glcm"] = own, texture_features.averaged(glcm)
    if not kind.prepared:
        correlation = texture_features.averaged({"MCC": texture_features.maximal_correlation(pairs)})
        found |= _named("glcm", correlation)
    sizes = "small", "large"
    if "glrlm" in kind.families:
        runs = texture_matrices.runs(levels)
        of_runs = texture_features.size_features(runs, np.tile(pixels, 4), *sizes, "run", "size")
        families["glrlm"] = GLRLM, texture_features.averaged(of_runs)
    if "gldm" in kind.families:
        alike = texture_matrices.dependences(levels)
        families["gldm"] = GLDM, texture_features.size_features(alike, pixels, *sizes, "dependence", "size")
    if "glszm" in kind.families:
        zones = texture_matrices.zones(levels)
        families["glszm"] = GLSZM, texture_features.size_features(zones, pixels, *sizes, "zone", "size")
    tones = texture_features.tone_features(*texture_matrices.tone_differences(levels))
    families["ngtdm"] = NGTDM, tones
    for family, (theirs, features) in families.items():
        found |= _named(family, {name: features[ours] for name, ours in theirs.items()})
    return found


def binned(values: np.ndarray, inside: np.ndarray, width: float) -> np.ndarray:
    """Grey values [B, h, w] -> levels [B, h, w] int32 of this width, 1 for the darkest of each region; 0 outside.

    The boundaries between levels are multiples of the width.
    """
    low = np.where(inside, values, np.inf).min((1, 2), keepdims=True)
    low = low - np.mod(low, width)
    return np.where(inside, np.floor((values - low) / width) + 1, 0).astype(np.int32)


def _first_order(values: np.ndarray, inside: np.ndarray, levels: np.ndarray, kind: FeatureSet) -> Features:
    if (inside == inside[0]).all():
        return _named("firstorder", _first_order_alike(values[:, inside[0]], levels[:, inside[0]], kind))
    rows = [
        _first_order_alike(one[region][None], level[region][None], kind)
        for one, region, level in zip(values, inside, levels)
    ]
    return _named("firstorder", {name: np.concatenate([row[name] for row in rows]) for name in rows[0]})


def _first_order_alike(values: np.ndarray, levels: np.ndarray, kind: FeatureSet) -> Features:
    """18 features of the grey values [B, P] and levels [B, P] of regions of P pixels."""
    found = texture_features.intensity_features(values)
    shares = texture_features.histogram_features(levels)
    pixels = values.shape[1]
    energy = found["energy"] + 2 * kind.shift * pixels * found["mean"] + pixels * kind.shift**2
    even = found["variance"] <= 1e-24
    return {name: found[ours] for name, ours in FIRSTORDER.items()} | {
        "Energy": energy,
        "TotalEnergy": energy * (4.0 if kind.prepared else 1.0),  # times the area of a pixel
        "RootMeanSquared": np.sqrt(energy / pixels),
        "Kurtosis": np.where(even, 0.0, found["excess_kurtosis"] + 3),
        "Entropy": shares["entropy"],
        "Uniformity": shares["uniformity"],
    }


def _diagnostics(whole: np.ndarray, region: np.ndarray, small: np.ndarray, inside: np.ndarray) -> Features:
    """13 numbers that PyRadiomics reports about its preparation, and that frd-score counts as features."""
    rows = [
        {
            **_statistics("Image-original", image),
            **_counted("Mask-original", mask, without=int(mask.all())),
            **_statistics("Image-interpolated", prepared),
            **_counted("Mask-interpolated", small_mask),
            **_statistics("Mask-interpolated", prepared[small_mask]),
        }
        for image, mask, prepared, small_mask in zip(whole, region, small, inside)
    ]
    return _many("diagnostics", rows)


def _statistics(name: str, values: np.ndarray) -> dict[str, float]:
    if not values.size:
        return dict.fromkeys((f"{name}_Mean", f"{name}_Minimum", f"{name}_Maximum"), np.nan)
    return {f"{name}_Mean": values.mean(), f"{name}_Minimum": values.min(), f"{name}_Maximum": values.max()}


def _counted(name: str, mask: np.ndarray, without: int = 0) -> dict[str, float]:
    """Pixels and connected parts. without: pixels that frd-score leaves out; for a whole image, the first."""
    parts = 1 if mask.all() else cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
    return {f"{name}_VoxelNum": float(mask.sum() - without), f"{name}_VolumeNum": float(parts)}


def shape_features(mask: np.ndarray) -> dict[str, float]:
    """9 features of the shape of a region [H, W], whose outline runs halfway between its pixels and the others."""
    padded = np.pad(mask, 1)
    corners = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    number = np.sum(corners, axis=0)
    diagonal = np.logical_and(number == 2, corners[0] == corners[3])
    quarter, half, most, all_four = (int((number == k).sum()) for k in (1, 2, 3, 4))
    crossed = int(diagonal.sum())
    half -= crossed
    surface = quarter / 8 + crossed / 4 + half / 2 + most * 7 / 8 + all_four
    perimeter = (quarter + most + 2 * crossed) * np.sqrt(0.5) + half
    rows, columns = np.nonzero(mask)
    places = np.stack([rows - rows.mean(), columns - columns.mean()]) / np.sqrt(len(rows))
    minor, major = np.sqrt(np.maximum(np.linalg.eigvalsh(places @ places.T), 0))
    down = np.argwhere(padded[:-1] != padded[1:]) + (0.5, 0)
    right = np.argwhere(padded[:, :-1] != padded[:, 1:]) + (0, 0.5)
    outline = cv2.convexHull(np.concatenate([down, right]).astype(np.float32))[:, 0].astype(np.float64)
    return {
        "Elongation": float(minor / major),
        "MajorAxisLength": float(4 * major),
        "MaximumDiameter": float(np.linalg.norm(outline[:, None] - outline, axis=-1).max()),
        "MeshSurface": surface,
        "MinorAxisLength": float(4 * minor),
        "Perimeter": float(perimeter),
        "PerimeterSurfaceRatio": float(perimeter / surface),
        "PixelSurface": float(len(rows)),
        "Sphericity": float(2 * np.sqrt(np.pi * surface) / perimeter),
    }


def _many(family: str, rows: Sequence[dict[str, float]]) -> Features:
    return _named(family, {name: np.array([row[name] for row in rows]) for name in rows[0]})


def _named(family: str, features: Features) -> Features:
    return {f"{family}_{name}": value for name, value in features.items()}
