"""Resizing as torchvision's detectors do it, after a stretch, against their transform (tests/golden/make_resize.py)."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.backbones.pixels import IMAGENET_MEAN, IMAGENET_STD, normalise
from elk_jax.data.augment import NO_AUGMENTATION, Augmentation, Resize, augment, resize_only
from elk_jax.data.batches.buckets import assign_buckets, choose_buckets
from elk_jax.data.batches.detection import empty_batch, fill
from elk_jax.data.transforms import scaled_size, short_side_scale
from elk_jax.errors import UserError
from elk_jax.images.schema import Record

GOLDEN = Path(__file__).parents[1] / "golden" / "resize.npz"
RESIZE = Resize(short_sides=(25,), max_long_side=41, stretch=(64, 32), rounding="down", pixels="linear")
CANVAS = (64, 32)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as found:
        return dict(found)


@pytest.fixture
def record(golden, make_record):
    def of(number: int) -> Record:
        image = golden[f"image{number}"]
        made = make_record(golden[f"box{number}"], *image.shape[::-1])
        return Record(made.info, (image / np.float32(255))[..., None])

    return of


@pytest.mark.parametrize("number", range(4))
def test_the_network_sees_what_it_sees_behind_torchvisions_transform(golden, record, number):
    example = resize_only(record(number), RESIZE, CANVAS)
    batch = empty_batch(1, CANVAS, 8)
    fill(batch, 0, example)
    height, width = golden[f"size{number}"]
    assert batch["image_size"][0].tolist() == [height, width]
    image, size = jnp.asarray(batch["image"]) * 255, jnp.asarray(batch["image_size"])
    seen = np.asarray(normalise(image, IMAGENET_MEAN, IMAGENET_STD, size)[0])
    np.testing.assert_allclose(seen, golden[f"input{number}"], rtol=1e-4, atol=0.02)  # padded by torchvision as well
    assert golden[f"input{number}"].max() > 900 and np.all(seen[height:] == 0) and np.all(seen[:, width:] == 0)
    np.testing.assert_allclose(example.boxes, golden[f"resized_box{number}"], rtol=1e-5)


@pytest.mark.parametrize("number", range(4))
def test_a_flip_in_training_mirrors_the_resized_image(golden, record, number):
    flips = Augmentation(horizontal_flip=1.0)
    found = augment(record(number), flips, RESIZE, CANVAS, np.random.default_rng(0))
    plain = resize_only(record(number), RESIZE, CANVAS)
    assert np.array_equal(found.image, plain.image[:, ::-1]) and found.scale == plain.scale


def test_sides_are_rounded_as_torchvision_rounds_them(golden):
    for size, wanted in zip(golden["sides"].tolist(), golden["sizes"].tolist(), strict=True):
        assert scaled_size(size, short_side_scale(size, 800, 1333), rounding="down") == tuple(wanted)
    published = Resize(short_sides=(800,), max_long_side=1333, stretch=(2048, 1024), rounding="down")
    assert published.size((2048, 1024), published.scale((2048, 1024), (1344, 672))) == (1333, 666)
    assert scaled_size((2048, 1024), 1333 / 2048) == (1333, 667)  # detectron2's rounding, which is the default


def test_the_canvas_is_that_of_the_stretched_image(make_record):
    infos = [make_record([[1, 1, 5, 5]], width, height).info for height, width in ((90, 20), (20, 90))]
    assert choose_buckets(infos, RESIZE, Augmentation(rotate90=0.5)) == ((64, 32),)  # 41 x 20, however it is turned
    assert assign_buckets(infos, ((32, 32), (64, 32)), RESIZE, NO_AUGMENTATION).tolist() == [1, 1]
    fitted = Resize(jitter=(1.0, 1.0), stretch=(20, 40))
    assert assign_buckets(infos, ((64, 16), (16, 32)), fitted, NO_AUGMENTATION).tolist() == [1, 1]


def test_a_stretch_has_two_sides():
    for wrong in ((64,), (0, 5), (1 << 20, 5)):
        with pytest.raises(UserError) as error:
            Resize(short_sides=(25,), stretch=wrong)
        assert error.value.where == "stretch"
