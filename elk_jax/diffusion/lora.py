"""Low-rank adapters of any Linen parameters, as pure functions: models know nothing of them.

Shapes: I inputs of a layer (for a convolution kh kw C_in), O outputs, r rank.

An adapted kernel is W + alpha / r * A B with A [I, r] and B [r, O]; B starts at 0, so that the first step is the
model's own. Only A and B are trained: they are a small tree of their own, {layer: {"a": A, "b": B}}, and gradients,
jit and vmap (adapters of several users at once) go through `apply_lora`.

Reference: Hu et al. 2022, arXiv 2106.09685.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from elk_jax.errors import UserError

Lora = dict[str, dict[str, Any]]
"""{path of the layer, parts joined by '/': {"a": [I, r], "b": [r, O]}}."""

ATTENTION = r"attn\d*/to_(q|k|v|out_0)$"
"""Layers of a U-Net's attention: what diffusers' and peft's scripts adapt."""
TEXT_ATTENTION = r"self_attn/(q|k|v|out)_proj$"
"""The same of a CLIP text encoder."""


def init_lora(rng: jax.Array, params: Mapping[str, Any], rank: int, targets: str = ATTENTION) -> Lora:
    """Adapters (float32) of every layer whose path, as 'down_blocks_0/.../attn1/to_q', contains the regex `targets`.

    A is uniform in +-1 / sqrt(I), B is 0. Layers are those with a 'kernel' of two (dense) or four (convolution)
    dimensions. Raises UserError where the pattern is no regex, or finds nothing.
    """
    if rank < 1:
        raise UserError(f"a rank of {rank}", where="lora.rank", todo="give 1 or more")
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise UserError(f"'{targets}' is no regular expression: {error}", where="lora.targets") from error
    shapes = {layer: np.shape(kernel) for layer, kernel in _kernels(params).items()}
    found = sorted(layer for layer in shapes if pattern.search(layer))
    if not found:
        raise UserError(
            f"no layer is called like '{targets}'",
            where="lora.targets",
            todo=f"layers are called {', '.join(sorted(shapes)[:3])}, ...",
        )
    keys = jax.random.split(rng, len(found))
    return {layer: _init(key, shapes[layer], rank) for layer, key in zip(found, keys)}


def apply_lora(params: Any, lora: Lora, alpha: float | None = None) -> Any:
    """The parameters with the adapters added to their kernels; kernels keep their dtype.

    alpha: strength; alpha / r multiplies A B (None: r, so 1). Raises ValueError for adapters of other layers.
    """
    flat = dict(traverse_util.flatten_dict(params, sep="/"))
    for layer, factors in lora.items():
        flat[f"{layer}/kernel"] = _add(flat.get(f"{layer}/kernel"), layer, factors, alpha, jnp)
    return traverse_util.unflatten_dict(flat, sep="/")


def merge(params: Any, lora: Lora, alpha: float | None = None) -> Any:
    """As `apply_lora` for good, on the host in NumPy: for writing weights that need no adapters."""
    flat = dict(traverse_util.flatten_dict(params, sep="/"))
    for layer, factors in lora.items():
        flat[f"{layer}/kernel"] = _add(flat.get(f"{layer}/kernel"), layer, factors, alpha, np)
    return traverse_util.unflatten_dict(flat, sep="/")


def count(lora: Lora) -> int:
    """Numbers that are trained."""
    return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(lora))


def _kernels(params: Mapping[str, Any]) -> dict[str, Any]:
    flat = traverse_util.flatten_dict(params, sep="/")
    end = "/kernel"
    return {k.removesuffix(end): v for k, v in flat.items() if k.endswith(end) and np.ndim(v) in (2, 4)}


def _init(rng: jax.Array, shape: tuple[int, ...], rank: int) -> dict[str, jax.Array]:
    inputs = math.prod(shape[:-1])
    bound = 1 / math.sqrt(inputs)
    a = jax.random.uniform(rng, (inputs, rank), jnp.float32, -bound, bound)
    return {"a": a, "b": jnp.zeros((rank, shape[-1]), jnp.float32)}


def _add(kernel: Any, layer: str, factors: Mapping[str, Any], alpha: float | None, lib: Any) -> Any:
    a, b = lib.asarray(factors["a"]), lib.asarray(factors["b"])
    wanted = (a.shape[0], b.shape[1])
    shape = None if kernel is None else np.shape(kernel)
    if shape is None or (math.prod(shape[:-1]), shape[-1]) != wanted or a.shape[1] != b.shape[0]:
        raise ValueError(f"an adapter {a.shape} x {b.shape} for {layer}, whose kernel is {shape or 'not there'}")
    strength = 1.0 if alpha is None else alpha / a.shape[1]
    kernel = lib.asarray(kernel)
    sum_in = lib.promote_types(kernel.dtype, lib.float32)  # bfloat16 kernels: rounded once, at the end
    return (kernel.astype(sum_in) + strength * (a @ b).reshape(shape).astype(sum_in)).astype(kernel.dtype)
