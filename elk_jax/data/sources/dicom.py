"""DICOM mammograms -> grey images as a workstation would show them.

Shapes: H, W image size in pixels; F frames.

The order is that of the standard's grey-scale pipeline (PS3.4 Annex N.2): stored values -> modality LUT or
rescale -> VOI LUT or window -> presentation (MONOCHROME1 inverted). Attributes are looked up in the frame's
functional groups first, then in the shared ones, then at the top level, so enhanced multi-frame objects
(tomosynthesis) work like classic ones.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi, get_decoder, pixel_array
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from elk_jax.errors import UserError

_GROUPS = ("PixelMeasuresSequence", "FrameVOILUTSequence", "PixelValueTransformationSequence", "FrameAnatomySequence")
_ATTRIBUTES = (
    *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept", "BitsStored", "PixelRepresentation"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("PixelSpacing", "ImagerPixelSpacing", "EstimatedRadiographicMagnificationFactor"),
    *("FrameLaterality", "ImageLaterality", "Laterality", "ViewPosition", "ViewCodeSequence"),
)
_ITEM, _DELIMITER, _UNDEFINED = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD), 0xFFFFFFFF
"""Tags and length of encapsulated pixel data (PS3.5 A.4)."""

PREFIX = 132
"""Bytes that identify a DICOM file: a preamble of 128, and DICM."""


def looks_like_dicom(data: bytes) -> bool:
    """True when the 128-byte preamble is followed by DICM."""
    return data[128:PREFIX] == b"DICM"


def decode(data: bytes, *, name: object = "", frame: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
    """Decode the content of a DICOM file: image [H, W] float32 in [0, 1], 1 is white, and what the header says.

    name: of the file, for errors. frame: of a multi-frame object, 0-based; None accepts objects of one frame only.

    The header's dict: `format` "dicom"; `bits` stored; `pixel_spacing` (row, column) mm in the breast plane,
    or None; `laterality` "L", "R" or None; `laterality_header` what the header says; `view` "CC", "MLO", ... or "";
    `patient_id`; `frames` F; `photometric`; `voi` which of "lut", "window" or "full" was applied.

    UserError: damaged, without pixels, colour, a missing decoder (naming the package to install), no such frame.
    """
    with _errors_of(name):
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        found = any(key in dataset for key in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
        _check_header(dataset, found, name)
        return _decode(dataset, dataset, name, frame)


def decode_frame(file: BinaryIO, frame: int, *, name: object = "") -> tuple[np.ndarray, dict[str, Any]]:
    """`decode` of one frame of an open file: of its pixels, those of that frame alone are read.

    A file that is cut off, deflated or mislabelled is read as a whole.
    """
    with _errors_of(name):
        file.seek(0)
        dataset = pydicom.dcmread(file, force=True, stop_before_pixels=True)
        start, size = file.tell(), file.seek(0, io.SEEK_END)
        if start < size:
            _check_header(dataset, True, name)
            syntax = UID(dataset.file_meta.TransferSyntaxUID)
            known = syntax.is_transfer_syntax and not syntax.is_private
            if known and _pixels_are_complete(file, start, size, dataset):
                return _decode(dataset, file, name, frame)
    file.seek(0)
    return decode(file.read(), name=name, frame=frame)


@contextmanager
def _errors_of(name: object) -> Iterator[None]:
    """Whatever goes wrong with the file `name` becomes a UserError; warnings are dropped."""
    try:
        with warnings.catch_warnings():  # what matters is raised; the rest is about values that are not used
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Exception as error:  # a damaged header makes pydicom raise almost anything; all mean the same here
        raise UserError(f"damaged DICOM file: {error}", where=name, todo="fetch the file again") from error


def _decode(
    dataset: Dataset, pixels: Dataset | BinaryIO, name: object, frame: int | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """dataset: the header. pixels: where the stored values are, the same dataset or its file."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frame is None and frames > 1:
        raise UserError(f"{frames} frames in one file", where=name, todo="say which frame, or export single frames")
    if frame is not None and not 0 <= frame < frames:
        raise UserError(f"no frame {frame}: the file has {frames}", where=name, todo=f"choose 0 to {frames - 1}")
    attributes = _frame_attributes(dataset, frame or 0)
    photometric = str(dataset.get("PhotometricInterpretation", "")).strip().upper()
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        what = f"photometric interpretation {photometric or 'missing'}: not a grey image"
        raise UserError(what, where=name, todo="export it as MONOCHROME1 or MONOCHROME2")

    stored = _stored_values(pixels, UID(dataset.file_meta.TransferSyntaxUID), frame or 0, name)
    image, voi = _presented(stored, attributes, name)
    if photometric == "MONOCHROME1":
        image = 1 - image
    image[_padding(stored, dataset)] = 0

    header = _header_laterality(attributes)
    spacing = _pixel_spacing(attributes)
    return np.ascontiguousarray(image, np.float32), {
        "format": "dicom",
        "bits": int(dataset.get("BitsStored") or 8 * stored.dtype.itemsize),
        "pixel_spacing": spacing,
        "laterality": breast_side(image) or header,
        "laterality_header": header,
        "view": _view(attributes),
        "patient_id": str(dataset.get("PatientID", "")).strip(),
        "frames": frames,
        "photometric": photometric,
        "voi": voi,
    }


def breast_side(image: np.ndarray) -> str | None:
    """Laterality from pixels [H, W]: a left breast touches the image's left edge, a right one its right edge.

    "L", "R", or None where both sides look alike (no breast, a frame-filling close-up). This is the hanging
    that vendors store; headers are wrong often enough (BCS-DBT's reading code trusts the pixels too) that
    pixels win where they are clear.
    """
    breast = image > image.min() + 0.05 * np.ptp(image)
    strip = max(1, image.shape[1] // 20)
    left, right = breast[:, :strip].mean(), breast[:, -strip:].mean()
    if max(left, right) < 0.05 or min(left, right) > 0.5 * max(left, right):
        return None
    return "L" if left > right else "R"


def window(values: np.ndarray, center: float, width: float, function: str = "LINEAR", name: object = "") -> np.ndarray:
    """VOI window to [0, 1] (PS3.3 C.11.2.1.2 and C.11.2.1.3); function LINEAR, LINEAR_EXACT or SIGMOID."""
    values = values.astype(np.float64)
    if function == "SIGMOID" and width > 0:
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -500, 500)))
    if function == "LINEAR_EXACT" and width > 0:
        return np.clip((values - center) / width + 0.5, 0, 1)
    if function == "LINEAR" and width == 1:
        return (values > center - 0.5).astype(np.float64)
    if function == "LINEAR" and width > 1:
        return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
    what = f"window function {function} with width {width} is not defined"
    raise UserError(what, where=name, todo="repair the DICOM header")


def _check_header(dataset: Dataset, found: bool, name: object) -> None:
    """UserError for a header without which pixels cannot be decoded; one without a transfer syntax gets it.

    found: whether there are pixels.
    """
    complete = "Rows" in dataset and "Columns" in dataset
    if not found:
        kind = "DICOM file without pixels, or" if complete else "not a DICOM image, or"
        raise UserError(f"{kind} cut off before its pixels", where=name, todo="fetch the file again")
    if not complete:
        raise UserError("DICOM header without Rows or Columns", where=name, todo="export the image again")
    dataset.ensure_file_meta()
    if "TransferSyntaxUID" not in dataset.file_meta:  # old files without a preamble
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = explicit if implicit is False else ImplicitVRLittleEndian


def _pixels_are_complete(file: BinaryIO, start: int, size: int, dataset: Dataset) -> bool:
    """Whether the element with the pixels, from byte `start` on, ends before the file does."""
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    file.seek(start)
    header = file.read(8 if syntax.is_implicit_VR else 12)
    position, end = start + len(header), 0
    (length,) = struct.unpack("<L" if syntax.is_little_endian else ">L", header[-4:])
    if length != _UNDEFINED:
        bits = int(dataset.get("NumberOfFrames") or 1) * dataset.Rows * dataset.Columns * dataset.BitsAllocated
        end = position + max(length, -(-bits // 8))
    while not end:  # encapsulated: items to a delimiter
        file.seek(position)
        group, element, length = struct.unpack("<HHL", file.read(8).ljust(8, b"\0"))
        position += 8 + length
        if (group, element) != _ITEM:
            end = position if (group, element) == _DELIMITER else size + 1
    return end <= size


def _frame_attributes(dataset: Dataset, frame: int) -> Dataset:
    """One flat dataset: top level, overlaid with the shared and then the frame's own functional groups."""
    flat = Dataset()
    flat.file_meta = dataset.file_meta  # holds the byte order of the look-up tables
    for key in _ATTRIBUTES:
        if key in dataset:
            flat[key] = dataset[key]
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for group in [*shared[:1], *per_frame[frame : frame + 1]]:
        for sequence in _GROUPS:
            for item in (group.get(sequence) or [])[:1]:
                if "WindowCenter" in item and "VOILUTSequence" in flat:
                    del flat["VOILUTSequence"]  # the more specific place wins, whatever its form
                flat.update(item)
    return flat


def _stored_values(pixels: Dataset | BinaryIO, syntax: UID, frame: int, name: object) -> np.ndarray:
    """[H, W] integers (or floats) as stored, of one frame."""
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise UserError(f"transfer syntax {syntax.name} is not supported", where=name,
                        todo="convert the file to an uncompressed transfer syntax") from error  # fmt: skip
    package = _decoder_package(syntax)
    missing = UserError(f"no decoder for {syntax.name} is installed", where=name, todo=f"run: pip install {package}")
    if not decoder.is_available:
        raise missing
    try:
        stored = pixel_array(pixels, index=frame, transfer_syntax_uid=syntax)
    except (RuntimeError, NotImplementedError) as error:
        if syntax.is_compressed and "plugin" in str(error) and "does not support" in str(error):
            raise missing from error
        todo = "fetch the file again" + f", or try another decoder: pip install {package}" * syntax.is_compressed
        raise UserError(f"damaged or unsupported pixel data: {error}", where=name, todo=todo) from error
    except Exception as error:
        cut = "less than expected" in str(error) or "length of the pixel data" in str(error)
        what = "truncated pixel data" if cut else f"damaged pixel data: {error}"
        raise UserError(what, where=name, todo="fetch the file again") from error
    if stored.ndim != 2:
        what = f"pixels of shape {stored.shape}: not one grey image"
        raise UserError(what, where=name, todo="export it as a grey image")
    if not np.isfinite(stored).all():
        raise UserError("pixel values are NaN or infinite", where=name, todo="export the image again")
    return stored


def _decoder_package(syntax: UID) -> str:
    """What to install for a compressed transfer syntax."""
    if "2000" in syntax.name:  # JPEG 2000 and its high-throughput form
        return "pylibjpeg pylibjpeg-openjpeg"
    if "JPEG-LS" in syntax.name:
        return "pyjpegls"
    return "pylibjpeg pylibjpeg-libjpeg"


def _presented(stored: np.ndarray, attributes: Dataset, name: object) -> tuple[np.ndarray, str]:
    """Modality LUT or rescale, then VOI LUT, window or full range: [H, W] in [0, 1], and which it was."""
    values = apply_modality_lut(stored, attributes)
    if attributes.get("VOILUTSequence"):
        entries, first, bits = attributes.VOILUTSequence[0].LUTDescriptor
        indices = np.rint(np.minimum(values, first + (entries or 65536) - 1)).astype(np.int64)
        return np.clip(apply_voi(indices, attributes) / (2.0**bits - 1), 0, 1), "lut"
    center, width = _first(attributes.get("WindowCenter")), _first(attributes.get("WindowWidth"))
    if center is not None and width is not None:
        function = str(attributes.get("VOILUTFunction") or "LINEAR").strip().upper()
        return window(values, center, width, function, name), "window"
    black, white = _full_range(stored, values, attributes)
    return np.clip((values.astype(np.float64) - black) / (white - black), 0, 1), "full"


def _full_range(stored: np.ndarray, values: np.ndarray, attributes: Dataset) -> tuple[float, float]:
    """Smallest and largest value that the modality step can put out."""
    if attributes.get("ModalityLUTSequence"):
        return 0.0, 2.0 ** attributes.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    if stored.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        return low, high if high > low else low + 1
    bits, signed = int(attributes.get("BitsStored") or 16), int(attributes.get("PixelRepresentation") or 0)
    ends = np.array([-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1] if signed else [0.0, 2.0**bits - 1])
    if "RescaleSlope" in attributes and "RescaleIntercept" in attributes:
        ends = ends * float(attributes.RescaleSlope) + float(attributes.RescaleIntercept)
    low, high = float(ends.min()), float(ends.max())
    return low, high if high > low else low + 1


def _padding(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    """[H, W] bool: pixels that hold no image (PS3.3 C.7.5.1.1.2), which are shown black."""
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int):
        return np.zeros(stored.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    limit = limit if isinstance(limit, int) else value
    return (stored >= min(value, limit)) & (stored <= max(value, limit))


def _header_laterality(attributes: Dataset) -> str | None:
    keys = ("FrameLaterality", "ImageLaterality", "Laterality")
    values = (str(attributes.get(key) or "").strip().upper() for key in keys)
    return next((value for value in values if value in ("L", "R")), None)


_VIEW_CODES = {  # SNOMED CT and SNOMED RT codes
    **{"399162004": "CC", "399368009": "MLO", "399260004": "ML", "399352003": "LM"},
    **{"R-10242": "CC", "R-10226": "MLO", "R-10224": "ML", "R-10228": "LM"},
}


def _view(attributes: Dataset) -> str:
    """View position, or the meaning of the SNOMED view code."""
    position = str(attributes.get("ViewPosition") or "").strip().upper()
    if position:
        return position
    codes = [str(item.get("CodeValue", "")) for item in attributes.get("ViewCodeSequence") or []]
    return _VIEW_CODES.get(codes[0], "") if codes else ""


def _pixel_spacing(attributes: Dataset) -> tuple[float, float] | None:
    """(row, column) mm. PixelSpacing is calibrated; ImagerPixelSpacing holds at the detector."""
    for key in ("PixelSpacing", "ImagerPixelSpacing"):
        value = attributes.get(key)
        if value is None or isinstance(value, str | float) or len(value) != 2:
            continue
        row, column = float(value[0]), float(value[1])
        if row > 0 and column > 0:
            magnification = _first(attributes.get("EstimatedRadiographicMagnificationFactor")) or 1.0
            divide_by = magnification if key == "ImagerPixelSpacing" and magnification > 0 else 1.0
            return row / divide_by, column / divide_by
    return None


def _first(value: Any) -> float | None:
    """First of a multi-valued number, or None."""
    if value is None or value == "":
        return None
    return float(value[0] if isinstance(value, list | tuple | pydicom.multival.MultiValue) else value)
