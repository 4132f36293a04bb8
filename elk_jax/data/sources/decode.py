"""Image files of any kind used for mammograms -> one grey image.

Shapes: H, W image size in pixels. Grey images are [H, W, 1] float32 in [0, 1].

8- and 16-bit PNG, JPEG, TIFF and DICOM. A damaged file is refused: what a decoder fills in for missing bytes (grey
blocks, black rows) looks like tissue to a detector.

Pictures are rotated according to their orientation tag (EXIF in JPEG and PNG, TIFF's own tag), as in viewers and
annotation tools. Size and boxes refer to the rotated picture.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from elk_jax import files
from elk_jax.data.sources import dicom, raster
from elk_jax.data.sources.dark import warn_if_dark
from elk_jax.data.sources.raster import Stored
from elk_jax.data.sources.spec import BitDepth, SourceSpec
from elk_jax.errors import UserError, from_os_error
from elk_jax.fields import fits
from elk_jax.images.names import whole_number
from elk_jax.images.schema import ImageInfo

DICOM_SUFFIXES = (".dcm", ".dicom")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", *DICOM_SUFFIXES)
"""File name endings that count as images when a folder is searched."""
DECODING = ("frame", "bit_depth")
"""Fields of an image that control how its file is decoded."""


def decode_image(
    source: str | os.PathLike | bytes, *, name: object = "", frame: int | None = None, bit_depth: int | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Decode a file (or its bytes): image [H, W, 1] float32 in [0, 1], 1 is white, and the metadata of the file.

    name: names bytes in an error. frame: of a multi-frame DICOM; None accepts single-frame files only.
    bit_depth: significant bits if the values have fewer than the file allows (12-bit values in a 16-bit PNG); None uses
        those of the file, and warns once if 16 bits seem too many. Ignored for files with fewer bits, and for DICOM
        files that define their display: by a window, a look-up table or fewer than 16 stored bits.

    The dict: `format` ("png", "jpeg", "tiff", "dicom"), `bits` (significant, of a pixel in the file), `pixel_spacing`
    ((row, column) mm in the breast plane, or None), `laterality` ("L", "R" or None) and, for DICOM, what
    `dicom.decode` adds.

    UserError: missing, unreadable, truncated, not an image, not finite, or a value above 2**bit_depth - 1.
    """
    return _not_blank(*_decoded(source, name, frame, bit_depth), _label(source, name))


def decode_pixels(
    source: str | os.PathLike | bytes, *, name: object = "", frame: int | None = None, bit_depth: int | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Like `decode_image`, but [H, W] uint8 or uint16, where the largest value of the type is white.

    The values are as stored, unless fewer bits are significant. float32 in [0, 1] for DICOM and float TIFF.
    """
    stored = _stored(source, name, frame, bit_depth)
    if stored.pixels.dtype == np.float32:
        return _not_blank(stored.pixels, stored.meta, _label(source, name))
    white, full = _white(stored, bit_depth, _label(source, name)), np.iinfo(stored.pixels.dtype).max
    if white == full and not stored.white_is_zero:
        return stored.pixels, stored.meta
    return np.round(_grey_values(stored, white) * full).astype(stored.pixels.dtype), stored.meta


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """(width, height) of the image that `decode_image` returns, from the file's header. UserError as there."""
    with files.open_regular(path) as file:
        try:
            if _is_dicom(file.read(dicom.PREFIX), path):
                return dicom.size(file, path)
            file.seek(0)
            return raster.size(file.read(), path)
        except OSError as error:
            raise from_os_error(error, path) from error


def decode_as(
    spec: SourceSpec, source: str | os.PathLike | bytes, name: object = "", frame: int | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """`decode_image` of a file of a data source, with the source's settings for its files."""
    return decode_image(source, name=name, frame=frame, bit_depth=spec.bit_depth)


def slice_reader(
    spec: SourceSpec, places: Sequence[tuple[Path, int | None]]
) -> Callable[[int], tuple[np.ndarray, dict[str, Any]]]:
    """Position -> `decode_as` of a slice of a volume, from its file and frame.

    One window applies to the whole volume, so an end slice of air may come out blank; the middle slice must not.
    """
    return partial(_read_slice, spec, tuple(places))


def _read_slice(
    spec: SourceSpec, places: tuple[tuple[Path, int | None], ...], position: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """A module-level function, so that it can be sent to worker processes."""
    path, frame = places[position]
    image, meta = _decoded(path, "", frame, spec.bit_depth)
    if meta.get("blank"):
        path, frame = places[len(places) // 2]
        _not_blank(*_decoded(path, "", frame, spec.bit_depth), path)
    return image, meta


def decoding_of_partner(meta: Mapping[str, Any], field: str) -> dict[str, Any]:
    """The fields of an image for the file named in `field`: FIELD_frame and FIELD_bit_depth in place of DECODING's."""
    rest = {name: value for name, value in meta.items() if name not in DECODING}
    return rest | {name: meta[f"{field}_{name}"] for name in DECODING if f"{field}_{name}" in meta}


def files_reader(
    folder: Path, infos: Sequence[ImageInfo], spec: SourceSpec, where: object = ""
) -> Callable[[int], np.ndarray]:
    """Position -> image [H, W, 1] of the file of `infos[position]` in a folder.

    A field `bit_depth` of an image overrides that of the source; a field `frame` selects a frame of a multi-frame DICOM
    file. UserError for an impossible value. where: the place of the fields, for errors.
    """
    places = []
    for info in infos:
        entry, depth = f"{where}, image {info.image_id}", info.meta.get("bit_depth") or spec.bit_depth
        check_bit_depth(depth, entry)
        places.append((folder / info.file_name, depth, checked_frame(info.meta.get("frame"), entry)))
    return partial(_read_file, tuple(places))


def _read_file(places: Sequence[tuple[Path, int, int | None]], position: int) -> np.ndarray:
    """A module-level function, so that it can be sent to worker processes."""
    path, bit_depth, frame = places[position]
    return decode_image(path, bit_depth=bit_depth, frame=frame)[0]


def _decoded(
    source: str | os.PathLike | bytes, name: object, frame: int | None, bit_depth: int | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """`decode_image`, also if the window of the header makes the image blank."""
    stored = _stored(source, name, frame, bit_depth)
    if stored.pixels.dtype == np.float32:
        return stored.pixels[..., None], stored.meta
    return _grey_values(stored, _white(stored, bit_depth, _label(source, name)))[..., None], stored.meta


def _not_blank(image: np.ndarray, meta: dict[str, Any], where: object) -> tuple[np.ndarray, dict[str, Any]]:
    """UserError if the window of the header makes a single image blank: it cannot belong to these pixels."""
    if shade := meta.get("blank"):
        what = f"the {meta['voi']} in the header makes all pixels {shade}"
        raise UserError(what, where=where, todo="repair the DICOM header, or export the image again")
    return image, meta


def _stored(source: str | os.PathLike | bytes, name: object, frame: int | None, bit_depth: int | None) -> Stored:
    where = _label(source, name)
    if frame is not None and not isinstance(source, bytes):
        try:
            with files.open_regular(source) as file:
                if _is_dicom(file.read(dicom.PREFIX), where):
                    return Stored(*dicom.decode_frame(file, frame, name=where, bit_depth=bit_depth))
        except OSError as error:
            raise from_os_error(error, source) from error
    data = source if isinstance(source, bytes) else files.read_bytes(source)
    if _is_dicom(data, where):
        return Stored(*dicom.decode(data, name=where, frame=frame, bit_depth=bit_depth))
    if frame:
        raise UserError(f"no frame {frame}: the file is not a DICOM file", where=where, todo="leave the frame out")
    return raster.decode(data, where)


def _grey_values(stored: Stored, white: int) -> np.ndarray:
    """Integers -> [H, W] float32 in [0, 1], 1 is white. white: the largest one, or the black one of white_is_zero."""
    values = (stored.pixels.astype(np.float32) * np.float32(1.0 / white)).clip(0, 1)
    return 1 - values if stored.white_is_zero else values


def _white(stored: Stored, bit_depth: int | None, where: object) -> int:
    """The integer that means white, or black if white is zero."""
    brightest, bits = int(stored.pixels.max(initial=0)), stored.meta["bits"]
    if bit_depth:
        bits = min(bit_depth, stored.width)
        if brightest > 2**bits - 1:
            what = f"pixel value {brightest} does not fit in {bit_depth} bits"
            raise UserError(what, where=where, todo="correct the bit depth, or leave it out")
    elif bits == 16:
        warn_if_dark(brightest, bits, where)
    return 2**bits - 1


def as_integers(pixels: np.ndarray) -> np.ndarray:
    """uint8 and uint16 unchanged; float32 in [0, 1] (DICOM) as uint16, where 65535 is white."""
    return np.round(pixels * 65535).astype(np.uint16) if pixels.dtype == np.float32 else pixels


def encode_png(pixels: np.ndarray) -> bytes:
    """[H, W] uint8 or uint16 -> the bytes of a grey PNG."""
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim != 2:
        raise ValueError(f"a [H, W] uint8 or uint16 array is needed, not {pixels.shape} {pixels.dtype}")
    return cv2.imencode(".png", pixels)[1].tobytes()


def check_bit_depth(bit_depth: object, where: object = "") -> None:
    """UserError unless it is a number of significant bits, or 0 or None (the file's own)."""
    if bit_depth is not None and not fits(bit_depth, BitDepth):
        raise UserError(f"bit_depth is {bit_depth!r}", where=where, todo="give 1 to 16, or 0 for the file's own")


def checked_frame(value: Any, where: object = "") -> int | None:
    """The field `frame` of an image; UserError unless it is a whole number from 0, or None."""
    frame = whole_number(value)
    if value is not None and (frame is None or frame < 0):
        raise UserError(f"frame is {value!r}", where=where, todo="give the number of the frame in the file, from 0")
    return frame


def _is_dicom(data: bytes, where: object) -> bool:
    return dicom.looks_like_dicom(data) or Path(str(where)).suffix.lower() in DICOM_SUFFIXES


def _label(source: str | os.PathLike | bytes, name: object) -> object:
    return name or ("bytes" if isinstance(source, bytes) else source)
