"""Image files of any kind that holds mammograms -> one grey image.

Shapes: H, W image size in pixels. Grey images are [H, W, 1] float32 in [0, 1].

8- and 16-bit PNG, JPEG, TIFF and DICOM. A file that is damaged is refused: what a decoder fills in for
missing bytes (grey blocks, black rows) looks like tissue to a detector.

A picture is turned as its orientation tag says (EXIF in JPEG and PNG, a TIFF's own), as viewers and annotation tools
show it. Its size, and boxes in it, are those of the turned picture.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin

from elk_jax import files
from elk_jax.budget import budget_for
from elk_jax.data.sources import dicom
from elk_jax.data.sources.dark import warn_if_dark
from elk_jax.data.sources.spec import BitDepth, SourceSpec
from elk_jax.errors import UserError, from_os_error
from elk_jax.fields import fits
from elk_jax.images.schema import ImageInfo

DICOM_SUFFIXES = (".dcm", ".dicom")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", *DICOM_SUFFIXES)
"""File name endings that count as images when a folder is searched."""

_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.T,
    6: lambda pixels: pixels[::-1].T,
    7: lambda pixels: pixels[::-1, ::-1].T,
    8: lambda pixels: pixels[:, ::-1].T,
}
"""Values of the orientation tag other than 1 (TIFF 6.0, section 8): how to turn [H, W] pixels."""
_PHOTOMETRIC, _ORIENTATION = 262, 274
_CONVERT = "convert it to grey with 8 or 16 bits"


class Stored(NamedTuple):
    """The content of a file.

    pixels: [H, W] uint8 or uint16 as stored, or float32 in [0, 1]. meta: what the file says; its `bits` are the
    significant ones. width: bits that a pixel has in the file. white_is_zero: integers are to be inverted.
    """

    pixels: np.ndarray
    meta: dict[str, Any]
    width: int = 32
    white_is_zero: bool = False


def decode_image(
    source: str | os.PathLike | bytes, *, name: object = "", frame: int | None = None, bit_depth: int | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Decode a file (or its bytes): image [H, W, 1] float32 in [0, 1], 1 is white, and what the file says of it.

    name: what to call bytes in an error. frame: of a multi-frame DICOM; None accepts single-frame files only.
    bit_depth: significant bits where the values have fewer than the file could hold (12-bit values in a 16-bit PNG);
        None takes the file's, and warns once where 16 bits seem to be too many. Ignored for files of fewer bits, and
        for DICOM files that say how they are shown: by a window, a look-up table or fewer than 16 stored bits.

    The dict: `format` ("png", "jpeg", "tiff", "dicom"), `bits` (significant, of a pixel in the file), `pixel_spacing`
    ((row, column) mm in the breast plane, or None), `laterality` ("L", "R" or None) and, for DICOM, what
    `dicom.decode` adds.

    UserError: missing, unreadable, truncated, not an image, not finite, or a value above 2**bit_depth - 1.
    """
    stored = _stored(source, name, frame, bit_depth)
    if stored.pixels.dtype == np.float32:
        return stored.pixels[..., None], stored.meta
    return _grey_values(stored, _white(stored, bit_depth, _label(source, name)))[..., None], stored.meta


def decode_pixels(
    source: str | os.PathLike | bytes, *, name: object = "", frame: int | None = None, bit_depth: int | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Like `decode_image`, but [H, W] uint8 or uint16, where the largest value of the type is white.

    That is as stored, unless fewer bits are significant. float32 in [0, 1] for DICOM and float TIFF.
    """
    stored = _stored(source, name, frame, bit_depth)
    if stored.pixels.dtype == np.float32:
        return stored.pixels, stored.meta
    white, full = _white(stored, bit_depth, _label(source, name)), np.iinfo(stored.pixels.dtype).max
    if white == full and not stored.white_is_zero:
        return stored.pixels, stored.meta
    return np.round(_grey_values(stored, white) * full).astype(stored.pixels.dtype), stored.meta


def decode_as(
    spec: SourceSpec, source: str | os.PathLike | bytes, name: object = "", frame: int | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """`decode_image` of a file of a data source, with what its settings say of its files."""
    return decode_image(source, name=name, frame=frame, bit_depth=spec.bit_depth)


def files_reader(
    folder: Path, infos: Sequence[ImageInfo], spec: SourceSpec, where: object = ""
) -> Callable[[int], np.ndarray]:
    """Position -> image [H, W, 1] of the file of `infos[position]` in a folder.

    A field `bit_depth` of an image goes before that of the source; a field `frame` is that of a multi-frame DICOM file.
    UserError for an impossible one. where: what has it.
    """
    files = []
    for info in infos:
        place, depth = f"{where}, image {info.image_id}", info.meta.get("bit_depth") or spec.bit_depth
        check_bit_depth(depth, place)
        files.append((folder / info.file_name, depth, checked_frame(info.meta.get("frame"), place)))
    return partial(_read_file, tuple(files))


def _read_file(files: Sequence[tuple[Path, int, int | None]], position: int) -> np.ndarray:
    """A function of the module, which worker processes can be sent."""
    path, bit_depth, frame = files[position]
    return decode_image(path, bit_depth=bit_depth, frame=frame)[0]


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
    if not data:
        raise UserError("empty image file", where=where, todo="fetch the file again, or leave it out")
    if _is_dicom(data, where):
        return Stored(*dicom.decode(data, name=where, frame=frame, bit_depth=bit_depth))
    if frame:
        raise UserError(f"no frame {frame}: the file is no DICOM file", where=where, todo="leave the frame out")
    with warnings.catch_warnings():  # of damaged metadata, which is not used
        warnings.simplefilter("ignore")
        stored = _decode_raster(data, where)
    pixels = stored.pixels
    if pixels.dtype == np.float32 and not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
        problem = "out of [0, 1]" if np.isfinite(pixels).all() else "NaN or infinite"
        raise UserError(f"pixel values are {problem}", where=where, todo="write the image again with valid pixels")
    return stored


def _grey_values(stored: Stored, white: int) -> np.ndarray:
    """Integers -> [H, W] float32 in [0, 1], 1 is white. white: the largest one, or the black one of white_is_zero."""
    values = (stored.pixels.astype(np.float32) * np.float32(1.0 / white)).clip(0, 1)
    return 1 - values if stored.white_is_zero else values


def _white(stored: Stored, bit_depth: int | None, where: object) -> int:
    """The integer that is white, or black where white is zero."""
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
    """uint8 and uint16 as they are; float32 in [0, 1] (DICOM) as uint16, where 65535 is white."""
    return np.round(pixels * 65535).astype(np.uint16) if pixels.dtype == np.float32 else pixels


def encode_png(pixels: np.ndarray) -> bytes:
    """[H, W] uint8 or uint16 -> the bytes of a grey PNG."""
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim != 2:
        raise ValueError(f"a [H, W] uint8 or uint16 array is needed, not {pixels.shape} {pixels.dtype}")
    return cv2.imencode(".png", pixels)[1].tobytes()


def check_bit_depth(bit_depth: object, where: object = "") -> None:
    """UserError unless it is a number of significant bits, or 0 or None: the file's own."""
    if bit_depth is not None and not fits(bit_depth, BitDepth):
        raise UserError(f"bit_depth is {bit_depth!r}", where=where, todo="give 1 to 16, or 0: as the file says")


def checked_frame(frame: Any, where: object = "") -> int | None:
    """The field `frame` of an image; UserError unless it is a whole number from 0, or None."""
    if frame is not None and (type(frame) is not int or frame < 0):
        raise UserError(f"frame is {frame!r}", where=where, todo="give the number of the frame in the file, from 0")
    return frame


def _is_dicom(data: bytes, where: object) -> bool:
    return dicom.looks_like_dicom(data) or Path(str(where)).suffix.lower() in DICOM_SUFFIXES


def _label(source: str | os.PathLike | bytes, name: object) -> object:
    return name or ("bytes" if isinstance(source, bytes) else source)


def _decode_raster(data: bytes, where: object) -> Stored:
    """PNG, JPEG or TIFF bytes -> their pixels, turned; values are not checked."""
    truncated = UserError("truncated image", where=where, todo="fetch the file again, or leave it out")
    damaged = lambda error: UserError(f"damaged image: {error}", where=where, todo="fetch the file again")
    try:
        tiff = _Tiff.read(data) if data[:4] in _TIFFS else None
        if tiff and not tiff.is_supported:
            raise UserError(f"a TIFF of an unusual kind: {tiff}", where=where, todo=_CONVERT)
        image: Image.Image = Image.open(io.BytesIO(tiff.plain if tiff else data), formats=("PNG", "JPEG", "TIFF"))
    except Image.UnidentifiedImageError as error:
        if data[:4] in (*_TIFFS, _BIG_ENDIAN_BIG_TIFF):
            raise UserError(
                f"a TIFF of an unusual kind{f': {tiff}' if tiff else ''}", where=where, todo=_CONVERT
            ) from error
        todo = "convert it, or leave it out"
        raise UserError("not a PNG, JPEG, TIFF or DICOM image", where=where, todo=todo) from error
    except Image.DecompressionBombError as error:
        raise UserError(f"image too large: {error}", where=where, todo="leave it out") from error
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, struct.error) as error:
        raise damaged(error) from error
    kind = "tiff" if tiff else "png" if image.format == "PNG" else "jpeg"
    # Decoders silently fill in what is missing when a file ends between two rows of blocks: look for its end.
    if kind == "jpeg" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise truncated
    if kind == "png" and b"IEND\xaeB`\x82" not in data:
        raise truncated
    pages = getattr(image, "n_frames", 1)
    if pages > 1 and kind != "jpeg":
        raise UserError(f"{pages} pages in one {kind.upper()}", where=where, todo="write one page per file")
    deep = tiff.is_deep_colour if tiff else kind == "png" and data[24] == 16 and data[25] in (2, 4, 6)
    width, height = image.size
    a_pixel = len(image.getbands()) * (2 if deep or image.mode.startswith("I;") else 4 if image.mode in "IF" else 1)
    budget_for(len(data), where).spend(width * height * (2 * a_pixel + 4), f"an image of {width} x {height} pixels")
    try:
        if deep:  # PIL cuts it down to 8 bits
            image.load()
            pixels = _deep_colour(tiff.plain if tiff else data)
        else:
            image.draft("L", image.size)  # JPEG: decode the luma only, which is all there is in a grey picture
            pixels = _grey(image)
    except (OSError, ValueError, SyntaxError, struct.error, EOFError) as error:
        cut_off = isinstance(error, OSError) and "truncated" in str(error)
        raise (truncated if cut_off else damaged(error)) from error
    except _Unusual as error:
        raise UserError(str(error), where=where, todo=_CONVERT) from error
    width_of_pixel = tiff.width(pixels) if tiff else 8 * pixels.dtype.itemsize
    says = tiff.says if tiff else _significant_bits(data) if kind == "png" else width_of_pixel
    believed = says < width_of_pixel and pixels.dtype == np.uint16 and int(pixels.max(initial=0)) < 2**says
    inverted = tiff is not None and tiff.white_is_zero
    if inverted and pixels.dtype == np.float32:
        pixels, inverted = 1 - pixels, False
    turn = _UPRIGHT.get(tiff.orientation if tiff else _orientation(image))
    bits = says if believed else width_of_pixel
    meta = {"format": kind, "bits": bits, "pixel_spacing": None, "laterality": None}
    return Stored(np.ascontiguousarray(turn(pixels)) if turn else pixels, meta, width_of_pixel, inverted)


class _Unusual(Exception):
    """An intact image of a kind that cannot be read."""


_TIFFS, _BIG_ENDIAN_BIG_TIFF = (b"II*\0", b"MM\0*", b"II+\0"), b"MM\0+"


class _Tiff(NamedTuple):
    """What the first directory of a TIFF says of its pixels; names are those of TIFF 6.0.

    plain: the file with the tags that decoders treat differently taken out: PhotometricInterpretation 0, Orientation.
    """

    bits: tuple[int, ...]
    sample_format: int
    photometric: int
    orientation: int
    largest: int  # MaxSampleValue, 0 where it is not said
    by_planes: bool
    swapped: bool  # compressed, in the byte order of few machines
    plain: bytes

    @classmethod
    def read(cls, data: bytes) -> _Tiff:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:16] if data[2:3] == b"+" else data[:8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        numbers = lambda tag, default: (
            tuple(
                int(value)
                for value in np.atleast_1d(np.asarray(tags.get(tag, default), np.float64))
                if np.isfinite(value)
            )
            or (default,)
        )
        samples = numbers(277, 1)[0]
        bits, (photometric, *_), (orientation, *_) = (
            numbers(258, 1),
            numbers(_PHOTOMETRIC, -1),
            numbers(_ORIENTATION, 1),
        )
        plain = _with_tag(data, _ORIENTATION, 1) if orientation != 1 else data
        return cls(
            bits=(bits * samples)[:samples] if len(bits) == 1 else bits,
            sample_format=numbers(339, 1)[0],
            photometric=photometric,
            orientation=orientation,
            largest=max(*numbers(281, 0), *numbers(341, 0)),
            by_planes=numbers(284, 1)[0] == 2,
            swapped=data[:1] == b"M" and numbers(259, 1)[0] != 1,
            plain=_with_tag(plain, _PHOTOMETRIC, 1) if photometric == 0 else plain,
        )

    def __str__(self) -> str:
        kind = {1: "", 2: " signed", 3: " float"}.get(self.sample_format, " unknown")
        photometric = "missing" if self.photometric == -1 else self.photometric
        return f"{len(self.bits)} x {self.bits[0]}{kind} bits a pixel, photometric interpretation {photometric}"

    @property
    def white_is_zero(self) -> bool:
        return self.photometric == 0

    @property
    def is_deep_colour(self) -> bool:
        return len(self.bits) > 1 and max(self.bits) > 8

    @property
    def is_supported(self) -> bool:
        """Whether the decoders read such pixels as they are meant, and it is said what is meant."""
        if self.photometric == -1:
            return False
        if self.is_deep_colour:
            grey_levels = set(self.bits) == {16} and self.sample_format == 1
            return self.photometric == 2 and grey_levels and not self.by_planes
        if self.sample_format == 3:
            return self.bits == (32,) and not self.swapped
        return self.sample_format in (1, 4) or (self.sample_format == 2 and self.bits == (16,))

    @property
    def says(self) -> int:
        """Significant bits, as the largest value tells; many where none is named."""
        return self.largest.bit_length() if self.largest > 0 else 64

    def width(self, pixels: np.ndarray) -> int:
        """Bits of a pixel that can be used."""
        if pixels.dtype == np.uint16:
            return {12: 12, 16: 15 if self.sample_format == 2 else 16}.get(self.bits[0], 16)
        return 8 * pixels.dtype.itemsize


def _with_tag(data: bytes, tag: int, value: int) -> bytes:
    """A TIFF whose first directory has another value of a tag that is one number."""
    order, big = "<" if data[:1] == b"I" else ">", data[2:3] == b"+"
    (start,) = struct.unpack_from(order + ("Q" if big else "L"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    step, at = (20, 12) if big else (12, 8)
    for entry in range(start + (8 if big else 2), min(len(data) - step, start + 8 + count * step), step):
        found, kind = struct.unpack_from(order + "HH", data, entry)
        if found == tag and kind in (1, 3, 4):
            patched = bytearray(data)
            struct.pack_into(order + {1: "B", 3: "H", 4: "L"}[kind], patched, entry + at, value)
            return bytes(patched)
    return data


def _significant_bits(data: bytes) -> int:
    """The chunk sBIT of a PNG; many where there is none.

    The standard wants such values scaled up to all bits. Many writers leave them as they are: where all are below
    2**bits, these are taken for the significant ones.
    """
    position = 8
    while position + 8 <= len(data) and data[position + 4 : position + 8] not in (b"IDAT", b"IEND"):
        (length,) = struct.unpack_from(">L", data, position)
        if data[position + 4 : position + 8] == b"sBIT" and 1 <= length <= 4:
            of_alpha = data[25] in (4, 6)
            return max(data[position + 8 : position + 8 + length - of_alpha], default=64)
        position += 12 + length
    return 64


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded JPEG or PNG; 1 where its metadata cannot be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # of any kind that a damaged block of metadata raises
        return 1


def _deep_colour(data: bytes) -> np.ndarray:
    """PNG or TIFF of 16 bits and several channels -> their mean, [H, W] uint16; alpha is left out."""
    colours = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if colours is None or colours.dtype != np.uint16 or colours.ndim != 3 or colours.shape[-1] not in (3, 4):
        raise _Unusual("colours of 16 bits in a form that cannot be read")
    return _mean_of_colours(colours)


def _grey(image: Image.Image) -> np.ndarray:
    """A PIL image of any mode -> [H, W] uint8, uint16 or float32."""
    if image.mode in ("L", "F"):
        return np.array(image)
    if image.mode.startswith("I"):  # 16-bit grey, or 32-bit integers that may carry no more
        pixels = np.array(image)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise _Unusual("values below 0" if pixels.min() < 0 else "values of more than 16 bits")
        return pixels.astype(np.uint16)
    if image.mode in ("1", "LA", "La"):
        return np.array(image.convert("L"))
    image.load()
    if image.mode not in ("P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr"):
        raise _Unusual(f"colours of the kind {image.mode}")
    return _mean_of_colours(np.array(image.convert("RGB")))


def _mean_of_colours(pixels: np.ndarray) -> np.ndarray:
    """[H, W, 3 or 4] -> [H, W] in the same dtype; exact where the channels are equal, as in grey pictures."""
    total = pixels[..., 0].astype(np.uint32) + pixels[..., 1] + pixels[..., 2]
    return ((total + 1) // 3).astype(pixels.dtype)
