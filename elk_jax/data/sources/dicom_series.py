"""DICOM files of one frame: which of them are the slices of a volume, and in which order.

A volume are the files of one series, side, view and thickness. Their order is that of their positions along the normal
of their planes, else of SliceLocation, else of InstanceNumber: the first of these that all files have, and that tells
them apart. Mammograms have no positions, so a series without them is a volume only if it says that it is of one. Views
that are made of a volume, scouts and projections are not slices, and neither is what cannot be shown.
"""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import BreastTomosynthesisImageStorage, CTImageStorage, EnhancedCTImageStorage

from elk_jax.data.sources import dicom
from elk_jax.data.sources.dicom_grey import attributes_of_frame, grey_scale
from elk_jax.data.sources.dicom_volumes import described
from elk_jax.errors import UserError

NO_SLICES = ("GENERATED_2D", "TOMO_PROJ", "TOMO_SCOUT", "LOCALIZER")
"""Words of ImageType of images that lie beside the slices of a volume."""
OF_VOLUMES = ("TOMOSYNTHESIS", "TOMO", "VOLUME")
"""Words of ImageType of slices, where the object is not of one of CLASSES."""
CLASSES = (BreastTomosynthesisImageStorage, CTImageStorage, EnhancedCTImageStorage)
PARALLEL = 1e-3
"""Most that the components of the normals of two slices differ by."""
UNEVEN = 1.5
"""Largest step between slices, as a multiple of the smallest, beyond which some seem to be missing."""
ALONE = "a DICOM file of one frame, not a volume"


@dataclass(frozen=True)
class SliceFile:
    """What the header of a DICOM file of one frame says of its place in a volume.

    series: what the slices of a volume have in common. alike: what they must agree in; a series that does not is
    refused. is_beside: a view or projection that lies beside the slices. of_volume: the object says that it is part of
    one. plane: ([3] unit normal, [3] position in mm) or None. location: SliceLocation. number: InstanceNumber. problem:
    why it cannot be shown, and what to do; "" where it can. meta: of `described`.
    """

    path: Path
    series: tuple[Any, ...]
    alike: dict[str, Any]
    is_beside: bool
    of_volume: bool
    plane: tuple[np.ndarray, np.ndarray] | None
    location: float | None
    number: float | None
    problem: tuple[str, str]
    instance: str
    meta: dict[str, Any]

    @property
    def is_placed(self) -> bool:
        """Whether it has a position."""
        return self.plane is not None or self.location is not None


def slice_file(header: Dataset, path: Path) -> SliceFile:
    """Read the header of a DICOM file of one frame. UserError for one that is damaged."""
    with dicom.errors_of(path):
        attributes, meta = attributes_of_frame(header, 0), described(header)
        whose = {"patient": meta["patient_id"], "study": meta["study_uid"]}
        uid = str(header.get("SeriesInstanceUID") or "")
        kind = header.get("ImageType")
        words = {str(word).strip().upper() for word in ([kind] if isinstance(kind, str) else kind or [])}
        problem, greys = dicom.problem(header, attributes), None
        if header.get("Rows") is None or header.get("Columns") is None:  # cut off: it may be a slice, of any series
            raise UserError(problem[0], todo=problem[1])
        if not problem[0]:
            try:
                greys = grey_scale(attributes)
            except UserError as error:
                problem = error.what, error.todo
        return SliceFile(
            path=path,
            series=(
                (uid,) if uid else (str(path.parent), *whose.values()),
                meta["view"],
                _finite(attributes.get("SliceThickness"), 1),
            ),
            alike={
                **whose,
                "size": (header.get("Columns"), header.get("Rows")),
                "bits": header.get("BitsStored") or header.get("BitsAllocated"),
                "PhotometricInterpretation": str(header.get("PhotometricInterpretation") or ""),
                "window": greys,
            },
            is_beside=not words.isdisjoint(NO_SLICES),
            of_volume=header.get("SOPClassUID") in CLASSES or not words.isdisjoint(OF_VOLUMES),
            plane=_plane(attributes),
            location=_finite(attributes.get("SliceLocation"), 1),
            number=_finite(header.get("InstanceNumber"), 1),
            problem=problem,
            instance=str(header.get("SOPInstanceUID") or "").strip(),
            meta=meta,
        )


def series_of(files: Sequence[SliceFile]) -> tuple[list[tuple[SliceFile, ...]], list[tuple[Path, str]]]:
    """(the slices of each volume, from first to last; skipped files with the reason).

    UserError for slices of a volume that differ in what they must agree in, that cannot be shown, or whose order is not
    known.
    """
    groups: dict[tuple[Any, ...], list[SliceFile]] = defaultdict(list)
    volumes: list[tuple[SliceFile, ...]] = []
    skipped = [(one.path, "a view, a scout or a projection beside the slices") for one in files if one.is_beside]
    for one in files:
        if not one.is_beside:
            groups[one.series].append(one)
    for group in groups.values():
        reasons = dict(_why_skipped(group))
        skipped += reasons.items()
        if slices := [one for one in group if one.path not in reasons]:
            volumes.append(_checked(slices))
    return volumes, skipped


def _why_skipped(group: Sequence[SliceFile]) -> list[tuple[Path, str]]:
    """(file, reason) of those of a series that are not slices of its volume: all of them where there is none."""
    if all(one.problem[0] for one in group):
        return [(one.path, one.problem[0]) for one in group]
    placed = [one for one in group if one.is_placed]
    mostly = 2 * len(placed) > len(group)
    by_place = mostly and len({one.location if one.plane is None else tuple(one.plane[1]) for one in placed}) > 1
    if len(group) < 2 or not (by_place or all(one.of_volume for one in group)):
        return [(one.path, ALONE) for one in group]
    if mostly:
        without = "no position, which the other slices of its series have"
        return [(one.path, without) for one in group if not one.is_placed]
    return []


def _checked(slices: Sequence[SliceFile]) -> tuple[SliceFile, ...]:
    """The slices of a volume in their order. UserError as in `series_of`."""
    first = slices[0]
    if odd := next((one for one in slices if one.is_placed != first.is_placed), None):
        what = f"slices of one series and view with and without a position: {first.path.name} and {odd.path.name}"
        raise UserError(
            what, where=first.path.parent, todo="take out what is not a slice, or export all with positions"
        )
    for one in slices:
        if one.problem[0]:
            raise UserError(one.problem[0], where=one.path, todo="export the series again: a volume needs all slices")
        if one.alike["window"] is None:
            what = "no window, by which the slices of its series could be shown alike"
            raise UserError(what, where=one.path, todo="export the series with WindowCenter and WindowWidth")
        if differing := next((key for key, value in one.alike.items() if value != first.alike[key]), None):
            what = f"slices of one series and view differ in {differing}: {first.path.name} and {one.path.name}"
            raise UserError(what, where=first.path.parent, todo="put each volume into its own folder, exported alike")
    places = _places(slices)
    ordered = [slices[position] for position in np.argsort(places, kind="stable")]
    steps = np.diff(np.sort(places))
    for (one, other), step in zip(itertools.pairwise(ordered), steps):
        if step == 0:
            what = f"slices of one series and view at one place: {one.path.name} and {other.path.name}"
            raise UserError(what, where=one.path.parent, todo="keep one of the files of a slice")
    if steps.max() > UNEVEN * steps.min():
        logging.getLogger(__name__).warning(
            f"slices seem to be missing in the series of {ordered[0].path} ({first.meta['view'] or 'no view'}): steps "
            f"of {steps.min():g} to {steps.max():g}; slices are counted as they are there"
        )
    numbers = ordered[0].number, ordered[-1].number
    if numbers[0] is not None and numbers[1] is not None and numbers[0] > numbers[1]:
        ordered.reverse()
    return tuple(ordered)


def _places(slices: Sequence[SliceFile]) -> np.ndarray:
    """[S]: where the slices lie, by the first of the three ways that all have and that tells them apart."""
    planes = [one.plane for one in slices if one.plane is not None]
    if len(planes) == len(slices):
        normal = planes[0][0]
        for one, (own, _) in zip(slices, planes):
            if np.abs(own - normal).max() > PARALLEL:
                what = f"slices of one series and view are not parallel: {slices[0].path.name} and {one.path.name}"
                raise UserError(what, where=one.path.parent, todo="put each volume into its own folder")
        along = np.round([position @ normal for _, position in planes], 4)
        if np.ptp(along):
            return along
    for found in ([one.location for one in slices], [one.number for one in slices]):
        values = np.array([value for value in found if value is not None])
        if len(values) == len(slices) and np.ptp(values):
            return values
    what = f"the order of the {len(slices)} slices of a series is not known"
    todo = "export it with ImagePositionPatient and ImageOrientationPatient, or InstanceNumber, of every slice"
    raise UserError(what, where=slices[0].path, todo=todo)


def _plane(attributes: Dataset) -> tuple[np.ndarray, np.ndarray] | None:
    position = _finite(attributes.get("ImagePositionPatient"), 3)
    axes = _finite(attributes.get("ImageOrientationPatient"), 6)
    if position is None or axes is None:
        return None
    normal = np.cross(axes[:3], axes[3:])
    length = np.linalg.norm(normal)
    return (normal / length, position) if length > PARALLEL else None


def _finite(value: Any, count: int) -> Any:
    """`count` finite numbers (one: not an array), or None: what is not usable counts as missing."""
    try:
        numbers = np.atleast_1d(np.array(value, float))
    except (TypeError, ValueError):
        return None
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        return None
    return numbers if count > 1 else float(numbers[0])
