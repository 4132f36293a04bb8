from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elk_jax.detection import losses


def test_smooth_l1_by_hand():
    pred, target = jnp.array([0.0, 0.5, 1.0, -3.0]), jnp.zeros(4)
    np.testing.assert_allclose(losses.smooth_l1(pred, target, 1.0), [0, 0.125, 0.5, 2.5])
    np.testing.assert_allclose(losses.smooth_l1(pred, target, 0.0), [0, 0.5, 1, 3])
    np.testing.assert_allclose(losses.smooth_l1(pred, target, 1 / 9), [0, 0.5 - 1 / 18, 1 - 1 / 18, 3 - 1 / 18])
    for beta in (0.0, 1 / 9):
        assert jnp.isfinite(jax.grad(lambda p, b=beta: losses.smooth_l1(p, target, b).sum())(pred)).all()


def test_cross_entropies_equal_optaxs():
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(6, 5, 3)) * 4, random.integers(0, 3, (6, 5))
    logits = logits.astype(np.float32)
    reference = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    np.testing.assert_allclose(losses.softmax_cross_entropy(logits, labels), reference, rtol=1e-5, atol=1e-6)
    targets = random.uniform(size=logits.shape)
    reference = optax.sigmoid_binary_cross_entropy(logits, targets)
    np.testing.assert_allclose(losses.sigmoid_cross_entropy(logits, targets), reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (-1.0, 2.0), (0.5, 0.0)])
def test_focal_equals_its_definition(alpha, gamma):
    logits = np.linspace(-6, 6, 13)
    for target in (0, 1):
        p = 1 / (1 + np.exp(-logits))
        right = p if target else 1 - p
        weight = 1 if alpha < 0 else (alpha if target else 1 - alpha)
        expected = -weight * (1 - right) ** gamma * np.log(right)
        loss = losses.sigmoid_focal(logits, np.full(13, target), alpha, gamma)
        np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_extreme_logits_stay_finite_with_their_gradients():
    logits = jnp.array([-1e4, -90.0, 0.0, 90.0, 1e4])
    for target in (0.0, 1.0):
        for loss in (losses.sigmoid_cross_entropy, losses.sigmoid_focal):
            value, grad = jax.value_and_grad(lambda x, f=loss, t=target: f(x, jnp.full(5, t)).sum())(logits)
            assert jnp.isfinite(value) and jnp.isfinite(grad).all()
    pairs = jnp.stack([logits, -logits], -1)
    assert jnp.isfinite(jax.grad(lambda x: losses.softmax_cross_entropy(x, jnp.zeros(5, int)).sum())(pairs)).all()


def test_giou_loss_is_zero_for_equal_boxes_and_pulls_apart_boxes_together():
    box = jnp.array([[0.0, 0, 10, 10]])
    np.testing.assert_allclose(losses.giou_loss(box, box), [0], atol=1e-6)
    away = jnp.array([[30.0, 0, 40, 10]])
    grad = jax.grad(lambda b: losses.giou_loss(b, box).sum())(away)
    assert grad[0, 0] > 0  # moving left edge to the right raises the loss: IoU alone would give 0


def test_types():
    half = jnp.ones((2, 4), jnp.bfloat16)
    assert losses.smooth_l1(half, half, 0.1).dtype == jnp.float32
    assert losses.softmax_cross_entropy(half, jnp.zeros(2, int)).dtype == jnp.float32
    assert losses.sigmoid_focal(half, half > 0).dtype == jnp.float32
    with jax.enable_x64(True):
        wide = jnp.ones((2, 4), jnp.float64)
        assert losses.sigmoid_cross_entropy(wide, wide > 0).dtype == jnp.float64
        assert losses.smooth_l1(wide, wide, 0.1).dtype == jnp.float64
