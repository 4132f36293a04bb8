"""A teacher's outputs for every anchor as an additional target: generalised distillation (Lopez-Paz et al. 2016).

Shape legend: B images, A anchors, Q classes. logits [B, A, Q] of classes, each against the background; boxes [B, A, 4]
in px; counts [B] bool: images that count. No gradient flows into the teacher. Anchors of teacher and student correspond
one to one, whatever their sizes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from elk_jax.precision import at_least_float32

SMALLEST_SIDE = 1.0
"""Side of a teacher's box, in px, below which errors are no longer relative to the side."""


def soft_classes(teacher: jax.Array, student: jax.Array, counts: jax.Array, temperature: float) -> jax.Array:
    """T^2 times the sum of KL(sigmoid(t / T) | sigmoid(s / T)) over anchors and classes, divided by the number of
    anchors with a lesion according to the teacher: the sum of its highest class probabilities, at least 1. RetinaNet
    divides by its positive anchors in the same way."""
    t, s = jax.lax.stop_gradient(at_least_float32(teacher)), at_least_float32(student)
    wanted, found = t / temperature, s / temperature
    p = jax.nn.sigmoid(wanted)
    here = jax.nn.log_sigmoid(wanted) - jax.nn.log_sigmoid(found)
    absent = jax.nn.log_sigmoid(-wanted) - jax.nn.log_sigmoid(-found)
    divergence = jnp.where(counts[:, None, None], p * here + (1 - p) * absent, 0).sum()
    seen = jnp.where(counts[:, None], jax.nn.sigmoid(t).max(-1), 0).sum()
    return temperature**2 * divergence / jnp.maximum(seen, 1)


def confident_boxes(
    teacher_logits: jax.Array, teacher: jax.Array, student: jax.Array, counts: jax.Array, confidence: float
) -> jax.Array:
    """The mean of |s - t| of the corners, relative to the sides of the teacher's box, over the anchors to which the
    teacher assigns a class with at least `confidence`; 0 without such an anchor."""
    t, s = jax.lax.stop_gradient(at_least_float32(teacher)), at_least_float32(student)
    sides = jnp.maximum(t[..., 2:] - t[..., :2], SMALLEST_SIDE)
    chosen = confident(teacher_logits, counts, confidence)
    error = (jnp.abs(jnp.where(chosen[..., None], s - t, 0)) / jnp.tile(sides, 2)).mean(-1)
    return error.sum() / jnp.maximum(chosen.sum(), 1)


def confident(logits: jax.Array, counts: jax.Array, confidence: float) -> jax.Array:
    """[B, A] bool: anchors with a class probability of at least `confidence`, in images that count."""
    return (jax.nn.sigmoid(at_least_float32(logits)).max(-1) >= confidence) & counts[:, None]
