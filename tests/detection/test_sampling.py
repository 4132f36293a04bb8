from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.detection.sampling import sample


def labels_of(positive: int, negative: int, ignored: int) -> np.ndarray:
    labels = np.array([1] * positive + [0] * negative + [-1] * ignored, np.int32)
    return np.random.default_rng(0).permutation(labels)


@pytest.mark.parametrize(
    ("positive", "negative", "taken_positive", "taken_negative"),
    [
        (40, 100, 8, 24),  # cap reached
        (3, 100, 3, 29),  # negatives fill
        (0, 100, 0, 32),  # no lesion
        (40, 5, 8, 5),  # too few negatives: the cap stays, slots stay empty
        (0, 0, 0, 0),
        (2, 3, 2, 3),  # fewer boxes than slots
    ],
)
def test_counts_order_and_distinctness(positive, negative, taken_positive, taken_negative):
    labels = labels_of(positive, negative, 20)
    drawn = jax.jit(functools.partial(sample, num=32, positive_fraction=0.25))(jax.random.key(1), labels)
    taken = taken_positive + taken_negative
    assert drawn.indices.shape == drawn.valid.shape == drawn.is_positive.shape == (32,)
    np.testing.assert_array_equal(drawn.valid, np.arange(32) < taken)
    np.testing.assert_array_equal(drawn.is_positive, np.arange(32) < taken_positive)
    indices = np.asarray(drawn.indices)
    assert len(set(indices[:taken].tolist())) == taken
    np.testing.assert_array_equal(labels[indices[:taken_positive]], 1)
    np.testing.assert_array_equal(labels[indices[taken_positive:taken]], 0)
    np.testing.assert_array_equal(indices[taken:], 0)


def test_fewer_boxes_than_slots_and_none():
    drawn = sample(jax.random.key(0), jnp.array([0, 1, -1]), 8, 0.5)
    assert drawn.indices.tolist() == [1, 0] + [0] * 6 and drawn.valid.tolist() == [True] * 2 + [False] * 6
    assert not sample(jax.random.key(0), jnp.zeros(0, jnp.int32), 4, 0.5).valid.any()


def test_masked_boxes_are_never_drawn():
    labels = labels_of(20, 20, 0)
    valid = np.arange(40) % 2 == 0
    drawn = sample(jax.random.key(3), labels, 40, 0.5, valid)
    assert set(np.asarray(drawn.indices)[np.asarray(drawn.valid)].tolist()) == set(np.flatnonzero(valid).tolist())


def test_every_box_is_drawn_equally_often():
    labels = labels_of(6, 30, 4)
    draw = jax.jit(jax.vmap(lambda key: sample(key, labels, 12, 0.25)))
    drawn = draw(jax.random.split(jax.random.key(0), 4000))
    counts = np.bincount(np.asarray(drawn.indices).ravel(), minlength=40) / 4000
    # 3 of 6 positives, 9 of 30 negatives; 4000 draws have a standard deviation below 0.008.
    np.testing.assert_allclose(counts[labels == 1], 0.5, atol=0.04)
    np.testing.assert_allclose(counts[labels == 0], 0.3, atol=0.04)
    np.testing.assert_array_equal(counts[labels == -1], 0)


def test_images_with_their_own_keys_draw_differently_and_one_key_repeats():
    labels = jnp.asarray(labels_of(0, 200, 0))
    keys = jax.random.split(jax.random.key(0), 2)
    drawn = jax.vmap(lambda key: sample(key, labels, 16, 0.5).indices)(keys)
    assert set(drawn[0].tolist()) != set(drawn[1].tolist())
    np.testing.assert_array_equal(drawn[1], sample(keys[1], labels, 16, 0.5).indices)
