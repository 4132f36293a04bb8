"""The Frechet radiomics distance of two sets of images, as computed by frd-score 1.0.1.

Shapes: N and M images, F features. Tables of features are those of `radiomics_table.py`.
Sources: Osuala et al. 2024 (v0); Konz, Osuala et al., arXiv 2412.01496 (v1); frd-score 1.0.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from elk_jax.errors import UserError
from elk_jax.evaluation import frechet
from elk_jax.evaluation.radiomics_table import Table

Scaling = Literal["deviation", "range"]
Reference = Literal["first", "joint", "own"]

V0_WIDTH = 7.45670747756958
"""Width of the range of each feature in v0."""

ROUNDING = 1e-9
"""Values below this share of a grey level are rounding errors of a mean that is 0 by construction."""

ALIKE = 1e-12
"""Values are equal if they differ by at most this share of the largest, or by the last bit of their format."""


@dataclass(frozen=True)
class Recipe:
    """How features are converted to a distance.

    scaling: by the standard deviation of each feature, or to its range. reference: the set that determines the
    deviation or range: the first, both together, or each set itself (which hides differences). width: the new unit or
    range. strict: images with an undefined feature are left out, then features that are constant or undefined;
    otherwise both take the middle of the range, and computation is in 32 bits. logarithm: of the squared distance or,
    halved, of the distance itself, as in the formula of the paper but not in frd-score. means_only: without
    covariances.
    """

    scaling: Scaling
    reference: Reference
    width: float
    strict: bool
    logarithm: Literal["none", "squared", "distance"]
    means_only: bool = False


V0 = Recipe("range", "joint", V0_WIDTH, False, "none")
V1 = Recipe("deviation", "first", 1.0, True, "squared")
RECIPES = {"v0": V0, "v1": V1, "v1_log": V1}
"""By the name of the set of features."""


@dataclass(frozen=True)
class Distance:
    """squared: the squared Frechet distance; value: as reported by frd-score, None for the logarithm of 0.

    first, second: numbers of images compared. features: number of features compared. notes: for the reader.
    """

    squared: float
    value: float | None
    first: int
    second: int
    features: int
    notes: tuple[str, ...] = ()


class Undefined(UserError):
    """Two sets have no distance: too few images with features, or no feature varies."""


def distance(first: Table, second: Table, recipe: Recipe = V1) -> Distance:
    """The distance of the second set from the first, the reference.

    UserError for tables with different features; `Undefined` for fewer than two images with all features, or if no
    feature is left.
    """
    if first.names != second.names:
        raise UserError("the sets have different features", where="features", todo="measure the same features for both")
    (a, b), kept, notes = scaled(first, second, recipe)
    if not kept.any():
        raise Undefined("no feature varies", where="features", todo="give images that differ")
    notes += _warnings(_base(first, second, recipe), first.names, kept, len(a), len(b))
    squared = float(((a.mean(0) - b.mean(0)) ** 2).sum()) if recipe.means_only else frechet.frechet_distance(a, b)
    value: float | None = squared
    if recipe.logarithm != "none":
        value = float(np.log(squared)) if squared > 0 else None
        if value is None:
            notes.append(
                "the distance is 0 and has no logarithm: the sets have the same features (frd-score reports -inf)"
            )
        elif recipe.logarithm == "distance":
            value /= 2
    return Distance(squared, value, len(a), len(b), int(kept.sum()), tuple(notes))


def defined(table: Table, recipe: Recipe) -> np.ndarray:
    """The images [N] that a recipe compares: if it is strict, those with all features."""
    return np.isfinite(table.values).all(1) if recipe.strict else np.ones(len(table.values), bool)


def scaled(first: Table, second: Table, recipe: Recipe) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, list[str]]:
    """Both tables scaled, [N, K] and [M, K]; the features that remain, [F] bool; notes on what was left out.

    `Undefined` if a set has fewer than two images with all features.
    """
    notes: list[str] = []
    values = []
    for table, which in ((first, "first"), (second, "second")):
        whole = defined(table, recipe)
        if not whole.all():
            many = f"{(~whole).sum()} of {len(whole)} images"
            notes.append(f"{many} of the {which} set left out: they are constant, so their texture is undefined")
        one = table.values[whole].astype(np.float32 if recipe.strict else np.float64)
        if len(one) < 2:
            what = f"{len(one)} image{'' if len(one) == 1 else 's'} with defined features in the {which} set"
            raise Undefined(what, where="images", todo="give at least two")
        values.append(one)
    bases = {"first": (values[0],) * 2, "joint": (np.concatenate(values),) * 2, "own": tuple(values)}[recipe.reference]
    with np.errstate(invalid="ignore", divide="ignore"):
        done = [_scaled(one, base, recipe) for one, base in zip(values, bases)]
    kept = np.isfinite(np.concatenate(done)).all(0)
    if not kept.all():
        notes.append(f"{(~kept).sum()} of {len(kept)} features left out: constant or undefined in the reference")
    return (done[0][:, kept], done[1][:, kept]), kept, notes


def _scaled(values: np.ndarray, base: np.ndarray, recipe: Recipe) -> np.ndarray:
    low, high = np.nanmin(base, 0), np.nanmax(base, 0)
    same = high - low <= max(ALIKE, np.finfo(base.dtype).eps) * np.maximum(np.abs(low), np.abs(high))
    if recipe.scaling == "range":
        done = np.where(same, 0.5, (values - low) / (high - low)) * recipe.width
    else:
        spread = np.where(same, 0, np.nanstd(base, 0))  # equal values can have a deviation, from rounding of their mean
        done = (values - np.nanmean(base, 0)) / spread * recipe.width
        if not recipe.strict:
            done = np.where(spread > 0, done, 0.0)
    return done if recipe.strict else np.where(np.isnan(done), recipe.width / 2, done)


def _base(first: Table, second: Table, recipe: Recipe) -> np.ndarray:
    """The features that determine the scaling of the first set."""
    tables = (first, second) if recipe.reference == "joint" else (first,)
    return np.concatenate([table.values[defined(table, recipe)] for table in tables])


def _warnings(base: np.ndarray, names: tuple[str, ...], kept: np.ndarray, images: int, others: int) -> list[str]:
    notes = []
    features = int(kept.sum())
    fewer = min(images, others)
    if fewer <= features:
        notes.append(
            f"{fewer} images with {features} features: the covariance is singular and the distance too large; compare "
            "it only with that of two real sets of these sizes"
        )
    largest = np.abs(base).max(0)
    rounding = kept & (largest > 0) & (largest < ROUNDING)
    if rounding.any():
        concerned = [name for name, one in zip(names, rounding) if one]
        many = "1 feature is" if len(concerned) == 1 else f"{len(concerned)} features are"
        notes.append(f"{many} 0 except for rounding, which is scaled like any value: {', '.join(concerned)}")
    return notes
