"""Images as they come back from float16, and the line that is said where it overflows."""

from __future__ import annotations

from threading import Lock

import numpy as np
import pytest

from elk_jax.data import half_precision
from elk_jax.data.augment import Augmentation, Resize, augment, resize_only
from elk_jax.data.half_precision import OVERFLOW, in_half_precision
from elk_jax.images.schema import Record


@pytest.fixture(autouse=True)
def unwarned(monkeypatch):
    monkeypatch.setattr(half_precision, "_WARNED", Lock())


def as_read(values: np.ndarray, white: int) -> np.ndarray:
    """Grey values [0, 1] of the numbers in a file, as `decode_image` makes them."""
    return values.astype(np.float32) * np.float32(1.0 / white)


@pytest.mark.parametrize("white", [255, 4095, 65535])
def test_every_number_of_a_file_becomes_the_float16_of_it(white, caplog):
    numbers = np.arange(min(white + 1, OVERFLOW))
    found = in_half_precision(as_read(numbers, white), white, "a")
    expected = numbers.astype(np.float32).astype(np.float16)
    np.testing.assert_array_equal(np.round(found.astype(np.float64) * white), expected.astype(np.float64))
    same = np.flatnonzero(found == as_read(numbers, white))
    assert same[:2049].tolist() == numbers[:2049].tolist(), "up to 2048 nothing changes"
    assert found.dtype == np.float32 and not caplog.text


def test_grey_values_between_the_numbers_keep_eleven_bits():
    found = in_half_precision(np.float32([0.25, 100.3 / 255]), 255, "a") * 255
    assert found.tolist() == pytest.approx([63.75, 100.3125])


def test_what_overflows_is_infinite_and_said_once(caplog):
    numbers = np.array([65504, 65519, 65520, 65535])
    for name in ("first.png", "second.png"):
        found = in_half_precision(as_read(numbers, 65535), 65535, name)
        assert found[:2] == pytest.approx(65504 / 65535) and np.isposinf(found[2:]).all()
    (record,) = caplog.records
    assert "first.png" in record.getMessage() and "65535" in record.getMessage() and "float16_white" in record.message


@pytest.mark.parametrize("boxes", [[], [[2, 2, 9, 9]]])
def test_images_are_read_in_half_precision_before_they_are_resized_where_asked(make_record, boxes):
    record = make_record(boxes, 24, 24)
    random = np.random.default_rng(0).integers(0, 65504, (24, 24, 1))
    record = Record(record.info, as_read(random, 65535))
    plain, half = (Resize(short_sides=(20,), float16_white=white) for white in (0, 65535))
    wanted = Record(record.info, in_half_precision(record.image, 65535, "a"))
    canvas, rng = (32, 32), np.random.default_rng
    for found, expected in (
        (resize_only(record, half, canvas), resize_only(wanted, plain, canvas)),
        (augment(record, Augmentation(), half, canvas, rng(0)), augment(wanted, Augmentation(), plain, canvas, rng(0))),
    ):
        np.testing.assert_array_equal(found.image, expected.image)
    assert np.abs(resize_only(record, plain, canvas).image - resize_only(wanted, plain, canvas).image).max() > 1e-6
