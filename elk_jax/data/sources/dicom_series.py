"""Single-frame DICOM files: which of them are the slices of a volume, and in which order.

A volume consists of the files of one series, side, view, thickness and acquisition. They are ordered by position along
the normal of their planes, else by SliceLocation, else by InstanceNumber: the first of these that all files have and
that distinguishes them. Mammograms have no positions, so a series without positions is a volume only if it declares
itself part of one. Views made from a volume, scouts and projections are not slices, nor is what cannot be displayed.
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
from pydicom.uid import (
    BreastTomosynthesisImageStorage,
    CTImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalMammographyXRayImageStorageForProcessing,
    EnhancedCTImageStorage,
)

from elk_jax.data.sources import dicom
from elk_jax.data.sources.dicom_grey import attributes_of_frame, grey_scale
from elk_jax.data.sources.dicom_volumes import (
    BESIDE,
    PARALLEL,
    described,
    finite,
    image_type,
    lies_beside,
    plane_of,
)
from elk_jax.errors import UserError

OF_VOLUMES = ("TOMOSYNTHESIS", "TOMO", "VOLUME")
"""Words of ImageType that mark slices, if the object is not of one of CLASSES."""
CLASSES = (BreastTomosynthesisImageStorage, CTImageStorage, EnhancedCTImageStorage)
MAMMOGRAMS = (
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalMammographyXRayImageStorageForProcessing,
)
ASIDE = 1.0
"""Largest distance, within the plane, between the first pixels of two slices, in mm."""
NEAR = 0.1
"""Step between two slices, as a share of the median step, below which they count as one position."""
UNEVEN = 1.5
"""Largest step between slices, as a multiple of the smallest; beyond it, slices seem to be missing."""
ALONE = "a single-frame DICOM file, not a volume"


@dataclass(frozen=True)
class SliceFile:
    """What the header of a single-frame DICOM file tells about its place in a volume.

    series: what the slices of a volume have in common. acquisition: distinguishes the volumes of a series.
    alike: what must agree; otherwise the series is refused. is_beside: a view or projection beside the slices.
    of_volume: the object declares itself part of a volume. plane: None or ([2, 3] unit vectors of rows and columns,
    [3] position in mm). location: SliceLocation, unless it is a mammogram's. number: InstanceNumber.
    problem: why it cannot be displayed, and what to do; "" if it can. meta: from `described`.
    """

    path: Path
    series: tuple[Any, ...]
    acquisition: tuple[str, str]
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
    """Read the header of a single-frame DICOM file. UserError for a damaged file."""
    with dicom.errors_of(path):
        attributes, meta = attributes_of_frame(header, 0), described(header)
        whose = {"patient": meta["patient_id"], "study": meta["study_uid"]}
        uid = str(header.get("SeriesInstanceUID") or "")
        problem, greys = dicom.problem(header, attributes), None
        if header.get("Rows") is None or header.get("Columns") is None:  # truncated: it may be a slice of any series
            raise UserError(problem[0], todo=problem[1])
        of_volume = header.get("SOPClassUID") in CLASSES or not image_type(header).isdisjoint(OF_VOLUMES)
        has_location = of_volume or header.get("SOPClassUID") not in MAMMOGRAMS
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
                _short(finite(attributes.get("SliceThickness"), 1)),
            ),
            acquisition=(str(header.get("FrameOfReferenceUID") or ""), str(header.get("AcquisitionNumber") or "")),
            alike={
                **whose,
                "size": (header.get("Columns"), header.get("Rows")),
                "bits": header.get("BitsStored") or header.get("BitsAllocated"),
                "PhotometricInterpretation": str(header.get("PhotometricInterpretation") or ""),
                "window": greys,
                "PixelSpacing": meta["pixel_spacing"] and tuple(map(_short, meta["pixel_spacing"])),
            },
            is_beside=lies_beside(header),
            of_volume=of_volume,
            plane=plane_of(attributes),
            location=finite(attributes.get("SliceLocation"), 1) if has_location else None,
            number=finite(header.get("InstanceNumber"), 1),
            problem=problem,
            instance=str(header.get("SOPInstanceUID") or "").strip(),
            meta=meta,
        )


def series_of(files: Sequence[SliceFile]) -> tuple[list[tuple[SliceFile, ...]], list[tuple[Path, str]]]:
    """(the slices of each volume, from first to last; skipped files with the reason).

    UserError for slices of a volume that differ in what must agree, that cannot be displayed, or whose order is
    unknown.
    """
    groups: dict[tuple[Any, ...], list[SliceFile]] = defaultdict(list)
    volumes: list[tuple[SliceFile, ...]] = []
    skipped = [(one.path, BESIDE) for one in files if one.is_beside]
    for one in files:
        if not one.is_beside:
            groups[one.series].append(one)
    for group in itertools.chain.from_iterable(map(_acquisitions, groups.values())):
        reasons = dict(_why_skipped(group))
        skipped += reasons.items()
        if slices := [one for one in group if one.path not in reasons]:
            volumes.append(_checked(slices))
    _check_views(volumes)
    return volumes, skipped


def _acquisitions(group: Sequence[SliceFile]) -> list[list[SliceFile]]:
    """A series divided by acquisition, if each has several files; some scanners number every slice."""
    parts: dict[tuple[str, str], list[SliceFile]] = defaultdict(list)
    for one in group:
        parts[one.acquisition].append(one)
    return list(parts.values()) if all(len(part) > 1 for part in parts.values()) else [list(group)]


def _check_views(volumes: Sequence[Sequence[SliceFile]]) -> None:
    """UserError if some slices of a series have a side and view and others do not: they may be one volume."""
    views: dict[Any, dict[str, SliceFile]] = defaultdict(dict)
    for first, *_ in volumes:
        views[first.series[0]].setdefault(first.meta["view"], first)
    for named in views.values():
        for view, one in named.items():
            if other := next((name for name in named if _is_part(view, name)), None):
                what = f"slices of one series with {view or 'no view'} and with {other}: {one.path.name} and "
                todo = "complete Laterality and ViewPosition, or give each volume its own series"
                raise UserError(what + named[other].path.name, where=one.path.parent, todo=todo)


def _is_part(view: str, other: str) -> bool:
    """Whether a view lacks a side or a position of another: "" or "cc" of "lcc"."""
    return view != other and view in other and (len(view) < 2 or not other.startswith(view))


def _why_skipped(group: Sequence[SliceFile]) -> list[tuple[Path, str]]:
    """(file, reason) for the files of a series that are not slices of its volume: all files if it has no volume."""
    if all(one.problem[0] for one in group):
        return [(one.path, one.problem[0]) for one in group]
    placed = [one for one in group if one.is_placed]
    mostly = 2 * len(placed) > len(group)
    by_place = mostly and len({one.location if one.plane is None else tuple(one.plane[1]) for one in placed}) > 1
    if len(group) < 2 or not (by_place or all(one.of_volume for one in group)):
        return [(one.path, ALONE) for one in group]
    if mostly:
        without = "no position, unlike the other slices of its series"
        return [(one.path, without) for one in group if not one.is_placed]
    return []


def _checked(slices: Sequence[SliceFile]) -> tuple[SliceFile, ...]:
    """The slices of a volume in their order. UserError as in `series_of`."""
    first = slices[0]
    if odd := next((one for one in slices if one.is_placed != first.is_placed), None):
        what = f"slices of one series and view with and without a position: {first.path.name} and {odd.path.name}"
        raise UserError(what, where=first.path.parent, todo="remove what is not a slice, or export all with positions")
    for one in slices:
        if one.problem[0]:
            raise UserError(one.problem[0], where=one.path, todo="export the series again: a volume needs all slices")
        if one.alike["window"] is None:
            what = "no window, so the slices of the series cannot be displayed alike"
            raise UserError(what, where=one.path, todo="export the series with WindowCenter and WindowWidth")
        if differing := next((key for key, value in one.alike.items() if value != first.alike[key]), None):
            what = f"slices of one series and view differ in {differing}: {first.path.name} and {one.path.name}"
            raise UserError(what, where=first.path.parent, todo="export the series again, all slices alike")
    places, are_numbers = _places(slices)
    ordered = [slices[position] for position in np.argsort(places, kind="stable")]
    steps = np.diff(np.sort(places))
    least = 0.0 if are_numbers else NEAR * np.median(steps)
    for (one, other), step in zip(itertools.pairwise(ordered), steps):
        if step <= least:
            what = f"slices of one series and view at the same position: {one.path.name} and {other.path.name}"
            raise UserError(what, where=one.path.parent, todo="keep one file per slice")
    if steps.max() > UNEVEN * steps.min():
        logging.getLogger(__name__).warning(
            f"slices seem to be missing in the series of {ordered[0].path} ({first.meta['view'] or 'no view'}): steps "
            f"of {steps.min():g} to {steps.max():g}; the slices present are numbered without gaps"
        )
    numbers = ordered[0].number, ordered[-1].number
    if numbers[0] is not None and numbers[1] is not None and numbers[0] > numbers[1]:
        ordered.reverse()
    return tuple(ordered)


def _places(slices: Sequence[SliceFile]) -> tuple[np.ndarray, bool]:
    """[S]: positions of the slices, by the first of the three ways that all have and that distinguishes them; and
    whether these are numbers, not mm."""
    planes = [one.plane for one in slices if one.plane is not None]
    if len(planes) == len(slices):
        axes, origin = planes[0]
        for one, (own, position) in zip(slices, planes):
            is_turned = np.abs(own - axes).max() > PARALLEL
            if is_turned or np.abs(axes @ (position - origin)).max() > ASIDE:
                how = "are not parallel, or one is rotated" if is_turned else "do not lie above each other"
                what = f"slices of one series and view {how}: {slices[0].path.name} and {one.path.name}"
                raise UserError(what, where=one.path.parent, todo="remove what does not belong to the volume")
        along = np.round([position @ np.cross(*axes) for _, position in planes], 4)
        if np.ptp(along):
            return along, False
    for key in ("location", "number"):
        values = np.array([value for one in slices if (value := getattr(one, key)) is not None])
        if len(values) == len(slices) and np.ptp(values):
            return values, key == "number"
    what = f"the order of the {len(slices)} slices of a series is unknown"
    todo = "export every slice with ImagePositionPatient and ImageOrientationPatient, or with InstanceNumber"
    raise UserError(what, where=slices[0].path, todo=todo)


def _short(value: float | None) -> float | None:
    """Rounded to three digits: smaller differences are a matter of writing."""
    return None if value is None else float(f"{value:.3g}")
