"""Whether the loss of a model is a sum over examples, so that their gradients can be clipped one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend import core

from elk_jax.errors import UserError
from elk_jax.training.model import Model

COUPLED = 0.02
"""Share of a gradient that another example may change: the rounding of bfloat16. Statistics of a batch of two change
about all of it."""

QUICK = {"xla_backend_optimization_level": 0}
"""Options of the compiler: half the time of its best effort."""


def check_model(model: Model) -> None:
    """UserError for a model that says that examples meet in its loss."""
    if model.statistics:
        raise UserError(
            "batch norms read the statistics of the batch, in which examples meet",
            where="privacy",
            todo="choose norms that keep them apart, such as norm=gn or affine_bn, or train without privacy",
        )
    if not model.per_example:
        raise UserError(
            "the loss of this model is not a sum over examples, so that no example can be clipped on its own",
            where="privacy",
            todo="train without privacy, or choose a model whose examples do not meet",
        )


def check_examples(model: Model, examples: Mapping[str, Any]) -> None:
    """UserError for a loss in which examples meet after all, or which maps its images over devices by itself.

    examples: arrays [B, ...] as in a batch of the model, or their shapes; their values are not read. The loss is tried
    on random numbers. For a sum f(a) + f(b), the gradients of (a, b) and (c, d) together are those of (a, d) and (c, b)
    together, whatever the loss draws for its first and its second example; with normalisation over the batch, say, they
    are not.
    """
    check_model(model)
    params = _perturbed(model)
    a, b, c, d = (_random_example(examples, seed) for seed in range(4))
    key = jax.random.key(0)

    def loss(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        return model.loss(params, model.constants, batch, key, jax.vmap)[0]

    traced = jax.jit(jax.grad(loss), compiler_options=QUICK).trace(params, _pair(a, b))
    if any(name == "shard_map" for name in _primitives(traced.jaxpr.jaxpr)):
        raise UserError(
            "the loss maps images over devices by itself (shard_map), which no single example has",
            where="privacy",
            todo="let the loss use the map_images that it is given",
        )
    compiled = traced.lower().compile()  # it runs four times
    gradient = lambda *pair: jax.device_get(compiled(params, _pair(*pair)))
    straight, crossed = (
        jax.tree.map(np.add, gradient(*one), gradient(*other)) for one, other in (((a, b), (c, d)), ((a, d), (c, b)))
    )
    difference = _norm(jax.tree.map(np.subtract, straight, crossed))
    if not difference <= COUPLED * _norm(straight):  # NaN tells nothing
        raise UserError(
            "examples of a batch change each other's gradients, as with batch normalisation or a loss over pairs",
            where="privacy",
            todo="normalise within each example (group or layer normalisation), and let the loss be a sum over them",
        )


def _perturbed(model: Model) -> Any:
    """Initial parameters with noise: layers that start at 0 would hide what lies before them."""
    params = jax.device_get(model.init(jax.random.key(0)))  # in NumPy, which compiles nothing for each shape
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + (0.05 * rng.normal(size=x.shape)).astype(x.dtype), params)


def _norm(tree: Any) -> float:
    return float(np.linalg.norm([np.linalg.norm(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)]))


def _random_example(examples: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """One example, [1, ...]."""
    rng = np.random.default_rng(seed)

    def drawn(x: Any) -> np.ndarray:
        shape, dtype = (1, *x.shape[1:]), np.dtype(x.dtype)
        return (rng.random(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)).astype(dtype)

    return {name: np.ones(1, bool) if name == "valid" else jax.tree.map(drawn, x) for name, x in examples.items()}


def _pair(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return jax.tree.map(lambda x, y: np.concatenate([x, y]), dict(one), dict(other))


def _primitives(jaxpr: Any) -> Iterator[str]:
    """Names of all operations, within others as well."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in core.jaxprs_in_params(equation.params):
            yield from _primitives(inner)
