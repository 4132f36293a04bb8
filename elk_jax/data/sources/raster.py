"""PNG, JPEG and TIFF files -> one channel of upright pixels, and their number of significant bits.

Shapes: H, W image size in pixels.

Pillow and OpenCV treat the same picture differently depending on its kind: orientation, white stored as 0, 16-bit
colours. Here one rule applies to all kinds.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin

from elk_jax import files
from elk_jax.budget import budget_for
from elk_jax.errors import UserError

_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.T,
    6: lambda pixels: pixels[::-1].T,
    7: lambda pixels: pixels[::-1, ::-1].T,
    8: lambda pixels: pixels[:, ::-1].T,
}
"""How to rotate [H, W] pixels for values of the orientation tag other than 1 (TIFF 6.0, section 8)."""
_SIDEWAYS = (5, 6, 7, 8)
_PHOTOMETRIC, _ORIENTATION = 262, 274
_CONVERT = "convert it to grey with 8 or 16 bits"


class Stored(NamedTuple):
    """The content of a file.

    pixels: [H, W] uint8 or uint16 as stored, or float32 in [0, 1]. meta: metadata of the file; its `bits` are the
    significant ones. width: bits of a pixel in the file. white_is_zero: integers must be inverted.
    """

    pixels: np.ndarray
    meta: dict[str, Any]
    width: int = 32
    white_is_zero: bool = False


def decode(data: bytes, where: object) -> Stored:
    """The content of a PNG, JPEG or TIFF file. where: its name, for errors.

    UserError: damaged, truncated, several pages, far larger than the file, a kind that decoders misread, or floats
    outside [0, 1].
    """
    with _errors_of(where):
        return _decode(data, where)


def size(data: bytes, where: object) -> tuple[int, int]:
    """(width, height) of the upright picture of a file, from its header. UserError as in `decode`, as far as the header
    shows it."""
    with _errors_of(where):
        tiff = _Tiff.read(data) if data[:4] in _TIFFS else None
        image = _opened(tiff.plain if tiff else data, where)
        width, height = image.size
        turned = (tiff.orientation if tiff else _orientation(image)) in _SIDEWAYS
        return (height, width) if turned else (width, height)


@contextmanager
def _errors_of(where: object) -> Iterator[None]:
    """Turn any error about the file into a UserError with this place; warnings are dropped."""
    try:
        with warnings.catch_warnings():  # about damaged metadata, which is not used
            warnings.simplefilter("ignore")
            yield
    except (UserError, MemoryError):
        raise
    except _Unusual as error:
        raise UserError(str(error), where=where, todo=_CONVERT) from error
    except Image.DecompressionBombError as error:
        raise UserError(f"image too large: {error}", where=where, todo="leave it out") from error
    except Exception as error:  # damaged bytes make decoders raise almost anything; it all means the same here
        cut_off = isinstance(error, _Truncated | OSError) and "truncated" in str(error)
        what, todo = ("truncated image", ", or leave it out") if cut_off else (f"damaged image: {error}", "")
        raise UserError(what, where=where, todo=f"fetch the file again{todo}") from error


class _Unusual(Exception):
    """An intact image of a kind that cannot be read."""


class _Truncated(Exception):
    """An image that ends too early."""


def _decode(data: bytes, where: object) -> Stored:
    """`decode`, but may raise anything for a damaged file."""
    tiff = _Tiff.read(data) if data[:4] in _TIFFS else None
    if tiff and not tiff.is_supported:
        raise _Unusual(f"a TIFF of an unusual kind: {tiff}")
    plain = tiff.plain if tiff else data
    image = _opened(plain, where)
    chunks = _png_chunks(data) if image.format == "PNG" else {}
    kind = "tiff" if tiff else "png" if chunks else "jpeg"
    pages = getattr(image, "n_frames", 1)
    if pages > 1 and kind != "jpeg":
        raise UserError(f"{pages} pages in one {kind.upper()}", where=where, todo="save one page per file")
    header = chunks.get(b"IHDR", b"")
    is_deep = tiff.is_deep_colour if tiff else header[8:9] == b"\x10" and header[9] in (2, 4, 6)
    width, height = image.size
    sample = 2 if is_deep or image.mode.startswith("I;") else 4 if image.mode in ("I", "F") else 1
    needed = width * height * (2 * sample * len(image.getbands()) + 4)
    budget_for(len(data), where).spend(needed, f"an image of {width} x {height} pixels")
    pixels = _deep_colour(image, plain) if is_deep else _grey(image)
    inverted = tiff is not None and tiff.white_is_zero
    if pixels.dtype == np.float32:
        _check_floats(pixels, where)
        pixels, inverted = 1 - pixels if inverted else pixels, False
    bits_of_file = tiff.width(pixels) if tiff else 8 * pixels.dtype.itemsize
    says = tiff.says if tiff else _significant_bits(header, chunks.get(b"sBIT", b"")) if chunks else bits_of_file
    believed = says < bits_of_file and pixels.dtype == np.uint16 and int(pixels.max(initial=0)) < 2**says
    bits = says if believed else bits_of_file
    meta = {"format": kind, "bits": bits, "pixel_spacing": None, "laterality": None}
    turn = _UPRIGHT.get(tiff.orientation if tiff else _orientation(image))
    return Stored(np.ascontiguousarray(turn(pixels)) if turn else pixels, meta, bits_of_file, inverted)


def _opened(data: bytes, where: object) -> Image.Image:
    """The picture, not decoded yet.

    Decoders silently fill in missing data if a file ends between two rows of blocks, so its end marker is checked.
    """
    files.check_there(data, where)
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "TIFF"))
    except Image.UnidentifiedImageError as error:
        if data[:4] in (*_TIFFS, _BIG_ENDIAN_BIG_TIFF):
            raise _Unusual("a TIFF of an unusual kind") from error
        if data.startswith((b"\x89PNG\r\n", b"\xff\xd8\xff")):
            raise ValueError("its header cannot be read") from error
        todo = "convert it, or leave it out"
        raise UserError("not a PNG, JPEG, TIFF or DICOM image", where=where, todo=todo) from error
    if image.format == "PNG":
        complete = b"IEND\xaeB`\x82" in data
    else:
        complete = image.format == "TIFF" or data.rfind(b"\xff\xd9") >= data.rfind(b"\xff\xda")
    if not complete:
        raise _Truncated("truncated")
    return image


def _check_floats(pixels: np.ndarray, where: object) -> None:
    if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
        problem = "outside [0, 1]" if np.isfinite(pixels).all() else "NaN or infinite"
        todo = "save floats from 0 (black) to 1 (white)"
        raise UserError(f"pixel values are {problem}", where=where, todo=todo)


_TIFFS, _BIG_ENDIAN_BIG_TIFF = (b"II*\0", b"MM\0*", b"II+\0"), b"MM\0+"


class _Tiff(NamedTuple):
    """The pixel format in the first directory of a TIFF; names are those of TIFF 6.0.

    plain: the file with the tags that decoders treat differently neutralised: PhotometricInterpretation 0, Orientation.
    """

    bits: tuple[int, ...]
    sample_format: int
    photometric: int
    orientation: int
    largest: int  # MaxSampleValue, 0 if absent
    by_planes: bool
    swapped: bool  # compressed, in big-endian byte order
    plain: bytes

    @classmethod
    def read(cls, data: bytes) -> _Tiff:
        _entries(data)
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:16] if data[2:3] == b"+" else data[:8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)

        def numbers(tag: int, default: int) -> tuple[int, ...]:
            values = np.atleast_1d(np.asarray(tags.get(tag, default), np.float64))
            return tuple(int(value) for value in values if np.isfinite(value)) or (default,)

        samples, bits = numbers(277, 1)[0], numbers(258, 1)
        photometric, orientation = numbers(_PHOTOMETRIC, -1)[0], numbers(_ORIENTATION, 1)[0]
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
        return f"{len(self.bits)} x {self.bits[0]}{kind} bits per pixel, photometric interpretation {photometric}"

    @property
    def white_is_zero(self) -> bool:
        return self.photometric == 0

    @property
    def is_deep_colour(self) -> bool:
        return len(self.bits) > 1 and max(self.bits) > 8

    @property
    def is_supported(self) -> bool:
        """Whether the decoders read such pixels correctly, and the tags are unambiguous."""
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
        """Significant bits implied by MaxSampleValue; a large number if that is a mere statistic of the pixels."""
        return self.largest.bit_length() if self.largest > 0 and not self.largest & (self.largest + 1) else 64

    def width(self, pixels: np.ndarray) -> int:
        """Usable bits of a pixel."""
        if pixels.dtype == np.uint16:
            return {12: 12, 16: 15 if self.sample_format == 2 else 16}.get(self.bits[0], 16)
        return 8 * pixels.dtype.itemsize


def _with_tag(data: bytes, tag: int, value: int) -> bytes:
    """A TIFF with another value for a single-number tag in its first directory."""
    order, at = "<" if data[:1] == b"I" else ">", 12 if data[2:3] == b"+" else 8
    for entry in _entries(data):
        found, kind = struct.unpack_from(order + "HH", data, entry)
        if found == tag and kind in (1, 3, 4):
            patched = bytearray(data)
            struct.pack_into(order + {1: "B", 3: "H", 4: "L"}[kind], patched, entry + at, value)
            return bytes(patched)
    return data


def _entries(data: bytes) -> range:
    """The positions of the entries in the first directory of a TIFF; _Truncated if the file ends within them."""
    order, big = "<" if data[:1] == b"I" else ">", data[2:3] == b"+"
    wide, step = (8, 20) if big else (2, 12)
    try:
        (start,) = struct.unpack_from(order + ("Q" if big else "L"), data, 8 if big else 4)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    except struct.error as error:
        raise _Truncated("truncated") from error
    end = start + wide + count * step
    if end > len(data):
        raise _Truncated("truncated")
    return range(start + wide, end, step)


def _png_chunks(data: bytes) -> dict[bytes, bytes]:
    """The first chunk of every name up to IEND; ValueError for a wrong checksum, which decoders overlook."""
    chunks: dict[bytes, bytes] = {}
    position = 8
    while b"IEND" not in chunks:
        length, name = struct.unpack_from(">L4s", data, position)
        (checksum,) = struct.unpack_from(">L", data, position + 8 + length)
        content = data[position + 8 : position + 8 + length]
        if zlib.crc32(content, zlib.crc32(name)) != checksum:
            raise ValueError("wrong checksum")
        chunks.setdefault(name, content)
        position += 12 + length
    return chunks


def _significant_bits(header: bytes, sbit: bytes) -> int:
    """Significant bits from the chunk sBIT of a PNG, with its IHDR; a large number without sBIT.

    The standard requires such values to be scaled up to all bits, but many writers leave them unscaled: if all are
    below 2**bits, these are taken as the significant bits.
    """
    has_alpha = header[9] in (4, 6)
    return max(sbit[: len(sbit) - has_alpha], default=64)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded JPEG or PNG; 1 if its metadata cannot be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged block of metadata raises any kind
        return 1


def _deep_colour(image: Image.Image, data: bytes) -> np.ndarray:
    """16 bits and several channels -> their mean, [H, W] uint16, without alpha.

    Pillow reduces such pictures to 8 bits; it is used only to detect damage.
    """
    image.load()
    colours = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if colours is None or colours.dtype != np.uint16 or colours.ndim != 3 or colours.shape[-1] not in (3, 4):
        raise _Unusual("16-bit colours in a form that cannot be read")
    return _mean_of_colours(colours)


def _grey(image: Image.Image) -> np.ndarray:
    """A picture of any mode -> [H, W] uint8, uint16 or float32."""
    image.draft("L", image.size)  # JPEG: decode only the luma, which is all that a grey picture contains
    if image.mode in ("L", "F"):
        return np.array(image)
    if image.mode.startswith("I"):  # 16-bit grey, or 32-bit integers that may need only 16 bits
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
