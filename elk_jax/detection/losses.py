"""Element-wise losses of detectors; masks, sums and normalisation are up to the caller.

All promote to at least float32. Q classes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from elk_jax.detection import boxes as box_ops
from elk_jax.precision import at_least_float32


def smooth_l1(pred: jax.Array, target: jax.Array, beta: float) -> jax.Array:
    """0.5 d^2 / beta below |d| = beta and |d| - beta / 2 above, d = pred - target (Girshick 2015); beta 0 is L1."""
    distance = jnp.abs(at_least_float32(pred) - at_least_float32(target))
    if beta <= 0:
        return distance
    return jnp.where(distance < beta, 0.5 * distance**2 / beta, distance - 0.5 * beta)


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits[..., Q])[label] for labels[...] int: [...]."""
    log_probabilities = jax.nn.log_softmax(at_least_float32(logits))
    return -jnp.take_along_axis(log_probabilities, labels[..., None], axis=-1)[..., 0]


def sigmoid_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Binary cross entropy of logits[...] with targets[...] in [0, 1] (bool too), stable for large logits: [...]."""
    logits = at_least_float32(logits)
    targets = targets.astype(logits.dtype)
    return jnp.maximum(logits, 0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))


def sigmoid_focal(logits: jax.Array, targets: jax.Array, alpha: float = 0.25, gamma: float = 2.0) -> jax.Array:
    """Focal loss, alpha_t (1 - p_t)^gamma cross entropy (Lin 2017), of logits[...] with targets[...] 0 or 1: [...].

    alpha weights positives and 1 - alpha negatives; alpha < 0: no weights.
    """
    logits = at_least_float32(logits)
    targets = targets.astype(logits.dtype)
    # 1 - p_t directly from the logit of the wrong answer: exact if p_t is near 1, and never the log of 0.
    log_wrong = jax.nn.log_sigmoid(jnp.where(targets > 0.5, -logits, logits))
    loss = jnp.exp(gamma * log_wrong) * sigmoid_cross_entropy(logits, targets)
    if alpha < 0:
        return loss
    return jnp.where(targets > 0.5, alpha, 1 - alpha) * loss


def focal_sum(
    logits: jax.Array, labels: jax.Array, classes: jax.Array, alpha: float = 0.25, gamma: float = 2.0
) -> jax.Array:
    """Sum of the focal loss of logits [A, Q] over the anchors of an image, separately for each class.

    labels [A]: 1 positive, 0 negative, -1 neither, which does not count (`matching.Matches`). classes [A] int: of
    positives.
    """
    targets = jax.nn.one_hot(classes, logits.shape[-1]) * (labels > 0)[:, None]
    return jnp.where((labels >= 0)[:, None], sigmoid_focal(logits, targets, alpha, gamma), 0).sum()


def giou_loss(pred_boxes: jax.Array, gt_boxes: jax.Array) -> jax.Array:
    """1 - generalized IoU of pred_boxes[..., 4] with gt_boxes[..., 4], row by row: [...] in [0, 2]."""
    return 1 - box_ops.generalized_iou(pred_boxes, gt_boxes)
