"""Image files of any kind that holds mammograms -> one grey image.

Shapes: H, W image size in pixels. Grey images are [H, W, 1] float32 in [0, 1].

8- and 16-bit PNG, JPEG, TIFF and DICOM. A file that is damaged is refused: what a decoder fills in for
missing bytes (grey blocks, black rows) looks like tissue to a detector.
"""

from __future__ import annotations

import io
import logging
import os
import struct
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import cv2
import numpy as np
from PIL import Image

from elk_jax import files
from elk_jax.data.sources import dicom
from elk_jax.data.sources.spec import BitDepth, SourceSpec
from elk_jax.errors import UserError, from_os_error
from elk_jax.fields import fits
from elk_jax.images.schema import ImageInfo

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom")
"""File name endings that count as images when a folder is searched."""

DARK = 1 / 8
"""Share of the range of 16 bits: an image that stays below it probably has values of fewer bits."""

_WARNED = Lock()
"""Acquired at the first suspiciously dark image and never released: one warning per process is enough."""


def decode_image(
    source: str | os.PathLike | bytes, *, name: object = "", frame: int | None = None, bit_depth: int | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Decode a file (or its bytes): image [H, W, 1] float32 in [0, 1], 1 is white, and what the file says of it.

    name: what to call bytes in an error. frame: of a multi-frame DICOM; None accepts single-frame files only.
    bit_depth: significant bits where the values have fewer than the file could hold (12-bit values in a 16-bit PNG);
        None takes the file's, and warns once where 16 bits seem to be too many. Ignored for DICOM files, which declare
        their own, and for files of fewer bits.

    The dict: `format` ("png", "jpeg", "tiff", "dicom"), `bits` (of a pixel in the file), `pixel_spacing` ((row, column)
    mm in the breast plane, or None), `laterality` ("L", "R" or None) and, for DICOM, what `dicom.decode` adds.

    UserError: missing, unreadable, truncated, not an image, not finite, or a value above 2**bit_depth - 1.
    """
    pixels, meta = decode_pixels(source, name=name, frame=frame)
    if pixels.dtype == np.float32:
        return pixels[..., None], meta
    white = 2 ** min(bit_depth or 16, meta["bits"]) - 1
    if not bit_depth and pixels.dtype == np.uint16:
        _warn_if_dark(int(pixels.max(initial=0)), _label(source, name))
    if bit_depth and pixels.max(initial=0) > white:
        what = f"pixel value {pixels.max()} does not fit in {bit_depth} bits"
        raise UserError(what, where=_label(source, name), todo="correct the bit depth, or leave it out")
    return (pixels.astype(np.float32) * np.float32(1.0 / white))[..., None].clip(0, 1), meta


def decode_as(
    spec: SourceSpec, source: str | os.PathLike | bytes, name: object = ""
) -> tuple[np.ndarray, dict[str, Any]]:
    """`decode_image` of a file of a data source, with what its settings say of its files."""
    return decode_image(source, name=name, bit_depth=spec.bit_depth)


def files_reader(
    folder: Path, infos: Sequence[ImageInfo], spec: SourceSpec, where: object = ""
) -> Callable[[int], np.ndarray]:
    """Position -> image [H, W, 1] of the file of `infos[position]` in a folder.

    A field `bit_depth` of an image goes before that of the source. UserError for an impossible one. where: what has it.
    """
    depths = [info.meta.get("bit_depth") or spec.bit_depth for info in infos]
    for info, depth in zip(infos, depths):
        check_bit_depth(depth, f"{where}, image {info.image_id}")
    return partial(_read_file, tuple((folder / info.file_name, depth) for info, depth in zip(infos, depths)))


def _read_file(files: Sequence[tuple[Path, int]], position: int) -> np.ndarray:
    """A function of the module, which worker processes can be sent."""
    path, bit_depth = files[position]
    return decode_image(path, bit_depth=bit_depth)[0]


def decode_pixels(
    source: str | os.PathLike | bytes, *, name: object = "", frame: int | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Like `decode_image`, but [H, W] uint8 or uint16 as stored; float32 in [0, 1] for DICOM, float TIFF."""
    where = _label(source, name)
    if frame is not None and not isinstance(source, bytes):
        try:
            with files.open_regular(source) as file:
                if _is_dicom(file.read(dicom.PREFIX), where):
                    return dicom.decode_frame(file, frame, name=where)
        except OSError as error:
            raise from_os_error(error, source) from error
    data = source if isinstance(source, bytes) else files.read_bytes(source)
    if not data:
        raise UserError("empty image file", where=where, todo="fetch the file again")
    if _is_dicom(data, where):
        return dicom.decode(data, name=where, frame=frame)
    with warnings.catch_warnings():  # of damaged metadata, which is not used
        warnings.simplefilter("ignore")
        pixels, kind = _decode_raster(data, where)
    if pixels.dtype == np.float32 and not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
        problem = "out of [0, 1]" if np.isfinite(pixels).all() else "NaN or infinite"
        raise UserError(f"pixel values are {problem}", where=where, todo="write the image again with valid pixels")
    depth = 32 if pixels.dtype == np.float32 else 8 * pixels.dtype.itemsize
    return pixels, {"format": kind, "bits": depth, "pixel_spacing": None, "laterality": None}


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


def _warn_if_dark(brightest: int, where: object) -> None:
    if 0 < brightest < DARK * 65536 and _WARNED.acquire(blocking=False):
        bits = brightest.bit_length()
        logging.getLogger(__name__).warning(
            f"the 16-bit image {where} is nearly black: no value is above {brightest}. If such files hold fewer bits, "
            f"set bit_depth={bits + bits % 2} or so (--bit_depth, config.data.NAME.bit_depth, or a field of the COCO "
            "image). If they are meant to be dark, set bit_depth=16"
        )


def _is_dicom(data: bytes, where: object) -> bool:
    return dicom.looks_like_dicom(data) or Path(str(where)).suffix.lower() in (".dcm", ".dicom")


def _label(source: str | os.PathLike | bytes, name: object) -> object:
    return name or ("bytes" if isinstance(source, bytes) else source)


def _decode_raster(data: bytes, where: object) -> tuple[np.ndarray, str]:
    """PNG, JPEG or TIFF bytes -> [H, W] uint8, uint16 or float32 and the format's name."""
    truncated = UserError("truncated image", where=where, todo="fetch the file again, or leave it out")
    damaged = lambda error: UserError(f"damaged image: {error}", where=where, todo="fetch the file again")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "TIFF"))
    except Image.UnidentifiedImageError as error:
        todo = "convert it, or leave it out"
        raise UserError("not a PNG, JPEG, TIFF or DICOM image", where=where, todo=todo) from error
    except Image.DecompressionBombError as error:
        raise UserError(f"image too large: {error}", where=where, todo="leave it out") from error
    except (OSError, ValueError, SyntaxError, struct.error) as error:
        raise damaged(error) from error
    kind = (image.format or "").lower()
    # Decoders silently fill in what is missing when a file ends between two rows of blocks: look for its end.
    if kind == "jpeg" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise truncated
    if kind == "png" and b"IEND\xaeB`\x82" not in data:
        raise truncated
    pages = getattr(image, "n_frames", 1)
    if pages > 1 and kind == "tiff":
        raise UserError(f"{pages} pages in one TIFF", where=where, todo="write one page per file")
    try:
        if kind == "png" and data[24] == 16 and data[25] in (2, 6):  # PIL cuts 16-bit colour down to 8 bits
            image.load()
            colours = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            if colours is None:
                raise OSError("colours could not be decoded")
            return _mean_of_colours(colours), kind
        image.draft("L", image.size)  # JPEG: decode the luma only, which is all there is in a grey picture
        return _grey(image), kind
    except (OSError, ValueError, SyntaxError, struct.error, EOFError) as error:
        cut_off = isinstance(error, OSError) and "truncated" in str(error)
        raise (truncated if cut_off else damaged(error)) from error


def _grey(image: Image.Image) -> np.ndarray:
    """A loaded PIL image of any mode -> [H, W] uint8, uint16 or float32."""
    if image.mode in ("L", "F"):
        return np.array(image)
    if image.mode.startswith("I"):  # 16-bit grey; PIL's 32-bit mode only ever carries 16 bits of a PNG
        pixels = np.array(image)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("more than 16 bits per pixel")
        return pixels.astype(np.uint16)
    if image.mode in ("1", "LA", "La"):
        return np.array(image.convert("L"))
    return _mean_of_colours(np.array(image.convert("RGB")))


def _mean_of_colours(pixels: np.ndarray) -> np.ndarray:
    """[H, W, 3 or 4] -> [H, W] in the same dtype; exact where the channels are equal, as in grey pictures."""
    colours = pixels[..., :3].astype(np.uint32)
    return ((colours.sum(-1) + 1) // 3).astype(pixels.dtype)
