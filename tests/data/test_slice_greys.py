"""Slices of volumes in their own range."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from elk_jax.data.slice_greys import own_range, slices_in
from elk_jax.data.sources.source import ImageSource
from elk_jax.images.schema import ImageInfo


def test_a_slice_has_256_steps_from_its_darkest_to_its_brightest_pixel():
    found = own_range(np.float32([[0.5, 0.625], [0.75, 1.0]])[..., None])
    assert (found * 255).ravel().tolist() == pytest.approx([0, 63, 127, 255])  # 63.75 and 127.5 are cut off
    assert found.shape == (2, 2, 1) and found.dtype == np.float32
    deep = own_range(np.float32([[0.5, 0.625], [0.75, 1.0]])[..., None], white=65535)
    assert (deep * 65535).ravel().tolist() == pytest.approx([0, 63, 127, 255])


def test_a_slice_of_one_grey_is_black():
    assert not own_range(np.full((3, 4, 1), 0.6, np.float32)).any()


def test_a_window_that_cuts_nothing_off_leaves_the_published_values():
    """Of stored values, as the published code scales them, and of grey values under a window of the whole volume."""
    stored = np.random.default_rng(0).integers(200, 900, (3, 40, 30)).astype(np.float32)
    windowed = (stored - 100) / np.float32(1000 - 100)
    for own, seen in zip(stored, windowed):
        published = ((own - own.min()) / (own.max() - own.min()) * 255).astype("uint8")
        found = own_range(seen[..., None])[..., 0] * 255
        np.testing.assert_allclose(found, published, atol=1.001)  # a float32 may lie on either side of a step
        assert (np.abs(found - published) > 0.5).mean() < 0.01


READ = np.linspace(0.1, 0.6, 24, dtype=np.float32).reshape(2, 3, 4, 1)


def test_a_source_is_read_so_where_asked():
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    infos = tuple(ImageInfo(f"{k}", "p", 4, 3, *none, volume="v", slice=k) for k in range(2))
    source = ImageSource("s", ("lesion",), infos, READ.__getitem__)
    assert slices_in(source, "window") is source
    np.testing.assert_array_equal(slices_in(source, "own", 4095)[1].image, own_range(READ[1], 4095))
    own = pickle.loads(pickle.dumps(slices_in(source, "own")))  # worker processes are sent it
    for k in range(2):
        np.testing.assert_array_equal(own[k].image, own_range(READ[k]))
