"""The pixels of a DICOM file as stored: whether they are complete, and one decoded frame.

Shapes: H, W image size in pixels.
"""

from __future__ import annotations

import io
import math
import struct
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import UID, RLELossless

from elk_jax.budget import Budget
from elk_jax.data.sources.dicom_grey import significant
from elk_jax.errors import UserError

ELEMENTS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
REPAIR = "repair the DICOM header, or export the image again"
_ITEM, _DELIMITER, _UNDEFINED = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD), 0xFFFFFFFF
"""Tags and length of encapsulated pixel data (PS3.5 A.4)."""
_RLE_MOST = 64
"""Largest compression factor of RLE: 2 bytes stand for 128."""


def begin_at(start: int, file: BinaryIO) -> bool:
    """Whether an element with pixels begins at byte `start` of a file."""
    file.seek(start)
    group = file.read(2)
    file.seek(start)
    return group in (b"\xe0\x7f", b"\x7f\xe0")


def are_complete(file: BinaryIO, start: int, size: int, dataset: Dataset) -> bool:
    """Whether the element with the pixels, from byte `start` on, ends before the file does; False if unknown."""
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    if start >= size or syntax.is_private or not syntax.is_transfer_syntax:
        return False
    sizes = [dataset.get(key) for key in ("Rows", "Columns", "BitsAllocated")]
    if not all(isinstance(size, int) for size in sizes):
        return False
    file.seek(start)
    header = file.read(8 if syntax.is_implicit_VR else 12)
    position, end = start + len(header), 0
    (length,) = struct.unpack("<L" if syntax.is_little_endian else ">L", header[-4:])
    if length != _UNDEFINED:
        frames, bits = int(dataset.get("NumberOfFrames") or 1), math.prod(sizes)
        if _holds_more(length, frames, bits):
            return False
        end = position + max(length, -(-frames * bits // 8))
    while not end:  # encapsulated: items to a delimiter
        file.seek(position)
        group, element, length = struct.unpack("<HHL", file.read(8).ljust(8, b"\0"))
        position += 8 + length
        if (group, element) != _ITEM:
            end = position if (group, element) == _DELIMITER else size + 1
    return end <= size


def check_decoder(syntax: UID) -> None:
    """UserError unless a decoder for a transfer syntax is installed."""
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        todo = "convert the file to an uncompressed transfer syntax"
        raise UserError(f"transfer syntax {syntax.name} is not supported", todo=todo) from error
    if not decoder.is_available:
        raise _no_decoder(syntax)


def stored_values(
    pixels: Dataset | BinaryIO, dataset: Dataset, frame: int, budget: Budget
) -> tuple[np.ndarray, np.ndarray]:
    """[H, W] integers (or floats) of one frame as stored, and the words that contain them.

    pixels: their source, the same dataset, or its file at their element. UserError if they are damaged, differ in size
    from the header, are not grey or not finite, lack a decoder, or unpack to more than the budget.
    """
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    if syntax.is_encapsulated:
        _check_encoded(pixels, dataset, frame, budget)
    else:
        _check_length(dataset)
    check_decoder(syntax)
    by_bits = not syntax.is_compressed or syntax == RLELossless  # other decoders put values where they belong
    options: dict[str, Any] = {"correct_unused_bits": False} if by_bits else {}
    try:
        stored = pixel_array(pixels, index=frame, transfer_syntax_uid=syntax, **options)
    except (RuntimeError, NotImplementedError) as error:
        tried = str(error).splitlines()[1:]  # a line for every decoder
        if syntax.is_compressed and tried and all("does not support" in line for line in tried):
            raise _no_decoder(syntax) from error
        other = f", or try another decoder: pip install {_decoder_package(syntax)}"
        todo = "fetch the file again" + other * syntax.is_compressed
        raise UserError(f"damaged or unsupported pixel data: {error}", todo=todo) from error
    except Exception as error:
        cut = "less than expected" in str(error) or "length of the pixel data" in str(error)
        what = "truncated pixel data" if cut else f"damaged pixel data: {error}"
        raise UserError(what, todo="fetch the file again") from error
    if stored.ndim != 2:
        raise UserError(f"pixels of shape {stored.shape}: not one grey image", todo="export it as a grey image")
    if not np.isfinite(stored).all():
        raise UserError("pixel values are NaN or infinite", todo="export the image again")
    return (significant(stored, dataset) if by_bits and stored.dtype.kind != "f" else stored), stored


def _check_length(dataset: Dataset) -> None:
    """UserError for native pixels of more frames than the header declares: it cannot belong to these pixels."""
    frames, bits = int(dataset.get("NumberOfFrames") or 1), dataset.Rows * dataset.Columns * dataset.BitsAllocated
    length = next((len(dataset[key].value) for key in ELEMENTS if dataset.get(key)), 0)
    if _holds_more(length, frames, bits):
        what = f"pixels of {8 * length // bits} frames of {dataset.Rows} x {dataset.Columns}, the header says {frames}"
        raise UserError(what, todo=REPAIR)


def _holds_more(length: int, frames: int, bits: int) -> bool:
    """Whether `length` bytes hold more than `frames` frames of `bits` bits each, beyond the padding of a block."""
    return 8 * length >= (frames + 1) * bits


def _check_encoded(pixels: Dataset | BinaryIO, dataset: Dataset, frame: int, budget: Budget) -> None:
    """UserError for a compressed frame whose size differs from the header's; decoders unpack whatever size it has."""
    offsets = tuple(dataset.get(key) for key in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"))
    start = 0 if isinstance(pixels, Dataset) else pixels.tell()
    try:
        if not isinstance(pixels, Dataset):
            pixels.seek(start + 12)  # the header of the element
        encoded = get_frame(
            pixels.PixelData if isinstance(pixels, Dataset) else pixels,
            frame,
            number_of_frames=int(dataset.get("NumberOfFrames") or 1),
            extended_offsets=offsets if all(offsets) else None,
        )
        rle = dataset.file_meta.TransferSyntaxUID == RLELossless
        size = None if rle else Image.open(io.BytesIO(encoded), formats=("JPEG", "JPEG2000")).size
    except Exception:  # a damaged frame, or another kind of frame: decoding it reports that
        return
    if size not in (None, (dataset.Columns, dataset.Rows)):
        what = f"a compressed frame of {size[1]} x {size[0]} pixels, the header has {dataset.Rows} x {dataset.Columns}"
        raise UserError(what, todo=REPAIR)
    if rle and len(encoded) * _RLE_MOST > budget.left:
        budget.spend(_rle_length(encoded), "an RLE frame")


def _rle_length(encoded: bytes) -> int:
    """Bytes that an RLE frame unpacks to (PS3.5 Annex G)."""
    count, *starts = struct.unpack_from("<16L", encoded)
    ends = [*starts[1:count], len(encoded)]
    total = 0
    for position, end in zip(starts, ends):
        while position < min(end, len(encoded)):
            control = encoded[position]
            total += 257 - control if control > 128 else control + 1 if control < 128 else 0
            position += 2 if control > 128 else control + 2 if control < 128 else 1
    return total


def _no_decoder(syntax: UID) -> UserError:
    return UserError(f"no decoder for {syntax.name} is installed", todo=f"run: pip install {_decoder_package(syntax)}")


def _decoder_package(syntax: UID) -> str:
    """What to install for a compressed transfer syntax."""
    if "2000" in syntax.name:  # JPEG 2000 and its high-throughput form
        return "pylibjpeg pylibjpeg-openjpeg"
    if "JPEG-LS" in syntax.name:
        return "pyjpegls"
    return "pylibjpeg pylibjpeg-libjpeg"
