"""Low-rank adapters (LoRA) for any Linen parameters, as pure functions: models need no changes.

Shapes: I inputs of a layer (kh kw C_in for a convolution), O outputs, r rank.

An adapted kernel is W + alpha / r * A B with A [I, r] and B [r, O]. B starts at 0, so that training starts from the
unchanged model. Only A and B are trained. They form a small tree of their own, {layer: {"a": A, "b": B}};
`apply_lora` works under grad, jit and vmap (several adapters at once).

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
"""The attention layers of a U-Net, which the scripts of diffusers and peft adapt."""
TEXT_ATTENTION = r"self_attn/(q|k|v|out)_proj$"
"""The attention layers of a CLIP text encoder."""


def init_lora(rng: jax.Array, params: Mapping[str, Any], rank: int, targets: str = ATTENTION) -> Lora:
    """Adapters (float32) of every layer whose path, as 'down_blocks_0/.../attn1/to_q', contains the regex `targets`.

    A is uniform in +-1 / sqrt(I), B is 0. A layer counts if it has a 'kernel' of two (dense) or four (convolution)
    dimensions. Raises UserError if `targets` matches no layer.
    """
    shapes = {layer: np.shape(kernel) for layer, kernel in _kernels(params).items()}
    found = sorted(layer for layer in shapes if re.search(targets, layer))
    if not found:
        todo = f"the layers are {', '.join(sorted(shapes)[:3])}, ..."
        raise UserError(f"no layer matches '{targets}'", where="lora.targets", todo=todo)
    keys = jax.random.split(rng, len(found))
    return {layer: _init(key, shapes[layer], rank) for layer, key in zip(found, keys)}


def apply_lora(params: Any, lora: Lora, alpha: float | None = None) -> Any:
    """The parameters with the adapters added to their kernels; kernels keep their dtype.

    alpha: strength; A B is multiplied by alpha / r (None: by 1). Raises ValueError for adapters of another model.
    """
    return _applied(params, lora, alpha, jnp)


def merge(params: Any, lora: Lora, alpha: float | None = None) -> Any:
    """`apply_lora` on the host in NumPy, to export weights that need no adapters."""
    return _applied(params, lora, alpha, np)


def _applied(params: Any, lora: Lora, alpha: float | None, lib: Any) -> Any:
    flat = dict(traverse_util.flatten_dict(params, sep="/"))
    for layer, factors in lora.items():
        flat[f"{layer}/kernel"] = _add(flat.get(f"{layer}/kernel"), layer, factors, alpha, lib)
    return traverse_util.unflatten_dict(flat, sep="/")


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
        raise ValueError(f"an adapter {a.shape} x {b.shape} for {layer}, whose kernel is {shape or 'missing'}")
    strength = 1.0 if alpha is None else alpha / a.shape[1]
    kernel = lib.asarray(kernel)
    sum_in = lib.promote_types(kernel.dtype, lib.float32)  # bfloat16 kernels: rounded once, at the end
    return (kernel.astype(sum_in) + strength * (a @ b).reshape(shape).astype(sum_in)).astype(kernel.dtype)
