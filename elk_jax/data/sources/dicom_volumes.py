"""Multi-frame tomosynthesis DICOM: one window for all frames, and slices oriented according to their view.

Shapes: H, W size of a slice in pixels.

The side of the breast is determined from the pixels, since headers are wrong for some volumes of BCS-DBT: a left breast
touches the left edge. If that contradicts the view, the volume is rotated by 180 degrees (both axes), as in the
published reading code; annotations refer to the rotated slices. Several middle frames decide, since the first ones are
noisy.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import (
    BreastProjectionXRayImageStorageForPresentation,
    BreastProjectionXRayImageStorageForProcessing,
)

from elk_jax.data.sources import dicom
from elk_jax.data.sources.decode import slice_reader
from elk_jax.data.sources.dicom_grey import attributes_of_frame, attributes_of_frames, grey_scale
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.errors import UserError

NO_SLICES = ("GENERATED_2D", "TOMO_PROJ", "TOMO_SCOUT", "LOCALIZER")
"""Words of ImageType that mark images beside the slices of a volume."""
PROJECTIONS = (BreastProjectionXRayImageStorageForPresentation, BreastProjectionXRayImageStorageForProcessing)
BESIDE = "a synthetic view, a scout or projections, not slices"
FRAMES_THAT_DECIDE = 3
"""Number of middle frames that determine the side of the breast."""
PARALLEL = 1e-3
"""Largest difference between the direction cosines of the rows and columns of two slices."""
UNMOVED = 0.01
"""Largest difference between the positions of two frames, in mm, that is a matter of rounding."""
NEAR_TIE = 0.1
"""Difference between the sums at both edges, as a share of the larger, below which the side is doubtful."""


class OrientedFrames:
    """Frame -> image [H, W, 1] of a volume's file. Thread-safe; one frame is in memory at a time.

    spec: how files are decoded. side: "L" or "R", from the view; "" leaves the frames as stored.
    """

    def __init__(self, path: Path, spec: SourceSpec, frames: int, side: str):
        self.path, self.spec, self.frames, self.side = path, spec, frames, side
        self._lock, self._decoded = Lock(), slice_reader(spec, [(path, frame) for frame in range(frames)])

    def __call__(self, frame: int) -> np.ndarray:
        image = self._stored(frame)
        if self.side:
            with self._lock:
                turned = self.is_turned
            image = np.ascontiguousarray(image[::-1, ::-1]) if turned else image
        return image[..., None]

    @cached_property
    def is_turned(self) -> bool:
        """Whether the file's frames are rotated by 180 degrees."""
        middle = [self.frames * (k + 1) // (FRAMES_THAT_DECIDE + 1) for k in range(FRAMES_THAT_DECIDE)]
        edges = [
            (float(image[:, 0].sum()), float(image[:, -1].sum())) for image in map(self._stored, sorted({*middle}))
        ]
        left, right = np.sum(edges, axis=0)
        shown = "R" if left < right else "L"
        if abs(left - right) <= NEAR_TIE * max(left, right):
            logging.getLogger(__name__).warning(
                f"the side of the breast in {self.path} is doubtful: the edges of its middle frames sum to "
                f"{left:.1f} (left) and {right:.1f} (right), its view gives {self.side}; it is read as {shown}"
            )
        return shown != self.side

    def _stored(self, frame: int) -> np.ndarray:
        return self._decoded(frame)[0][..., 0]

    def __reduce__(self) -> tuple[Any, ...]:
        return OrientedFrames, (self.path, self.spec, self.frames, self.side)


def image_type(header: Dataset) -> set[str]:
    """The words of ImageType."""
    kind = header.get("ImageType")
    return {str(word).strip().upper() for word in ([kind] if isinstance(kind, str) else kind or [])}


def lies_beside(header: Dataset) -> bool:
    """Whether the images of a file accompany the slices of a volume: views made from it, scouts, and the projections
    that it is made from."""
    return not image_type(header).isdisjoint(NO_SLICES) or header.get("SOPClassUID") in PROJECTIONS


def check_volume(header: Dataset, name: object) -> None:
    """UserError unless a file contains several slices with a common window.

    That is the window, or the table, of the shared functional groups or of the top level. A single frame, no window at
    all, windows that differ between frames, and frames whose positions run back and forth are refused: findings are
    grouped along the frames as stored, to which annotations refer.
    """
    with dicom.errors_of(name):
        frames = int(header.get("NumberOfFrames") or 1)
        if frames < 2:
            raise UserError("one frame: a volume has several", todo="give it as an image, or the folder of its series")
        if lies_beside(header):
            raise UserError(f"{BESIDE}: not a volume", todo="give the file of the slices")
        of_frames = list(attributes_of_frames(header, range(frames)))
        windows = [grey_scale(attributes) for attributes in of_frames]
    if windows[0] is None:
        what = "no functional groups with a window, so the slices cannot be displayed alike"
        todo = "fetch the file again, or export it with SharedFunctionalGroupsSequence"
        raise UserError(what, where=name, todo=todo)
    if odd := next((frame for frame, window in enumerate(windows) if window != windows[0]), None):
        what = f"the windows of frames 0 and {odd} differ: a volume needs a common window"
        raise UserError(what, where=name, todo="export the volume with its window in the shared functional groups")
    if turn := _turn(of_frames):
        what = f"the frames are out of order: their positions reverse at frame {turn}"
        raise UserError(what, where=name, todo="export the volume with its frames in the order of their positions")


def _turn(of_frames: Sequence[Dataset]) -> int:
    """The first frame at which the positions along the normal of the planes reverse; 0 if they run one way, or if a
    frame has none."""
    planes = [plane for attributes in of_frames if (plane := plane_of(attributes)) is not None]
    if len(planes) < len(of_frames):
        return 0
    steps = np.diff([position @ np.cross(*planes[0][0]) for _, position in planes])
    moved = np.flatnonzero(np.abs(steps) > UNMOVED)
    back = moved[np.sign(steps[moved]) != np.sign(steps[moved[:1]])]
    return int(back[0]) + 1 if len(back) else 0


def described(header: Dataset) -> dict[str, Any]:
    """A volume's metadata from the header: `patient_id`, `study_uid`, `view` such as "lcc", each "" if missing, and
    `pixel_spacing` (row, column) in mm or None."""
    attributes = attributes_of_frame(header, 0)
    position, side = dicom.view(attributes), dicom.header_laterality(attributes)
    return {
        "patient_id": str(header.get("PatientID") or "").strip(),
        "study_uid": str(header.get("StudyInstanceUID") or "").strip(),
        "view": f"{side or ''}{position}".lower(),
        "pixel_spacing": dicom.pixel_spacing(attributes),
    }


def plane_of(attributes: Dataset) -> tuple[np.ndarray, np.ndarray] | None:
    """([2, 3] unit vectors of rows and columns, [3] position in mm) of an image; None if it has no usable position."""
    position = finite(attributes.get("ImagePositionPatient"), 3)
    axes = finite(attributes.get("ImageOrientationPatient"), 6)
    if position is None or axes is None:
        return None
    rows, columns = axes.reshape(2, 3)
    if np.linalg.norm(np.cross(rows, columns)) <= PARALLEL:
        return None
    return np.stack([one / np.linalg.norm(one) for one in (rows, columns)]), position


def finite(value: Any, count: int) -> Any:
    """`count` finite numbers (if one: not an array), or None: unusable values count as missing."""
    try:
        numbers = np.atleast_1d(np.array(value, float))
    except (TypeError, ValueError):
        return None
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        return None
    return numbers if count > 1 else float(numbers[0])
