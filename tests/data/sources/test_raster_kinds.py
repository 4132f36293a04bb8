"""PNG and TIFF of every kind of pixel, written byte by byte; turned pictures; pictures far larger than their files."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from elk_jax.data.sources import raster
from elk_jax.data.sources.decode import decode_image, decode_pixels
from tests.refusals import refused

GREY = np.random.default_rng(0).integers(0, 65536, (5, 7)).astype(np.uint16)
TWELVE = GREY >> 4
EIGHT = (GREY >> 8).astype(np.uint8)
SHARES = np.random.default_rng(1).random((5, 7)).astype(np.float32)


def tiff(pixels, order="<", big=False, **tags) -> bytes:
    """An uncompressed TIFF of [H, W] or [H, W, C] pixels; tags: other values than those of grey pixels."""
    pixels = np.asarray(pixels)
    height, width, samples = (*pixels.shape, 1)[:3]
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    start = 16 if big else 8
    entries = {256: (width,), 257: (height,), 258: (8 * pixels.dtype.itemsize,) * samples, 259: (1,), 262: (1,)}
    entries |= {273: (start,), 277: (samples,), 278: (height,), 279: (len(data),)}
    if pixels.dtype.kind != "u":
        entries[339] = ({"i": 2, "f": 3}[pixels.dtype.kind],) * samples
    entries |= {NUMBERS[key]: value if isinstance(value, tuple) else (value,) for key, value in tags.items()}
    entries = {tag: values for tag, values in entries.items() if values}
    data += b"\0" * (len(data) % 2)
    word, step, room = ("Q", 20, 8) if big else ("L", 12, 4)
    after = start + len(data) + struct.calcsize(f"={'Q' if big else 'H'}") + step * len(entries) + room
    directory, more = struct.pack(order + ("Q" if big else "H"), len(entries)), b""
    for tag, values in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(values)}H", *values)
        if len(packed) > room:
            packed, more = struct.pack(order + word, after + len(more)), more + packed
        directory += struct.pack(f"{order}HH{word}", tag, 3, len(values)) + packed.ljust(room, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HHHQ" if big else f"{order}HL", *(
        (43, 8, 0, start + len(data)) if big else (42, start + len(data))
    ))  # fmt: skip
    return head + data + directory + b"\0" * room + more


NUMBERS = {
    **{"width": 256, "bits": 258, "photometric": 262, "orientation": 274, "largest": 281, "planar": 284, "extra": 338},
}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def png(rows: bytes, width: int, height: int, colour: int, depth=16, extra=b"", after=b"") -> bytes:
    header = struct.pack(">LLBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"".join(
        (b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), extra, chunk(b"IDAT", rows), after, chunk(b"IEND", b""))
    )


def png_of(pixels, **options) -> bytes:
    """A 16-bit PNG of [H, W, C] pixels: grey, grey and alpha, colours, colours and alpha."""
    lines = (b"\0" + line.astype(">u2").tobytes() for line in pixels)
    height, width, channels = pixels.shape
    return png(zlib.compress(b"".join(lines)), width, height, {1: 0, 2: 4, 3: 2, 4: 6}[channels], **options)


def channels(pixels, count: int) -> np.ndarray:
    """Grey pixels as colours (3), and 2 or 4 with an alpha that is not to be seen."""
    alpha = [np.full_like(pixels, 9)] if count in (2, 4) else []
    return np.stack([pixels] * (count - len(alpha)) + alpha, -1)


def packed_twelve(pixels) -> np.ndarray:
    """[H, W] with even W -> [H, 1.5 W] bytes, two pixels in three."""
    a, b = pixels[:, ::2].astype(int), pixels[:, 1::2].astype(int)
    return np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], -1).reshape(len(pixels), -1).astype(np.uint8)


EVEN, ONE_BIT = TWELVE[:, :6], np.full((2, 1), 0b01100000, np.uint8)
KINDS = {
    "16 bits": (tiff(GREY), GREY / 65535, 16),
    "16 bits, big endian": (tiff(GREY, ">"), GREY / 65535, 16),
    "16 bits, BigTIFF": (tiff(GREY, big=True), GREY / 65535, 16),
    "16 bits, white is 0": (tiff(GREY, photometric=0), 1 - GREY / 65535, 16),
    "16 bits, white is 0, big endian": (tiff(GREY, ">", photometric=0), 1 - GREY / 65535, 16),
    "16 bits, white is 0, BigTIFF": (tiff(GREY, big=True, photometric=0), 1 - GREY / 65535, 16),
    "8 bits, white is 0": (tiff(EIGHT, photometric=0), 1 - EIGHT / 255, 8),
    "8 bits and alpha, white is 0": (tiff(channels(EIGHT, 2), photometric=0, extra=2), 1 - EIGHT / 255, 8),
    "1 bit": (tiff(ONE_BIT, bits=1, width=4), [[0, 1, 1, 0]] * 2, 8),
    "1 bit, white is 0": (tiff(ONE_BIT, bits=1, width=4, photometric=0), [[1, 0, 0, 1]] * 2, 8),
    "float": (tiff(SHARES), SHARES, 32),
    "float, white is 0": (tiff(SHARES, photometric=0), 1 - SHARES, 32),
    "12 bits": (tiff(packed_twelve(EVEN), bits=12, width=6), EVEN / 4095, 12),
    "12 bits, white is 0": (tiff(packed_twelve(EVEN), bits=12, width=6, photometric=0), 1 - EVEN / 4095, 12),
    "12 bits by the largest value": (tiff(TWELVE, largest=4095), TWELVE / 4095, 12),
    "12 bits by the largest value, white is 0": (tiff(TWELVE, largest=4095, photometric=0), 1 - TWELVE / 4095, 12),
    "the largest value of this image": (tiff(GREY // 2, largest=int(GREY.max() // 2)), GREY // 2 / 65535, 16),
    "a largest value that is not": (tiff(GREY, largest=4095), GREY / 65535, 16),
    "signed 16 bits": (tiff((GREY >> 1).astype(np.int16)), (GREY >> 1) / 32767, 15),
    "16-bit colours": (tiff(channels(GREY, 3), photometric=2), GREY / 65535, 16),
    "colours of 16 bits, big endian": (tiff(channels(GREY, 3), ">", photometric=2), GREY / 65535, 16),
    "colours of 16 bits and alpha": (tiff(channels(GREY, 4), photometric=2, extra=2), GREY / 65535, 16),
    **{f"PNG, {n} channels": (png_of(channels(GREY, n)), GREY / 65535, 16) for n in (1, 2, 3, 4)},
    **{
        f"PNG of 12 bits, {n} channels": (png_of(channels(TWELVE, n), extra=chunk(b"sBIT", sbit)), TWELVE / 4095, 12)
        for n, sbit in ((1, b"\x0c"), (2, b"\x0c\x10"), (3, b"\x0c" * 3), (4, b"\x0c" * 3 + b"\x10"))
    },
    "PNG, scaled up from 12 bits": (png_of(channels(GREY, 1), extra=chunk(b"sBIT", b"\x0c")), GREY / 65535, 16),
}
"""Kinds of pixels: the file, the image, its significant bits."""


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_pixel(kind):
    data, wanted, bits = KINDS[kind]
    image, meta = decode_image(data)
    np.testing.assert_allclose(image[..., 0], wanted, atol=1e-6)
    assert meta["bits"] == bits
    pixels, _ = decode_pixels(data)
    full = 1 if pixels.dtype == np.float32 else np.iinfo(pixels.dtype).max
    np.testing.assert_allclose(pixels / full, wanted, atol=0.5 / 65535 + 1e-6)


@pytest.mark.parametrize(
    "data",
    [
        *(png_of(channels(TWELVE, n)) for n in (1, 2, 3, 4)),
        tiff(TWELVE),
        tiff(4095 - TWELVE, photometric=0),
        *(tiff(channels(TWELVE, n), photometric=2) for n in (3, 4)),
    ],
)
def test_a_bit_depth_holds_for_every_kind(data):
    np.testing.assert_allclose(decode_image(data, bit_depth=12)[0][..., 0], TWELVE / 4095, atol=1e-6)
    np.testing.assert_allclose(decode_pixels(data, bit_depth=12)[0], TWELVE * (65535 / 4095), atol=0.51)
    with refused("does not fit", 10):
        decode_image(data, bit_depth=10)


@pytest.mark.parametrize(
    "data",
    [
        tiff(GREY, big=True, order=">"),
        tiff(channels(GREY, 2), extra=2),
        tiff(np.moveaxis(channels(GREY, 3), -1, 0).reshape(5, 7, 3), photometric=2, planar=2),
        tiff(-GREY.astype(np.int16) // 2 - 1),
        tiff(EIGHT.view(np.int8)),
        tiff(GREY.astype(np.uint32) * 9),
        tiff(SHARES.astype(np.float64)),
        tiff(SHARES.astype(np.float16)),
        tiff(channels(EIGHT, 3), photometric=8),
        tiff(EIGHT, photometric=()),
    ],
    ids=["BigTIFF", "alpha", "planes", "signed", "signed 8", "32 bits", "float64", "float16", "LAB", "not said"],
)
def test_kinds_that_are_not_read_as_they_are_meant(data):
    with refused(where="a.tif") as raised:
        decode_image(data, name="a.tif")
    assert "convert" in raised.value.todo


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_by_one_rule(orientation):
    """As Pillow turns them. A box drawn on the turned picture is that of the same pixels in every kind of file."""
    exif = Image.Exif()
    exif[274] = orientation
    first = io.BytesIO()
    Image.fromarray(EIGHT).save(first, "PNG", exif=exif)
    upright = np.array(ImageOps.exif_transpose(Image.open(first)))
    saved = lambda kind, **options: (
        (buffer := io.BytesIO()),
        Image.fromarray(np.kron(EIGHT, np.ones((16, 16), np.uint8))).save(buffer, kind, exif=exif, **options),
    )[0].getvalue()
    block = exif.tobytes()[6:]
    for data, tolerance in (
        (first.getvalue(), 0),
        (saved("JPEG", quality=100), 2),
        (tiff(EIGHT, orientation=orientation), 0),
        (tiff(GREY, orientation=orientation), 0.5),
        (tiff(GREY, ">", photometric=0, orientation=orientation), None),
        (tiff(channels(GREY, 3), photometric=2, orientation=orientation), 0.5),
        (png_of(channels(GREY, 4), extra=chunk(b"eXIf", block)), 0.5),
        (png_of(channels(GREY, 1), after=chunk(b"eXIf", block)), 0.5),
    ):
        image = decode_image(data)[0][..., 0]
        assert raster.size(data, "") == image.shape[::-1]
        image = 1 - image if tolerance is None else image
        image = image[8::16, 8::16] if image.size > EIGHT.size else image
        np.testing.assert_allclose(image, upright / 255, atol=(0.5 if tolerance is None else tolerance + 0.1) / 128)


def test_pictures_far_larger_than_their_files():
    compress = zlib.compressobj(1)
    rows = b"".join(compress.compress(bytes(1 + 3 * 13000)) for _ in range(20)) + compress.flush()
    with refused("13000 x 13000", where="bomb.png"):
        decode_image(png(rows, 13000, 13000, colour=2, depth=8), name="bomb.png")
    with refused("too large", where="bomb.png"):
        decode_image(png(rows, 60000, 60000, colour=0, depth=8), name="bomb.png")


def test_a_flipped_byte_in_deep_colours_is_refused():
    data = png_of(channels(GREY, 3))
    for position in range(36, len(data) - 16, 9):
        bent = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        with refused(where="bent") as raised:
            decode_image(bent, name="bent")
        assert "fetch" in raised.value.todo
