"""Features on disk: used again only for the same settings, weights and images, and whole."""

from __future__ import annotations

import numpy as np
import pytest

from elk_jax.features import store

FEATURES = np.arange(6, dtype=np.float32).reshape(2, 3)


def kept(folder, key, features=FEATURES):
    """(features, whether they were computed)."""
    calls = []
    return store.kept(folder, key, lambda: calls.append(1) or features), bool(calls)


def test_features_are_computed_once_for_a_key(tmp_path):
    key = store.key_of({"scales": 5}, "abc", ["1", "2"])
    for computed in (True, False):
        found, now = kept(tmp_path, key)
        np.testing.assert_array_equal(found, FEATURES)
        assert now == computed
    others = [({"scales": 4}, "abc", ["1", "2"]), ({"scales": 5}, "", ["1", "2"]), ({"scales": 5}, "abc", ["2", "1"])]
    assert len({key, *(store.key_of(*other) for other in others)}) == 4


def damaged(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def foreign(path):
    other = path.parent / "other"
    store.kept(other, "f" * 64, lambda: FEATURES + 1)
    path.write_bytes((other / f"{'f' * 16}.safetensors").read_bytes())


@pytest.mark.parametrize("change", [damaged, foreign, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_what_is_damaged_or_foreign_is_computed_again(tmp_path, change):
    kept(tmp_path, "e" * 64)
    change(tmp_path / f"{'e' * 16}.safetensors")
    found, computed = kept(tmp_path, "e" * 64)
    np.testing.assert_array_equal(found, FEATURES)
    assert computed and not kept(tmp_path, "e" * 64)[1]
