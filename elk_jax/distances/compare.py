"""Distances of a synthetic set of images from a real one, with the distances between real images as a reference.

Shapes: N real and M synthetic images, F features, K of which are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np

from elk_jax.distances.network import Pooled
from elk_jax.distances.sets import ImageSet, Regions, at, check_apart, common_classes, copies, of_class
from elk_jax.errors import UserError
from elk_jax.evaluation import frd, frechet, radiomics, radiomics_table, spectrum
from elk_jax.evaluation.radiomics_table import Table
from elk_jax.evaluation.real_or_synthetic import real_or_synthetic
from elk_jax.fields import AtLeast, Checked
from elk_jax.threads import ProgressBar, no_bar

NO_REFERENCE = "too few real images or patients to compare real with real: there is no reference"

FEATURES = 20
"""Number of features listed as the most different ones."""

Kind = Literal["v0", "v1", "v1_log"]
Bar = Callable[[str], ProgressBar]


@dataclass(frozen=True)
class Settings(Checked):
    """Settings of a comparison.

    frd: versions of the Frechet radiomics distance. count: largest number of images of each set; 0: as many as
    possible, at most half of the real ones. paper_log: half the logarithm, as in the formula of the paper. by_class:
    also compare each class separately. regions: of the radiomics: whole images, or the boxes or masks of lesions;
    images without lesions are used whole.
    """

    frd: tuple[Kind, ...] = ("v0", "v1")
    count: Annotated[int, AtLeast(0)] = 0
    paper_log: bool = False
    by_class: bool = False
    regions: Regions = "images"
    seed: Annotated[int, AtLeast(0)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.frd or len(set(self.frd)) < len(self.frd):
            raise UserError(
                f"frd is {','.join(self.frd) or 'empty'}", where="frd", todo="name v0, v1 or v1_log, each once"
            )
        if self.paper_log and all(frd.RECIPES[kind].logarithm == "none" for kind in self.frd):
            what = f"the distance {', '.join(self.frd)} has no logarithm"
            raise UserError(what, where="paper_log", todo="leave it out, or compare v1 too")
        if self.count == 1:
            raise UserError("count is 1", where="count", todo="give at least 2 images, or 0 for all")


@dataclass(frozen=True)
class Spread:
    """Mean, smallest and largest value over random draws of images; None without draws."""

    mean: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Measure:
    """One distance. synthetic: of synthetic images from real ones; real: of real ones from each other.

    ratio: of the squared distances (of the power); None if undefined. images: number in each set; features: number
    compared. unit: of the values. squared: distances, synthetic and real, for bars: means of squared ones, or geometric
    means if the values are logarithms, so that ratio and bars agree with the values.
    """

    name: str
    unit: str
    synthetic: Spread
    real: Spread
    ratio: float | None
    images: int
    features: int
    squared: tuple[float | None, float | None]


@dataclass(frozen=True)
class Different:
    """A feature: means of the real and synthetic images, and their difference in standard deviations of the real
    ones."""

    name: str
    real: float
    synthetic: float
    difference: float


@dataclass(frozen=True)
class Map:
    """Two principal components of the features of both sets, [N, 2] and [M, 2], and their shares of the variance."""

    real: np.ndarray
    synthetic: np.ndarray
    shares: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """All results. far: positions of the synthetic images, the one farthest from the real ones first."""

    real: ImageSet
    synthetic: ImageSet
    settings: Settings
    measures: tuple[Measure, ...]
    of_classes: Mapping[str, tuple[Measure, ...]]
    told_apart: Mapping[str, float | int | None] | None
    different: tuple[Different, ...]
    map: Map
    far: tuple[int, ...]
    notes: tuple[str, ...] = field(default=())


def compare(
    real: ImageSet,
    synthetic: ImageSet,
    settings: Settings = Settings(),
    networks: Sequence[Pooled] = (),
    bar: Bar = lambda title: no_bar,
) -> Comparison:
    """Compare two sets in all requested feature spaces.

    UserError for fewer than two images with features in a set or in a class of it; for an image in both sets; and, by
    class, for a class without images in one of them.
    """
    for one in (real, synthetic):
        if len(one) < 2:
            what = f"{len(one)} image{'' if len(one) == 1 else 's'}"
            raise UserError(what, where=one.name, todo="give at least two, which a distribution needs")
    check_apart(real, synthetic)
    classes = common_classes(real, synthetic) if settings.by_class else []
    spaces = _spaces(real, synthetic, settings, networks, bar)
    everything = np.arange(len(real)), np.arange(len(synthetic))
    measures, notes = _measured(spaces, (real, synthetic), everything, settings)
    of_classes = {}
    for name in classes:
        places = of_class(real, name), of_class(synthetic, name)
        found, said = _measured(spaces, (real, synthetic), places, settings, f"class {name}: ")
        of_classes[name] = tuple(found)
        notes += [f"class {name}: {note}" for note in said if note not in notes]
    ours, theirs = spaces.tables["v1" if "v1" in spaces.tables else settings.frd[-1]]
    defined = [np.flatnonzero(np.isfinite(one.values).all(1)) for one in (ours, theirs)]
    values = [one.values[places] for one, places in zip((ours, theirs), defined)]
    a, b = radiomics.standardise(*values, limit=radiomics.LIMIT)
    patients = at(real.patients, defined[0]), at(synthetic.patients, defined[1])
    may_tell = a.shape[1] > 0 and len({*patients[0], *patients[1]}) > 1
    told = real_or_synthetic(a, b, *patients, seed=settings.seed) if may_tell else None
    if told is None or told["auc"] is None:
        told = None
        notes.append("no AUC of separating the sets: all images of one are of one patient, or no feature varies")
    return Comparison(
        real,
        synthetic,
        settings,
        (*measures, *_spectra(real, synthetic)),
        of_classes,
        told,
        _different(ours.names, *values),
        _map(a, b),
        tuple(defined[1][np.argsort(-np.linalg.norm(b, axis=1), kind="stable")].tolist()),
        (*_said_of_images(real, synthetic), *dict.fromkeys(notes)),
    )


@dataclass(frozen=True)
class _Spaces:
    """Features of both sets, real and synthetic: tables by version; name of a network, arrays [N, C] and [M, C]."""

    tables: Mapping[str, tuple[Table, Table]]
    pooled: Sequence[tuple[str, np.ndarray, np.ndarray]]


def _spaces(real: ImageSet, synthetic: ImageSet, settings: Settings, networks: Sequence[Pooled], bar: Bar) -> _Spaces:
    def of_version(one: ImageSet, which: str, kind: str) -> Table:
        grey = [image * 255.0 for image in one.images]
        progress = bar(f"  features {kind}, {which}")
        features = radiomics_table.FEATURE_SETS[kind]
        return radiomics_table.table(grey, features, one.regions or None, progress=progress, titles=one.titles)

    def of_network(one: ImageSet, which: str, network: Pooled) -> np.ndarray:
        return network.features(one.images, bar(f"  {network.name}, {which}"))

    sets = (real, "real"), (synthetic, "synthetic")
    return _Spaces(
        {kind: (of_version(*sets[0], kind), of_version(*sets[1], kind)) for kind in settings.frd},
        [(one.name, of_network(*sets[0], one), of_network(*sets[1], one)) for one in networks],
    )


def _measured(
    spaces: _Spaces,
    sets: tuple[ImageSet, ImageSet],
    places: tuple[np.ndarray, np.ndarray],
    settings: Settings,
    whose: str = "",
) -> tuple[list[Measure], list[str]]:
    """The distances of the images at these positions, real and synthetic, and notes. whose: start of an error
    message."""
    draws = _draws(sets[0], places, settings)
    found, notes = [], []
    for kind, tables in spaces.tables.items():
        usable, said = _usable(kind, tables, sets, places, whose)
        drawn = _draws(sets[0], usable, settings)  # images with features: equal numbers of both kinds in every distance
        measure, of_distance = _radiomics(kind, *tables, drawn, usable, settings)
        found.append(measure)
        notes += [f"FRD {kind}: {one}" for one in (*said, *of_distance)]
        if draws and not drawn:
            notes.append(f"FRD {kind}: {NO_REFERENCE}")
    for name, ours, theirs in spaces.pooled:
        found += _of_network(name, ours, theirs, draws, places)
    if not draws:
        notes.append(NO_REFERENCE)
    return found, notes


def _draws(real: ImageSet, places: tuple[np.ndarray, np.ndarray], settings: Settings) -> list[frechet.Draw]:
    ours, theirs = places
    drawn = frechet.draws(at(real.patients, ours), len(theirs), settings.seed, settings.count or None)
    return [frechet.Draw(ours[one.one], ours[one.other], theirs[one.synthetic]) for one in drawn]


def _usable(
    kind: str,
    tables: tuple[Table, Table],
    sets: tuple[ImageSet, ImageSet],
    places: tuple[np.ndarray, np.ndarray],
    whose: str,
) -> tuple[tuple[np.ndarray, np.ndarray], list[str]]:
    """The positions of the images that have the features of a version, and notes on the others."""
    ours, theirs = (
        chosen[frd.defined(table, frd.RECIPES[kind])[chosen]] for table, chosen in zip(tables, places, strict=True)
    )
    notes = []
    for one, chosen, left, which in zip(sets, places, (ours, theirs), ("real", "synthetic"), strict=True):
        many = f"{len(chosen) - len(left)} of {len(chosen)} {which} images"
        if len(left) < 2:
            todo = f"give at least two images with contrast, or leave {kind} out of frd"
            raise UserError(f"{whose}{many} are constant, so {kind} is undefined", where=one.name, todo=todo)
        if len(left) < len(chosen):
            notes.append(f"{many} left out: constant, so texture is undefined")
    return (ours, theirs), notes


def _radiomics(
    kind: str,
    real: Table,
    synthetic: Table,
    draws: Sequence[frechet.Draw],
    everything: tuple[np.ndarray, np.ndarray],
    settings: Settings,
) -> tuple[Measure, list[str]]:
    recipe = frd.RECIPES[kind]
    if settings.paper_log and recipe.logarithm == "squared":
        recipe = replace(recipe, logarithm="distance")

    def distance(one: np.ndarray, other: np.ndarray, theirs: Table) -> frd.Distance:
        return frd.distance(
            real._replace(values=real.values[one]), theirs._replace(values=theirs.values[other]), recipe
        )

    within = [distance(draw.one, draw.other, real) for draw in draws]
    across = [distance(draw.one, draw.synthetic, synthetic) for draw in draws] or [distance(*everything, synthetic)]
    units = {"none": "d²", "squared": "ln d²", "distance": "ln d"}
    theirs, ours = (_spread([one.value for one in found]) for found in (across, within))
    if recipe.logarithm == "none":
        squared = theirs.mean, ours.mean
    else:  # a single large draw would outweigh all others in the mean of d², but not in that of its logarithm
        power = 2 if recipe.logarithm == "distance" else 1
        squared = _exponential(theirs.mean, power), _exponential(ours.mean, power)
    measure = Measure(
        f"FRD {kind}",
        units[recipe.logarithm],
        theirs,
        ours,
        _ratio(*squared),
        across[0].second,
        across[0].features,
        squared,
    )
    return measure, list(across[0].notes)


def _of_network(
    name: str,
    real: np.ndarray,
    synthetic: np.ndarray,
    draws: Sequence[frechet.Draw],
    everything: tuple[np.ndarray, np.ndarray],
) -> list[Measure]:
    """The Frechet distance and the kernel distance of pooled features."""
    found = []
    for title, distance in (("FID", frechet.frechet_distance), ("KID", frechet.kernel_distance)):
        within = [distance(real[draw.one], real[draw.other]) for draw in draws]
        across = [distance(real[draw.one], synthetic[draw.synthetic]) for draw in draws]
        across = across or [distance(real[everything[0]], synthetic[everything[1]])]
        images = len(draws[0].one) if draws else len(everything[1])
        squared = _mean(across), _mean(within)
        ratio = _ratio(*squared)
        found.append(
            Measure(f"{title}, {name}", "d²", _spread(across), _spread(within), ratio, images, real.shape[1], squared)
        )
    return found


def _spectra(real: ImageSet, synthetic: ImageSet) -> list[Measure]:
    """Shares of power at the scale of single pixels."""
    found = []
    measures = (("Checkerboard of single pixels", spectrum.checkerboard), ("Waves below 4 pixels", spectrum.fine))
    for name, share in measures:
        ours, theirs = (_known(share(one.images)) for one in (real, synthetic))
        spreads = Spread(theirs, None, None), Spread(ours, None, None)
        ratio = _ratio(theirs, ours)
        found.append(Measure(name, "of the power", *spreads, ratio, len(synthetic), 1, (theirs, ours)))
    return found


def _different(names: Sequence[str], real: np.ndarray, synthetic: np.ndarray) -> tuple[Different, ...]:
    """The features whose means differ most, in standard deviations of the real images."""
    usable = np.flatnonzero(radiomics.varying(real, synthetic))
    mean, other = real[:, usable].mean(0), synthetic[:, usable].mean(0)
    difference = (other - mean) / real[:, usable].std(0)
    order = np.argsort(-np.abs(difference), kind="stable")[:FEATURES]
    return tuple(Different(names[usable[k]], float(mean[k]), float(other[k]), float(difference[k])) for k in order)


def _map(real: np.ndarray, synthetic: np.ndarray) -> Map:
    together = np.concatenate([real, synthetic])
    centred = together - together.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    places = np.pad(left * sizes, ((0, 0), (0, 2)))[:, :2]
    shares = np.pad(sizes**2 / max(float((sizes**2).sum()), 1e-300), (0, 2))
    return Map(places[: len(real)], places[len(real) :], (float(shares[0]), float(shares[1])))


def _said_of_images(real: ImageSet, synthetic: ImageSet) -> list[str]:
    notes = [real.doubt] if real.doubt else []
    sizes = real.sizes(), synthetic.sizes()
    if sizes[0] != sizes[1]:
        written = [_written(one) for one in sizes]
        notes.append(
            f"real images have {written[0]}, synthetic ones {written[1]}: texture depends on the size of a pixel"
        )
    elif len(sizes[0]) > 1:
        notes.append(f"images have {_written(sizes[0])}: texture depends on the size of a pixel")
    for one, which in ((real, "real"), (synthetic, "synthetic")):
        if one.regions:
            inside = sum(region is not None for region in one.regions)
            notes.append(f"radiomics cover the lesions in {inside} of {len(one)} {which} images, and the others whole")
        repeated = copies(one)
        if repeated:
            images = "1 image is a copy" if repeated == 1 else f"{repeated} images are copies"
            notes.append(f"{images} of another {which} image")
        constant = sum(bool((image == image.flat[0]).all()) for image in one.images)
        if constant:
            notes.append(f"{constant} of {len(one)} {which} images {'is' if constant == 1 else 'are'} constant")
        if one.skipped:
            many = "1 file" if len(one.skipped) == 1 else f"{len(one.skipped)} files"
            notes.append(f"{many} of the {which} images could not be read, for example {one.skipped[0][0]}")
    return notes


def _written(sizes: Sequence[tuple[int, int]]) -> str:
    if len(sizes) == 1:
        return f"{sizes[0][0]} x {sizes[0][1]} px"
    return f"{len(sizes)} sizes from {sizes[0][0]} x {sizes[0][1]} to {sizes[-1][0]} x {sizes[-1][1]} px"


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _exponential(logarithm: float | None, power: int) -> float | None:
    return None if logarithm is None else float(np.exp(power * logarithm))


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b is not None and a > 0 and b > 0 else None


def _spread(values: Sequence[float | None]) -> Spread:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return Spread(None, None, None)
    return Spread(float(np.mean(known)), min(known), max(known))
