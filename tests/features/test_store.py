"""Features on disk: used again only for the same settings, weights and images, and whole."""

from __future__ import annotations

import numpy as np
import pytest

from elk_jax.features import store

WAY = store.way_of({"scales": 5}, "abc")


def feature_of(image: str) -> np.ndarray:
    return np.array([ord(image), -1, 0.5], np.float32)


def kept(folder, images, way=WAY, of=feature_of):
    """(features, the images that were computed)."""
    computed: list[str] = []

    def compute(positions):
        computed.extend(images[position] for position in positions)
        return np.stack([of(images[position]) for position in positions])

    return store.kept(folder, way, images, compute), "".join(computed)


def test_features_are_computed_once_for_an_image(tmp_path):
    for images, new in (("ab", "ab"), ("ab", ""), ("ba", ""), ("bcad", "cd"), ("dab", ""), ("a", "")):
        found, computed = kept(tmp_path, images)
        np.testing.assert_array_equal(found, [feature_of(image) for image in images])
        assert computed == new
    assert len(list(tmp_path.iterdir())) == 2


def test_copies_of_an_image_are_computed_once(tmp_path):
    found, computed = kept(tmp_path, "abaab")
    np.testing.assert_array_equal(found, [feature_of(image) for image in "abaab"])
    assert computed == "ab"


@pytest.mark.parametrize("other", [({"scales": 4}, "abc"), ({"scales": 5}, ""), ({"scales": 5, "size": 1}, "abc")])
def test_other_settings_and_weights_are_another_way(tmp_path, other):
    kept(tmp_path, "ab")
    found, computed = kept(tmp_path, "ab", store.way_of(*other), lambda image: 2 * feature_of(image))
    np.testing.assert_array_equal(found, [2 * feature_of(image) for image in "ab"])
    assert computed == "ab" and not kept(tmp_path, "ab")[1]


def damaged(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def renamed(path):
    """Another image's name on the features."""
    path.write_bytes(path.read_bytes().replace(b'\\"b\\"', b'\\"c\\"'))


@pytest.mark.parametrize("change", [damaged, renamed, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_what_is_damaged_is_computed_again(tmp_path, change):
    kept(tmp_path, "ab")
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    change(path)
    assert not path.exists() or path.read_bytes() != before
    found, computed = kept(tmp_path, "abc")
    np.testing.assert_array_equal(found, [feature_of(image) for image in "abc"])
    assert computed == "abc" and not kept(tmp_path, "abc")[1]
