"""Outputs as targets, and hints, against values worked out by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from elk_jax.distillation import maps, outputs

ALL = jnp.ones(1, bool)


def logit(*p):
    return scipy.special.logit(np.array(p, np.float32))


def bernoulli(p, q):
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def test_soft_classes_by_hand():
    """Two anchors, T 1: KL of 0.8 against 0.5 and of 0.4 against 0.4, over the 1.2 lesions that the teacher sees."""
    t, s = logit(0.8, 0.4)[None, :, None], logit(0.5, 0.4)[None, :, None]
    assert outputs.soft_classes(t, s, ALL, 1.0) == pytest.approx(bernoulli(0.8, 0.5) / 1.2, rel=1e-5)
    soft = scipy.special.expit(logit(0.8, 0.5) / 3)
    assert outputs.soft_classes(t, s, ALL, 3.0) == pytest.approx(9 * bernoulli(*soft) / 1.2, rel=1e-4)
    few = outputs.soft_classes(t[:, 1:], s[:, :1], ALL, 1.0)  # 0.4 lesions count as one
    assert few == pytest.approx(bernoulli(0.4, 0.5), rel=1e-4)


def test_of_two_classes_each_is_compared_and_the_higher_counts_as_seen():
    t, s = logit([0.8, 0.9])[None], logit([0.5, 0.5])[None]
    expected = (bernoulli(0.8, 0.5) + bernoulli(0.9, 0.5)) / 1
    assert outputs.soft_classes(t, s, ALL, 1.0) == pytest.approx(expected, rel=1e-5)


def test_confident_boxes_by_hand():
    """The first anchor alone is confident: its corners are off by 1, 0, 3 and 4 px of a box of 10 x 20."""
    logits = logit(0.7, 0.2)[None, :, None]
    t = jnp.array([[[10.0, 10, 20, 30], [0, 0, 4, 4]]])
    s = t + jnp.array([[[1.0, 0, -3, 4], [50, 50, 50, 50]]])
    expected = (1 / 10 + 0 + 3 / 10 + 4 / 20) / 4
    assert outputs.confident_boxes(logits, t, s, ALL, 0.5) == pytest.approx(expected, rel=1e-5)
    assert outputs.confident_boxes(logits, t, s, ALL, 0.9) == 0
    assert outputs.confident(logits, ALL, 0.5).tolist() == [[True, False]]


def test_images_that_do_not_count_are_left_out():
    t, s = (jax.random.normal(jax.random.key(k), (3, 5, 2)) for k in range(2))
    boxes = [jax.random.uniform(jax.random.key(k), (3, 5, 4)) * 9 for k in (2, 3)]
    counts = jnp.array([True, False, True])
    kept = np.array([0, 2])
    assert outputs.soft_classes(t, s, counts, 2.0) == pytest.approx(
        float(outputs.soft_classes(t[kept], s[kept], counts[kept], 2.0)), rel=1e-5
    )
    assert outputs.confident_boxes(t, *boxes, counts, 0.4) == pytest.approx(
        float(outputs.confident_boxes(t[kept], *(one[kept] for one in boxes), counts[kept], 0.4)), rel=1e-5
    )


def test_extreme_outputs_and_empty_batches_have_finite_gradients():
    t = jnp.array([[[80.0], [-80.0], [0.0]]])
    boxes = jnp.zeros((1, 3, 4))

    def loss(s, own, counts):
        return outputs.soft_classes(t, s, counts, 2.0) + outputs.confident_boxes(t, boxes, own, counts, 0.3)

    for counts in (ALL, ~ALL):
        value, gradient = jax.value_and_grad(loss, (0, 1))(-t, boxes + 1, counts)
        assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in gradient)
    assert loss(-t, boxes + 1, ~ALL) == 0


def test_nothing_flows_into_the_teacher():
    t, s = (jax.random.normal(jax.random.key(k), (1, 4, 1)) for k in range(2))
    boxes = jnp.ones((1, 4, 4))
    both = lambda t, b: outputs.soft_classes(t, s, ALL, 1.0) + outputs.confident_boxes(t, b, boxes * 2, ALL, 0.0)
    assert all(np.all(leaf == 0) for leaf in jax.grad(both, (0, 1))(t, boxes))


def test_a_hint_by_hand():
    """The teacher's channel 1, 5 is -1, 1 when standardised; the regressor makes 2 s + 1 of s = 0, 1, which is 1, 3."""
    t, s = jnp.array([[[[1.0], [5.0]]]]), jnp.array([[[[0.0], [1.0]]]])
    regressor = {"kernel": jnp.array([[2.0]]), "bias": jnp.array([1.0])}
    weights = jnp.ones((1, 1, 2))
    assert maps.hint(t, s, weights, regressor) == pytest.approx((2**2 + 2**2) / 2 / 2, rel=1e-4)
    right = {"kernel": jnp.array([[2.0]]), "bias": jnp.array([-1.0])}
    assert maps.hint(t, s, weights, right) == pytest.approx(0, abs=1e-6)
    assert maps.hint(t, s, weights * 0, regressor) == 0


def test_a_hint_may_have_another_width_and_is_learned():
    t, s = jax.random.normal(jax.random.key(0), (2, 3, 4, 5)), jax.random.normal(jax.random.key(1), (2, 3, 4, 8))
    weights, regressor = jnp.ones((2, 3, 4)), maps.init_regressor(jax.random.key(2), 8, 5)
    loss = lambda s, regressor: maps.hint(t, s, weights, regressor)
    of_map, of_regressor = jax.grad(loss, (0, 1))(s, regressor)
    assert of_map.shape == s.shape and np.abs(of_map).max() > 0
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(of_regressor))
    exact = np.linalg.lstsq(
        np.append(np.reshape(s, (24, 8)), np.ones((24, 1)), 1),
        np.reshape(maps.standardised(t, weights), (24, 5)),
        rcond=None,
    )[0]
    best = {"kernel": jnp.asarray(exact[:-1]), "bias": jnp.asarray(exact[-1])}
    assert loss(s, best) < 0.5 * loss(s, regressor)
    assert all(np.abs(leaf).max() < 1e-5 for leaf in jax.tree.leaves(jax.grad(lambda r: loss(s, r))(best)))
