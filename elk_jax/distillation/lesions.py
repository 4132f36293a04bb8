"""Losses between two networks at the points and the anchors of lesions.

Shape legend: B images, N points, C channels, A anchors, Q classes. All means are over the whole batch; images without
lesions are left out, and a batch without lesions gives 0 and no gradient.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.distillation.maps import TINY
from elk_jax.distillation.points import Points
from elk_jax.precision import at_least_float32

Map = dict[str, jax.Array]
"""A learned linear map, {kernel [n, n], bias [n]}: y = x kernel + bias."""


def init_map(rng: jax.Array, size: int) -> Map:
    """PyTorch's default for a linear layer: uniform within 1 / sqrt(size)."""
    bound, (kernel, bias) = size**-0.5, jax.random.split(rng)
    uniform = lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
    return {"kernel": uniform(kernel, (size, size)), "bias": uniform(bias, (size,))}


def identity_map(size: int) -> Map:
    """The identity, for a loss without a map."""
    return {"kernel": jnp.eye(size), "bias": jnp.zeros(size)}


def lskd(teacher: Points, student: Points, learned: Map, temperature: float, normalised: bool = False) -> jax.Array:
    """Lesion-specific knowledge distillation; teacher and student may see images of different patients.

    T^2 (1/C) sum_c KL(softmax(t_c / T) | softmax(s'_c / T)) over the N points, t and s the means over the images with
    lesions, s' the learned map of s (Alberb et al. 2024). With one point it is 0. The caller applies the weight alpha.

    If the points differ by less than T, a channel adds half the mean square of the difference between t and s', each
    minus its mean over the points, and T drops out: the loss grows with the square of the features' scale. normalised:
    t and s are first converted to `deviations`, which have no scale; with s' = s the loss is then about 1 - r, where r
    is the correlation of t and s over channels and points.
    """
    there = teacher.present.any() & student.present.any()
    t, s = mean_of(teacher), mean_of(student)
    if normalised:
        t, s = deviations(t), deviations(s)
    return jnp.where(there, _kl(t, s, learned, temperature), 0)


def deviations(x: jax.Array) -> jax.Array:
    """x [C, n] minus its mean over the points, divided by the standard deviation of all values from these means, so
    that channels keep their proportions. Zeros if the points are alike."""
    centred = x - x.mean(1, keepdims=True)
    square = (centred**2).mean()
    differ = square > TINY
    return jnp.where(differ, centred / jnp.sqrt(jnp.where(differ, square, 1)), 0)


def mean_of(points: Points) -> jax.Array:
    """[C, N]: the mean over the images with lesions; zeros if there are none."""
    total = jnp.where(points.present[:, None, None], points.values, 0).sum(0)
    return (total / jnp.maximum(points.present.sum(), 1)).T


def _kl(teacher: jax.Array, student: jax.Array, learned: Map, temperature: float) -> jax.Array:
    """T^2 mean over the rows of KL between softmaxes of [C, n] and of the mapped [C, n]."""
    mapped = student @ learned["kernel"] + learned["bias"]
    wanted = jax.nn.log_softmax(jax.lax.stop_gradient(teacher) / temperature)
    found = jax.nn.log_softmax(mapped / temperature)
    return temperature**2 * (jnp.exp(wanted) * (wanted - found)).sum(-1).mean()


def image_level(
    teacher: jax.Array, student: jax.Array, learned: Map, temperature: float,
    teacher_valid: jax.Array, student_valid: jax.Array, normalised: bool = False,
) -> jax.Array:  # fmt: skip
    """The published baseline: like `lskd`, over all cells of the mean maps [B, h, w, C] instead of points of lesions.

    valid [B]: images that count. The learned map has size h w.
    """

    def cells(features: jax.Array, valid: jax.Array) -> Points:
        return Points(at_least_float32(features).reshape(len(features), -1, features.shape[-1]), valid)

    return lskd(cells(teacher, teacher_valid), cells(student, student_valid), learned, temperature, normalised)


def impa(lesions: Points, beside: Points) -> tuple[jax.Array, jax.Array]:
    """Intra-modal point alignment: (pull, push), to be added and weighted by beta (Alberb et al. 2024).

    lesions, beside: features at the points of lesions and at the same number of cells outside, in the same images. P_i
    and N_j are those of an image as one vector. pull: mean over all pairs of relu(1 - cos(P_i, P_j)), including an
    image with itself; push: mean of relu(cos(P_i, N_j)).
    """
    own, other = _directions(lesions), _directions(beside)
    alike = jnp.where(lesions.present[:, None] & lesions.present, jax.nn.relu(1 - own @ own.T), 0)
    unlike = jnp.where(lesions.present[:, None] & beside.present, jax.nn.relu(own @ other.T), 0)
    images, beside_images = lesions.present.sum(), beside.present.sum()
    return alike.sum() / jnp.maximum(images**2, 1), unlike.sum() / jnp.maximum(images * beside_images, 1)


def _directions(points: Points) -> jax.Array:
    """[B, N C] with length 1; zeros, without a gradient, for images without lesions."""
    flat = points.values.reshape(len(points.values), -1)
    square = (flat**2).sum(-1, keepdims=True)
    there = points.present[:, None] & (square > 0)
    return jnp.where(there, flat / jnp.sqrt(jnp.where(there, square, 1)), 0)


def classwise(
    teacher_logits: jax.Array, teacher_classes: jax.Array, student_logits: jax.Array, student_classes: jax.Array,
    temperature: float,
) -> jax.Array:  # fmt: skip
    """Unpaired class-wise distillation (Dou et al. 2020, UMMKD), adapted to anchors: (KL(a|b) + KL(b|a)) / 2 of the
    mean logits of every class, averaged over the classes present in both batches.

    logits [B, A, Q] of classes, each against the background, whose logit is 0. classes [B, A] int: class of an anchor,
    0 to Q - 1; Q: background; -1: does not count.
    """
    logs, there = zip(*(_class_logits(*pair, temperature) for pair in (
        (teacher_logits, teacher_classes), (student_logits, student_classes))))  # fmt: skip
    a, b = jax.lax.stop_gradient(logs[0]), logs[1]
    both = there[0] & there[1]
    symmetric = ((jnp.exp(a) - jnp.exp(b)) * (a - b)).sum(-1) / 2
    return jnp.where(both, symmetric, 0).sum() / jnp.maximum(both.sum(), 1)


def _class_logits(logits: jax.Array, classes: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    """(log probabilities [Q + 1, Q + 1] of the mean logits of every class, which classes are present [Q + 1])."""
    logits = at_least_float32(logits)
    with_background = jnp.pad(logits, ((0, 0), (0, 0), (0, 1)))
    members = classes[..., None] == np.arange(logits.shape[-1] + 1)
    counts = members.sum((0, 1))
    total = jnp.einsum("baq,bac->qc", members.astype(logits.dtype), with_background)
    return jax.nn.log_softmax(total / jnp.maximum(counts, 1)[:, None] / temperature), counts > 0


def hardest(scores: jax.Array, negative: jax.Array, count: Any) -> jax.Array:
    """[A] bool: the `count` best-scored of the negative anchors of one image. scores [A], negative [A] bool."""
    found, index = jax.lax.top_k(jnp.where(negative, scores, -jnp.inf), count)
    return jnp.zeros(negative.shape, bool).at[index].set(found > -jnp.inf)
