"""Tomosynthesis DICOM: one window for all slices, in one file of several frames or in a series of files of one.

Shapes: H, W size of a slice in pixels.

Slices of a series lie in the order of their positions along the normal of their planes, else of their instance numbers.

The side of the breast is read from the pixels, since headers are wrong for some volumes of BCS-DBT: a left breast
touches the left edge. Where that is another side than the view's, the volume is turned by 180 degrees (both axes), as
the published reading code does; annotations are of the turned slices. Several middle frames decide, since the first
ones are noisy.
"""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from elk_jax.data.sources import dicom
from elk_jax.data.sources.decode import decode_as
from elk_jax.data.sources.dicom_grey import attributes_of_frame
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.errors import UserError

FRAMES_THAT_DECIDE = 3
"""Middle frames by which the side of the breast is found."""
NEAR_TIE = 0.1
"""Difference of the sums of both edges, as a share of the larger, below which the side is doubtful."""
_WINDOW = ("WindowCenter", "WindowWidth", "VOILUTFunction", "RescaleSlope", "RescaleIntercept")


class OrientedFrames:
    """Frame -> image [H, W, 1] of a volume's file, for any number of threads; one frame is in memory at a time.

    spec: how files are decoded. side: "L" or "R", of the view; "" leaves the frames as stored.
    """

    def __init__(self, path: Path, spec: SourceSpec, frames: int, side: str):
        self.path, self.spec, self.frames, self.side = path, spec, frames, side
        self._lock = Lock()

    def __call__(self, frame: int) -> np.ndarray:
        image = self._stored(frame)
        if self.side:
            with self._lock:
                turned = self.is_turned
            image = np.ascontiguousarray(image[::-1, ::-1]) if turned else image
        return image[..., None]

    @cached_property
    def is_turned(self) -> bool:
        """Whether the file's frames are turned by 180 degrees."""
        middle = [self.frames * (k + 1) // (FRAMES_THAT_DECIDE + 1) for k in range(FRAMES_THAT_DECIDE)]
        edges = [
            (float(image[:, 0].sum()), float(image[:, -1].sum())) for image in map(self._stored, sorted({*middle}))
        ]
        left, right = np.sum(edges, axis=0)
        shown = "R" if left < right else "L"
        if abs(left - right) <= NEAR_TIE * max(left, right):
            logging.getLogger(__name__).warning(
                f"the side of the breast in {self.path} is doubtful: the edges of its middle frames add up to "
                f"{left:.1f} (left) and {right:.1f} (right), its view says {self.side}; it is read as {shown}"
            )
        return shown != self.side

    def _stored(self, frame: int) -> np.ndarray:
        return decode_as(self.spec, self.path, frame=frame)[0][..., 0]

    def __reduce__(self) -> tuple[Any, ...]:
        return OrientedFrames, (self.path, self.spec, self.frames, self.side)


def check_volume(header: Dataset, name: object) -> None:
    """UserError unless a file holds several frames that one window shows.

    That is the window, or the table, of the shared functional groups, or of the top level. One frame, no window at all
    and windows that differ by frame are refused.
    """
    with dicom.errors_of(name):
        frames = int(header.get("NumberOfFrames") or 1)
        if frames < 2:
            raise UserError("one frame: a volume has several", todo="give it as an image, or the folder of its series")
        windows = [_window(attributes_of_frame(header, frame)) for frame in range(frames)]
    if windows[0] is None:
        what = "no functional groups with a window, by which its slices could be shown alike"
        todo = "fetch the file again, or export it with SharedFunctionalGroupsSequence"
        raise UserError(what, where=name, todo=todo)
    if odd := next((frame for frame, window in enumerate(windows) if window != windows[0]), None):
        what = f"the windows of frames 0 and {odd} differ: a volume is shown by one"
        raise UserError(what, where=name, todo="export the volume with its window in the shared functional groups")


@dataclass(frozen=True)
class SliceFile:
    """What the header of a DICOM file of one frame says of its place in a volume.

    group: the folder, series, side and view, which slices of a volume share. alike: patient, size, colours and window
    (None where there is none): what they must share. position: mm along the normal of the slice, or by SliceLocation;
    None where the file does not say. number: InstanceNumber or None. meta: of `described`.
    """

    path: Path
    group: tuple[str, ...]
    alike: dict[str, Any]
    position: float | None
    number: int | None
    instance: str
    meta: dict[str, Any]


def slice_file(header: Dataset, path: Path) -> SliceFile:
    """The header of a DICOM file of one frame. UserError for one that is damaged."""
    with dicom.errors_of(path):
        attributes, meta = attributes_of_frame(header, 0), described(header)
        number = header.get("InstanceNumber")
        return SliceFile(
            path=path,
            group=(str(path.parent), str(header.get("SeriesInstanceUID") or ""), meta["view"]),
            alike={
                "patient": meta["patient_id"],
                "study": meta["study_uid"],
                "size": (int(header.Columns), int(header.Rows)),
                "bits": int(header.get("BitsStored") or header.BitsAllocated),
                "PhotometricInterpretation": str(header.get("PhotometricInterpretation") or ""),
                "window": _window(attributes),
            },
            position=_position(attributes),
            number=None if number is None or number == "" else int(number),
            instance=str(header.get("SOPInstanceUID") or "").strip(),
            meta=meta,
        )


def series_of(slices: Sequence[SliceFile]) -> tuple[list[tuple[SliceFile, ...]], list[tuple[Path, str]]]:
    """(the slices of each volume, from first to last; skipped files with the reason).

    Skipped are single images, such as the mammograms of an examination, and files without a position in a series whose
    other files have one, such as its synthetic 2-D view. UserError for slices of a series that differ in what they must
    share, and where their order is not known.
    """
    groups: dict[tuple[str, ...], list[SliceFile]] = defaultdict(list)
    for one in slices:
        groups[one.group].append(one)
    volumes, skipped = [], []
    for group in groups.values():
        placed = [one for one in group if one.position is not None] or group
        without = "a DICOM file without the position that the other slices of its series have"
        skipped += [(one.path, without) for one in group if one not in placed]
        if len(placed) < 2:
            skipped += [(one.path, "a DICOM file of one frame, not a volume") for one in placed]
            continue
        _check_alike(placed)
        volumes.append(_in_order(placed))
    return volumes, skipped


def _check_alike(slices: Sequence[SliceFile]) -> None:
    first = slices[0]
    if first.alike["window"] is None:
        what = "no window, by which the slices of its series could be shown alike"
        raise UserError(what, where=first.path, todo="export the series with WindowCenter and WindowWidth")
    for one in slices:
        if odd := next((key for key, value in one.alike.items() if value != first.alike[key]), None):
            what = f"slices of one series and view differ in {odd}: {first.path.name} and {one.path.name}"
            raise UserError(what, where=first.path.parent, todo="put each volume into its own folder, exported alike")


def _in_order(slices: Sequence[SliceFile]) -> tuple[SliceFile, ...]:
    """From first to last by position, in the direction of the instance numbers; else by instance number."""
    numbers = [one.number for one in slices if one.number is not None]
    numbered = len(set(numbers)) == len(slices)
    by_number = lambda one: -1 if one.number is None else one.number
    key = by_number if slices[0].position is None else lambda one: one.position
    ordered = sorted(slices, key=key)
    for one, other in itertools.pairwise(ordered):
        if key(one) == key(other):
            what = f"slices of one series and view at one place: {one.path.name} and {other.path.name}"
            todo = "keep one of them, or export the series with ImagePositionPatient or InstanceNumber"
            raise UserError(what, where=one.path.parent, todo=todo)
    if numbered and by_number(ordered[0]) > by_number(ordered[-1]):
        ordered.reverse()
    if numbered and (missing := max(numbers) - min(numbers) + 1 - len(numbers)):
        logging.getLogger(__name__).warning(
            f"{missing} instance numbers are missing between the slices of the series in {ordered[0].path.parent}: "
            "slices are counted as they are there"
        )
    return tuple(ordered)


def _position(attributes: Dataset) -> float | None:
    """mm along the normal of the plane; SliceLocation where the plane is not described."""
    place, axes = attributes.get("ImagePositionPatient"), attributes.get("ImageOrientationPatient")
    if place and axes and len(place) == 3 and len(axes) == 6:
        row, column = np.reshape(np.array(axes, float), (2, 3))
        return round(float(np.cross(row, column) @ np.array(place, float)), 4)
    location = attributes.get("SliceLocation")
    return None if location is None or location == "" else float(location)


def _window(attributes: Dataset) -> tuple[str, ...] | None:
    if "VOILUTSequence" in attributes:
        return (str(attributes.VOILUTSequence),)
    return tuple(str(attributes.get(key)) for key in _WINDOW) if "WindowCenter" in attributes else None


def described(header: Dataset) -> dict[str, Any]:
    """What a header says of a volume: `patient_id`, `study_uid`, `view` such as "lcc", each "" if it does not say, and
    `pixel_spacing` (row, column) in mm or None."""
    attributes = attributes_of_frame(header, 0)
    position, side = dicom.view(attributes), dicom.header_laterality(attributes)
    return {
        "patient_id": str(header.get("PatientID") or "").strip(),
        "study_uid": str(header.get("StudyInstanceUID") or "").strip(),
        "view": f"{side or ''}{position}".lower(),
        "pixel_spacing": dicom.pixel_spacing(attributes),
    }
