"""Check whether the loss of a model is a sum over examples, so that their gradients can be clipped one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend import core

from elk_jax.errors import UserError
from elk_jax.training.model import Model

COUPLED = 0.02
"""Share of a gradient that another example may change: rounding in bfloat16. Batch statistics of two examples change
almost all of it."""

QUICK = {"xla_backend_optimization_level": 0}
"""Compiler options: half the compile time of the full optimisation."""


def check_model(model: Model) -> None:
    """UserError for a model that declares that examples interact in its loss."""
    if model.statistics:
        raise UserError(
            "batch norms read the statistics of the batch, so its examples interact",
            where="privacy",
            todo="choose norms that treat examples separately, such as norm=gn or affine_bn, or train without privacy",
        )
    if not model.per_example:
        raise UserError(
            "the loss of this model is not a sum over examples, so gradients of single examples cannot be clipped",
            where="privacy",
            todo="train without privacy, or choose a model whose examples do not interact",
        )


def check_examples(model: Model, examples: Mapping[str, Any]) -> None:
    """UserError for a loss in which examples do interact, or which itself maps images over devices.

    examples: arrays [B, ...] as in a batch of the model, or their shapes; their values are not read. The loss is tried
    on four artificial examples (`trial_example`). For a sum f(a) + f(b), the gradients of (a, b) and (c, d) add up to
    those of (a, d) and (c, b), whatever the loss draws for its first and second example. With normalisation over the
    batch, for example, they do not, since a differs from c, and b from d, in everything that may be counted.
    """
    check_model(model)
    params = _perturbed(model)
    a, b, c, d = (trial_example(examples, number) for number in range(4))
    key = jax.random.key(0)

    def loss(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        return model.loss(params, model.constants, batch, key, jax.vmap)[0]

    traced = jax.jit(jax.grad(loss), compiler_options=QUICK).trace(params, _pair(a, b))
    if any(name == "shard_map" for name in _primitives(traced.jaxpr.jaxpr)):
        raise UserError(
            "the loss itself maps images over devices (shard_map), which is impossible for a single example",
            where="privacy",
            todo="use the map_images argument in the loss",
        )
    compiled = traced.lower().compile()  # it runs four times
    gradient = lambda *pair: jax.device_get(compiled(params, _pair(*pair)))
    straight, crossed = (
        jax.tree.map(np.add, gradient(*one), gradient(*other)) for one, other in (((a, b), (c, d)), ((a, d), (c, b)))
    )
    difference = _norm(jax.tree.map(np.subtract, straight, crossed))
    if not difference <= COUPLED * _norm(straight):  # NaN proves nothing
        raise UserError(
            "examples of a batch affect each other's gradients, as with batch normalisation or a loss over pairs",
            where="privacy",
            todo="normalise within each example (group or layer normalisation), and make the loss a sum over examples",
        )


def _perturbed(model: Model) -> Any:
    """Initial parameters with noise: layers that start at 0 would hide the layers before them."""
    params = jax.device_get(model.init(jax.random.key(0)))  # in NumPy, which needs no compilation per shape
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + (0.05 * rng.normal(size=x.shape)).astype(x.dtype), params)


def _norm(tree: Any) -> float:
    return float(np.linalg.norm([np.linalg.norm(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)]))


def trial_example(examples: Mapping[str, Any], number: int) -> dict[str, Any]:
    """One of four examples, [1, ...], on which a loss is tried.

    Numbers in the first two are mostly near 0, in the last two mostly near 1: equal means, areas and classes would hide
    a loss that divides by them. Lesions, with the keys of `images.schema.Batch`, are boxes in the image with class 0,
    which every detector has: none in the first image, one in the second, as many as fit in the third, an even number up
    to half of these in the fourth. The first and the last also have an ignored region as large as the image: it leaves
    no negatives, with which samplers would fill up to equal numbers. If only one box fits, they have only the region.
    """
    rng, power = np.random.default_rng(number), (3, 3, 1 / 3, 1 / 3)[number]

    def drawn(x: Any) -> np.ndarray:
        shape, dtype = (1, *x.shape[1:]), np.dtype(x.dtype)
        values = (rng.random(shape) if shape[1:] else np.full(shape, 0.5)) ** power
        return (values if dtype.kind == "f" else values >= 0.5).astype(dtype)

    example = {name: jax.tree.map(drawn, x) for name, x in examples.items()}
    if "valid" in example:
        example["valid"] = np.ones(1, bool)
    if "gt_boxes" in example:
        example |= _lesions(rng, number, example["image"].shape[1:3], example["gt_boxes"].shape[1])
    return example


def _lesions(rng: np.random.Generator, number: int, canvas: tuple[int, int], most: int) -> dict[str, np.ndarray]:
    """The lesions of `trial_example`, and the size of their image."""
    size = np.floor(rng.uniform(0.75, 1, 2) * canvas)  # (height, width)
    sides = rng.uniform(0.125, 0.5, (most, 2)) * size
    corners = rng.random((most, 2)) * (size - sides)
    boxes = np.concatenate([corners[:, ::-1], (corners + sides)[:, ::-1]], axis=1)
    slots = np.arange(most)
    valid = slots < (0, 1, most, most // 4 * 2)[number]
    ignore = (slots == most - 1) & (number in (0, 3))
    boxes[ignore] = (0, 0, size[1], size[0])
    return {
        "image_size": size[None].astype(np.float32),
        "gt_boxes": boxes[None].astype(np.float32),
        "gt_labels": np.zeros((1, most), np.int32),
        "gt_valid": (valid | ignore)[None],
        "gt_ignore": ignore[None],
    }


def _pair(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return jax.tree.map(lambda x, y: np.concatenate([x, y]), dict(one), dict(other))


def _primitives(jaxpr: Any) -> Iterator[str]:
    """Names of all operations, including nested ones."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in core.jaxprs_in_params(equation.params):
            yield from _primitives(inner)
