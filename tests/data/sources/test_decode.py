"""Every kind of file comes out as one grey image, and every damaged one as one line."""

from __future__ import annotations

import io
from threading import Lock

import cv2
import numpy as np
import pytest
from PIL import Image

from elk_jax.data.sources import dark
from elk_jax.data.sources.decode import as_integers, decode_image, decode_pixels, encode_png, image_size
from tests.refusals import refused

EIGHT = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)
SIXTEEN = np.random.default_rng(1).integers(0, 65536, (40, 30), dtype=np.uint16)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(height=64, width=48) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (127 + 80 * np.sin(x / 9) * np.cos(y / 7)).astype(np.uint8)


@pytest.mark.parametrize("pixels", [EIGHT, SIXTEEN], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_lossless_grey_is_exact(pixels, kind, tmp_path):
    path = tmp_path / f"x.{kind.lower()}"
    path.write_bytes(encoded(Image.fromarray(pixels), kind))
    image, meta = decode_image(path)
    assert image.shape == (40, 30, 1) and image.dtype == np.float32
    white = np.iinfo(pixels.dtype).max
    np.testing.assert_allclose(image[..., 0], pixels / white, atol=1e-7)
    assert image.min() >= 0 and image.max() <= 1
    assert meta["format"] == kind.lower() and meta["bits"] == 8 * pixels.dtype.itemsize
    assert meta["pixel_spacing"] is None
    np.testing.assert_array_equal(decode_pixels(path)[0], pixels)
    np.testing.assert_array_equal(np.round(image[..., 0] * white), pixels)


def test_black_and_white_are_the_ends():
    image, _ = decode_image(encode_png(np.array([[0, 65535]], np.uint16)))
    assert image.ravel().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("subsampling", [0, 2])
def test_grey_jpeg_stored_as_colour_equals_the_grey_one(subsampling):
    grey = Image.fromarray(smooth())
    as_grey, _ = decode_image(encoded(grey, "JPEG", quality=90))
    as_colour, meta = decode_image(encoded(grey.convert("RGB"), "JPEG", quality=90, subsampling=subsampling))
    assert np.abs(as_colour - as_grey).max() < 1.5 / 255
    assert np.abs(as_grey[..., 0] - smooth() / 255).max() < 0.05
    assert meta["format"] == "jpeg"


def test_progressive_jpeg():
    image, _ = decode_image(encoded(Image.fromarray(smooth()), "JPEG", quality=90, progressive=True))
    assert np.abs(image[..., 0] - smooth() / 255).max() < 0.05


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_grey_content_in_other_modes_is_exact(mode):
    image, _ = decode_image(encoded(Image.fromarray(EIGHT).convert(mode), "PNG"))
    np.testing.assert_allclose(image[..., 0], EIGHT / 255, atol=1e-7)


def test_one_bit():
    image, _ = decode_image(encoded(Image.fromarray(np.array([[0, 255, 255]], np.uint8)).convert("1"), "PNG"))
    assert image.ravel().tolist() == [0.0, 1.0, 1.0]


def test_colours_are_averaged():
    colours = np.zeros((2, 2, 3), np.uint8)
    colours[0, 0] = (30, 60, 90)
    image, _ = decode_image(encoded(Image.fromarray(colours), "PNG"))
    assert image[0, 0, 0] == pytest.approx(60 / 255)


def test_sixteen_bit_colour_keeps_its_depth():
    data = cv2.imencode(".png", np.repeat(SIXTEEN[..., None], 3, axis=-1))[1].tobytes()
    image, meta = decode_image(data)
    np.testing.assert_allclose(image[..., 0], SIXTEEN / 65535, atol=1e-7)
    assert meta["bits"] == 16


def test_twelve_bits_in_a_sixteen_bit_file():
    pixels = np.array([[0, 2048, 4095]], np.uint16)
    image, _ = decode_image(encode_png(pixels), bit_depth=12)
    np.testing.assert_allclose(image.ravel(), [0, 2048 / 4095, 1])
    with refused(4095, 10, where="scan"):
        decode_image(encode_png(pixels), name="scan", bit_depth=10)


def test_a_bit_depth_is_of_wider_files_alone():
    """A folder of 12-bit PNGs may hold JPEGs of 8 bits too."""
    image, _ = decode_image(encode_png(np.array([[0, 255]], np.uint8)), bit_depth=12)
    assert image.ravel().tolist() == [0.0, 1.0]


def test_one_warning_of_images_that_are_nearly_black(caplog, monkeypatch):
    monkeypatch.setattr(dark, "_WARNED", Lock())
    dim, bright = np.array([[0, 3000]], np.uint16), np.array([[0, 8192]], np.uint16)
    decode_image(encode_png(bright))
    decode_image(encode_png(dim), bit_depth=12)
    decode_image(encode_png(dim), bit_depth=16)
    decode_image(encode_png(np.zeros((1, 2), np.uint16)))
    assert not caplog.records
    decode_image(encode_png(dim), name="a.png")
    decode_image(encode_png(dim), name="b.png")
    (record,) = caplog.records
    assert all(word in record.message for word in ("a.png", "3000", "bit_depth=12"))


def test_float_tiff():
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    image, _ = decode_image(encoded(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(image[..., 0], values)
    values[1, 1] = np.nan
    with refused("NaN", where="a.tif"):
        decode_image(encoded(Image.fromarray(values), "TIFF"), name="a.tif")
    values[1, 1] = 1.5
    with refused("[0, 1]", where="a.tif"):
        decode_image(encoded(Image.fromarray(values), "TIFF"), name="a.tif")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
def test_a_jpeg_cut_anywhere_is_refused(options):
    data = encoded(Image.fromarray(smooth()), "JPEG", **options)
    decode_image(data)
    for length in [
        *range(1, len(data) - 2, max(1, len(data) // 40)),
        len(data) - 3,
        len(data) - 2,
        len(data) - 1,
    ]:
        with refused(where="cut.jpg"):
            decode_image(data[:length], name="cut.jpg")


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_lossless_file_cut_anywhere_is_refused(kind):
    data = encoded(Image.fromarray(SIXTEEN), kind)
    for length in [1, 10, 30, len(data) // 2, len(data) - 5]:
        with refused(where="cut"):
            decode_image(data[:length], name="cut")


def test_bytes_after_the_end_do_no_harm():
    data = encoded(Image.fromarray(smooth()), "JPEG")
    np.testing.assert_array_equal(decode_image(data + b"\0" * 100)[0], decode_image(data)[0])


def test_a_flipped_byte_in_a_png_is_refused():
    data = bytearray(encode_png(EIGHT))
    data[len(data) // 2] ^= 0xFF
    with refused(where="bent"):
        decode_image(bytes(data), name="bent")


@pytest.mark.parametrize("start", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_a_damaged_header_is_not_another_kind_of_file(start):
    with refused("damaged", "fetch", where="a.png"):
        decode_image(start + b"no header" * 9, name="a.png")


@pytest.mark.parametrize("content", [b"hello, this is no image" * 20, b"GIF89a" + b"\0" * 50])
def test_not_an_image(content, tmp_path):
    path = tmp_path / "notes.png"
    path.write_bytes(content)
    with refused("PNG, JPEG, TIFF or DICOM", where=path):
        decode_image(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.dcm"])
@pytest.mark.parametrize(
    ("content", "word"), [(b"", "empty"), (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull")]
)
def test_a_file_without_its_content_is_named_so(tmp_path, name, content, word):
    path = tmp_path / name
    path.write_bytes(content)
    for read in (decode_image, image_size, lambda path: decode_image(path, frame=0)):
        with refused(word, where=path):
            read(path)


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_cut_within_its_directory_is_truncated(big):
    """Its tags were taken for those of another kind of TIFF."""
    data = encoded(Image.fromarray(EIGHT), "TIFF", big_tiff=big)
    for length in [5, 9, 17, 30, 100]:
        with refused("truncated", "fetch", where="cut"):
            decode_image(data[:length], name="cut")


def test_a_missing_file_and_a_folder(tmp_path):
    with refused("no such file", where="gone.png"):
        decode_image(tmp_path / "gone.png")
    with refused(where=tmp_path):
        decode_image(tmp_path)


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_several_pages_are_refused(kind):
    page = Image.fromarray(EIGHT)
    with refused(2, kind):
        decode_image(encoded(page, kind, save_all=True, append_images=[Image.fromarray(255 - EIGHT)]))


def test_encode_png_refuses_other_arrays():
    with pytest.raises(ValueError, match="float32"):
        encode_png(np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match=r"\(2, 2, 1\)"):
        encode_png(np.zeros((2, 2, 1), np.uint8))


def test_as_integers():
    assert as_integers(np.array([[0, 0.5, 1]], np.float32)).tolist() == [[0, 32768, 65535]]
    assert as_integers(EIGHT) is EIGHT
