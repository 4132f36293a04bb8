"""DICOM mammograms -> grey images as a workstation would display them.

Shapes: H, W image size in pixels; F frames.

This module reads headers and refuses anything but grey images; `dicom_pixels` reads the pixels of a frame as stored,
and `dicom_grey` converts them to grey values.
Attributes are looked up in the frame's functional groups first, then in the shared ones, then at the top level, so that
enhanced multi-frame objects (tomosynthesis) work like classic ones. docs/dicom.md lists every attribute.
"""

from __future__ import annotations

import io
import math
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from elk_jax import files
from elk_jax.budget import Budget, budget_for
from elk_jax.data.sources import dicom_pixels
from elk_jax.data.sources.dicom_grey import attributes_of_frame, first_number, high_bit, presented
from elk_jax.errors import UserError

_CHUNK = 1 << 20
_LEAST_FRAME = 8
"""Fewest bytes that a frame takes in a file."""
_ASPECT = 0.01
"""Difference between the sides of a pixel that counts as rounding."""

PREFIX = 132
"""Bytes that identify a DICOM file: a preamble of 128 bytes, and DICM."""


def looks_like_dicom(data: bytes) -> bool:
    """True when the 128-byte preamble is followed by DICM."""
    return data[128:PREFIX] == b"DICM"


def decode(
    data: bytes, *, name: object = "", frame: int | None = None, bit_depth: int | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Decode the content of a DICOM file: image [H, W] float32 in [0, 1], 1 is white, and the header's metadata.

    name: of the file, for errors. frame: of a multi-frame object, 0-based; None accepts single-frame objects only.
    bit_depth: significant bits if the header declares 16 and has no window.

    The header's dict: `format` "dicom"; `bits` stored; `pixel_spacing` (row, column) mm in the breast plane,
    or None; `laterality` "L", "R" or None; `laterality_header` as in the header; `view` "CC", "MLO", ... or "";
    `patient_id`; `frames` F; `photometric`; `voi` which of "lut", "window" or "full" was applied; `blank` "black" or
    "white" if that makes differing values all black or all white, else "".

    UserError: damaged, without pixels, not a grey image for presentation, a missing decoder (with the package to
    install), no such frame, far larger than the file.
    """
    with errors_of(name):
        budget = budget_for(len(data), name)
        dataset = _read(io.BytesIO(data), budget)
        _check_object(dataset, any(dataset.get(key) for key in dicom_pixels.ELEMENTS))
        return _decode(dataset, dataset, budget, name, frame, bit_depth)


def decode_frame(
    file: BinaryIO, frame: int, *, name: object = "", bit_depth: int | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """`decode` of one frame of an open file; only the pixels of that frame are read.

    A truncated, deflated or mislabelled file is read as a whole.
    """
    with errors_of(name):
        budget = budget_for(file.seek(0, io.SEEK_END), name)
        dataset = _read(file, budget, stop_before_pixels=True)
        start, size = file.tell(), file.seek(0, io.SEEK_END)
        if start < size:
            _check_object(dataset, True)
            if dicom_pixels.are_complete(file, start, size, dataset):
                file.seek(start)
                return _decode(dataset, file, budget, name, frame, bit_depth)
    file.seek(0)
    return decode(file.read(), name=name, frame=frame, bit_depth=bit_depth)


def other_object(file: BinaryIO) -> str:
    """What a DICOM file contains instead of an image, such as "Mammography CAD SR Storage"; "" for an image.

    Damaged files count as images here: decoding them reports what is wrong.
    """
    try:
        with errors_of(""):
            return _other_object(_read(file, budget_for(file.seek(0, io.SEEK_END), ""), stop_before_pixels=True))
    except UserError:
        return ""


def count_frames(file: BinaryIO) -> int:
    """Frames of a DICOM file: at least 1, at most as many as it has room for; 1 for a damaged file."""
    try:
        with errors_of(""):
            size = file.seek(0, io.SEEK_END)
            frames = int(_read(file, budget_for(size, ""), stop_before_pixels=True).get("NumberOfFrames") or 1)
            return max(1, min(frames, size // _LEAST_FRAME))
    except UserError:
        return 1


def size(file: BinaryIO, name: object) -> tuple[int, int]:
    """(width, height) of the frames of a DICOM file, from its header."""
    with errors_of(name):
        dataset = header(file, name)
        what, todo = problem(dataset, attributes_of_frame(dataset, 0))
        if what:
            raise UserError(what, todo=todo)
        return int(dataset.Columns), int(dataset.Rows)


def header(file: BinaryIO, name: object) -> Dataset:
    """The whole header of a DICOM file. UserError also for more frames than the file has room for."""
    with errors_of(name):
        size = file.seek(0, io.SEEK_END)
        dataset = _read(file, budget_for(size, name), stop_before_pixels=True)
        has_size = "Rows" in dataset and "Columns" in dataset
        _check_object(dataset, has_size or dicom_pixels.begin_at(file.tell(), file))
        if (frames := first_number(dataset, "NumberOfFrames") or 1) > max(1, size // _LEAST_FRAME):
            what = f"the header declares {frames:.0f} frames, for which a file of {size} bytes has no room"
            raise UserError(what, todo="fetch the file again, or repair NumberOfFrames")
        return dataset


def volume_header(file: BinaryIO, name: object) -> Dataset:
    """The header of a multi-frame file. UserError also for frames that cannot be displayed and for a truncated file, so
    that these are found now, not after the volumes before it have been processed."""
    dataset = header(file, name)
    with errors_of(name):
        what, todo = problem(dataset, attributes_of_frame(dataset, 0))
        if what:
            raise UserError(what, todo=todo)
        dicom_pixels.check_decoder(UID(dataset.file_meta.TransferSyntaxUID))
        start = file.tell()
        end = file.seek(0, io.SEEK_END)
        if not dicom_pixels.are_complete(file, start, end, dataset):  # truncated, deflated or mislabelled
            file.seek(0)
            decode(file.read(), name=name, frame=int(dataset.get("NumberOfFrames") or 1) - 1)
    return dataset


@contextmanager
def errors_of(name: object) -> Iterator[None]:
    """Turn any error about the file `name` into a UserError with this place; warnings are dropped."""
    try:
        with warnings.catch_warnings():  # what matters is raised; the rest concerns values that are not used
            warnings.simplefilter("ignore")
            yield
    except UserError as error:
        if error.where:
            raise
        raise UserError(error.what, where=name, todo=error.todo) from error
    except Exception as error:  # a damaged header makes pydicom raise almost anything; it all means the same here
        todo = "fetch the file again; if that does not help, export the image again"
        raise UserError(f"damaged DICOM file: {error}", where=name, todo=todo) from error


def _read(file: BinaryIO, budget: Budget, stop_before_pixels: bool = False) -> Dataset:
    """The dataset of a file; the file's position is then after the part that was read. UserError as in
    `files.check_there`."""
    file.seek(0)
    files.check_there(file.read(PREFIX), "")
    file.seek(128)
    meta_start = PREFIX if file.read(4) == b"DICM" else 0
    file.seek(meta_start)
    other_group = lambda tag, vr, length: tag >> 16 != 2
    meta = read_dataset(file, False, True, stop_when=other_group) if meta_start else Dataset()
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        while chunk := inflate.unconsumed_tail or file.read(_CHUNK):
            budget.spend(len(inflate.decompress(chunk, _CHUNK)), "the inflated data set")
    file.seek(0)
    return pydicom.dcmread(file, force=True, stop_before_pixels=stop_before_pixels)


def _decode(
    dataset: Dataset,
    pixels: Dataset | BinaryIO,
    budget: Budget,
    name: object,
    frame: int | None,
    bit_depth: int | None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """dataset: the header. pixels: the source of the stored values, the same dataset, or its file at their element."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frame is None and frames > 1:
        todo = f"add a field `frame` to the image, 0 to {frames - 1}, or export single frames"
        raise UserError(f"{frames} frames in one file", todo=todo)
    if frame is not None and not 0 <= frame < frames:
        raise UserError(f"no frame {frame}: the file has {frames}", todo=f"choose 0 to {frames - 1}")
    attributes = attributes_of_frame(dataset, frame or 0)
    what, todo = problem(dataset, attributes)
    if what:
        raise UserError(what, todo=todo)
    a_pixel = -(-dataset.BitsAllocated // 8) + np.dtype(np.float64).itemsize  # stored, and in the pipeline
    budget.spend(dataset.Rows * dataset.Columns * a_pixel, f"a frame of {dataset.Rows} x {dataset.Columns} pixels")
    stored, words = dicom_pixels.stored_values(pixels, dataset, frame or 0, budget)
    image, voi, shade = presented(stored, words, attributes, bit_depth, name)

    of_header = header_laterality(attributes)
    return np.ascontiguousarray(image, np.float32), {
        "format": "dicom",
        "bits": int(dataset.get("BitsStored") or 8 * stored.dtype.itemsize),
        "pixel_spacing": pixel_spacing(attributes),
        "laterality": breast_side(image) or of_header,
        "laterality_header": of_header,
        "view": view(attributes),
        "patient_id": str(dataset.get("PatientID", "")).strip(),
        "frames": frames,
        "photometric": _word(dataset, "PhotometricInterpretation"),
        "voi": voi,
        "blank": shade,
    }


def breast_side(image: np.ndarray) -> str | None:
    """Laterality from pixels [H, W]: a left breast touches the image's left edge, a right one its right edge.

    "L", "R", or None if both sides look alike (no breast, a frame-filling close-up). This is the orientation that
    vendors store. Headers are wrong often enough that clear pixels take precedence (BCS-DBT's reading code trusts the
    pixels too).
    """
    breast = image > image.min() + 0.05 * np.ptp(image)
    strip = max(1, image.shape[1] // 20)
    left, right = breast[:, :strip].mean(), breast[:, -strip:].mean()
    if max(left, right) < 0.05 or min(left, right) > 0.5 * max(left, right):
        return None
    return "L" if left > right else "R"


def _check_object(dataset: Dataset, has_pixels: bool) -> None:
    """UserError for an object without an image; an object without a transfer syntax gets one."""
    if other := _other_object(dataset):
        raise UserError(f"not an image: {other}", todo="leave it out, and use the images of the exam")
    if not has_pixels and dataset.get("PixelDataProviderURL"):
        todo = "download the image with its pixels"
        raise UserError("DICOM file whose pixels are on a server (PixelDataProviderURL)", todo=todo)
    if not has_pixels:
        kind = (
            "DICOM file without pixels, or" if "Rows" in dataset and "Columns" in dataset else "not a DICOM image, or"
        )
        raise UserError(f"{kind} truncated before its pixels", todo="fetch the file again, or leave it out")
    dataset.ensure_file_meta()
    if "TransferSyntaxUID" not in dataset.file_meta:  # old files without a preamble
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = explicit if implicit is False else ImplicitVRLittleEndian


def _sop_class(dataset: Dataset) -> UID:
    meta = getattr(dataset, "file_meta", None) or Dataset()
    return UID(str(dataset.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or ""))


def _other_object(dataset: Dataset) -> str:
    """The kind of an object that is not an image (a report, a presentation state, a segmentation), else ""."""
    uid = _sop_class(dataset)
    if not uid:
        return ""
    if uid.name == uid:  # private, or newer than pydicom
        return "" if "Rows" in dataset else f"a DICOM object of class {uid}"
    return "" if "Image Storage" in uid.name else uid.name


def problem(dataset: Dataset, attributes: Dataset) -> tuple[str, str]:
    """Why the pixels of a frame cannot be displayed as one grey image, and what to do; ("", "") if they can.

    attributes: of the frame.
    """
    missing = [key for key in ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel") if dataset.get(key) is None]
    if missing:
        return f"DICOM header without {' or '.join(missing)}", dicom_pixels.REPAIR
    grey = "export it as MONOCHROME1 or MONOCHROME2"
    photometric = _word(dataset, "PhotometricInterpretation")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        return f"photometric interpretation {photometric or 'missing'}: not a grey image", grey
    if dataset.SamplesPerPixel != 1:
        return f"{dataset.SamplesPerPixel} samples per pixel: not a grey image", grey
    return _problem_of_bits(dataset) or _problem_of_display(dataset, attributes, photometric) or ("", "")


def _word(dataset: Dataset, key: str) -> str:
    return str(dataset.get(key) or "").strip().upper()


def _problem_of_bits(dataset: Dataset) -> tuple[str, str] | None:
    allocated, signed = dataset.BitsAllocated, dataset.get("PixelRepresentation")
    if allocated not in (1, 8, 16, 32, 64):
        return f"BitsAllocated is {allocated}", "export the image with 8 or 16 bits allocated"
    if dataset.Rows < 1 or dataset.Columns < 1:
        return f"an image of {dataset.Rows} x {dataset.Columns} pixels", dicom_pixels.REPAIR
    if any(dataset.get(key) for key in dicom_pixels.ELEMENTS[1:]):
        return None
    bits = dataset.get("BitsStored")
    if not isinstance(bits, int) or not 1 <= bits <= allocated:
        return f"BitsStored is {bits} of {allocated} allocated", dicom_pixels.REPAIR
    high = high_bit(dataset)
    if not isinstance(high, int) or not bits - 1 <= high < allocated:
        return f"HighBit is {high} for {bits} of {allocated} bits", dicom_pixels.REPAIR
    if signed not in (0, 1):
        return f"PixelRepresentation is {signed}, neither 0 nor 1", dicom_pixels.REPAIR
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    if high != bits - 1 and syntax.is_compressed and syntax != RLELossless:
        return f"HighBit is {high} for {bits} bits of compressed pixels", "convert the file to an uncompressed one"
    return None


def _problem_of_display(dataset: Dataset, attributes: Dataset, photometric: str) -> tuple[str, str] | None:
    """What in the header prevents the display of the pixels, or None."""
    if _word(dataset, "PresentationIntentType") == "FOR PROCESSING" or "For Processing" in _sop_class(dataset).name:
        what = "a raw image FOR PROCESSING, which does not look like a mammogram prepared for reading"
        return what, "export the images FOR PRESENTATION, and leave this one out (on_error=skip)"
    shape, fitting = _word(dataset, "PresentationLUTShape"), "INVERSE" if photometric == "MONOCHROME1" else "IDENTITY"
    if shape not in ("", fitting):
        what = f"PresentationLUTShape {shape} contradicts {photometric}, and viewers differ in which one they follow"
        right = f"if air is dark when displayed as {photometric}, delete PresentationLUTShape"
        return what, f"{right}, else correct PhotometricInterpretation"
    if "PresentationLUTSequence" in attributes and photometric == "MONOCHROME1":
        return "PresentationLUTSequence of a MONOCHROME1 image", "export it as MONOCHROME2"
    aspect, square = attributes.get("PixelAspectRatio") or (1, 1), "export the image with square pixels"
    if isinstance(aspect, str | int) or len(aspect) != 2 or not math.isclose(*map(float, aspect), rel_tol=_ASPECT):
        return f"the pixels are not square (PixelAspectRatio {aspect})", square
    spacing = pixel_spacing(attributes)  # files with a spacing have no PixelAspectRatio (PS3.3 C.7.6.3.1.7)
    if spacing and not math.isclose(*spacing, rel_tol=_ASPECT):
        return f"the pixels are not square: {spacing[0]:g} mm high, {spacing[1]:g} mm wide", square
    if _word(dataset, "RecommendedViewingMode") == "SUB":
        return "an image meant for display after mask subtraction", "export the subtracted image"
    if _word(dataset, "PixelPresentation") not in ("", "MONOCHROME"):
        return "a grey image with ranges displayed in colour (PixelPresentation)", "export it as a grey image"
    return None


def header_laterality(attributes: Dataset) -> str | None:
    """ "L" or "R" from the header, or None."""
    keys = ("FrameLaterality", "ImageLaterality", "Laterality")
    values = (str(attributes.get(key) or "").strip().upper() for key in keys)
    return next((value for value in values if value in ("L", "R")), None)


_VIEW_CODES = {  # SNOMED CT and SNOMED RT codes
    **{"399162004": "CC", "399368009": "MLO", "399260004": "ML", "399352003": "LM"},
    **{"R-10242": "CC", "R-10226": "MLO", "R-10224": "ML", "R-10228": "LM"},
}


def view(attributes: Dataset) -> str:
    """The view position, or the meaning of the SNOMED view code."""
    position = str(attributes.get("ViewPosition") or "").strip().upper()
    if position:
        return position
    codes = [str(item.get("CodeValue", "")) for item in attributes.get("ViewCodeSequence") or []]
    return _VIEW_CODES.get(codes[0], "") if codes else ""


def pixel_spacing(attributes: Dataset) -> tuple[float, float] | None:
    """(row, column) mm. PixelSpacing is calibrated; ImagerPixelSpacing applies at the detector."""
    for key in ("PixelSpacing", "ImagerPixelSpacing"):
        value = attributes.get(key)
        if value is None or isinstance(value, str | float) or len(value) != 2:
            continue
        row, column = float(value[0]), float(value[1])
        if row > 0 and column > 0:
            magnification = first_number(attributes, "EstimatedRadiographicMagnificationFactor") or 1.0
            divide_by = magnification if key == "ImagerPixelSpacing" and magnification > 0 else 1.0
            return row / divide_by, column / divide_by
    return None
