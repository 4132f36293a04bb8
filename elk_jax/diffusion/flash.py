"""Attention on a TPU as one kernel, whose scores stay in the vector memory (Dao et al. 2022, FlashAttention).

Shapes: B batch, N heads, D channels of a head, T queries, S keys. Positions are the last axis: heads of 40 or 80
channels would be padded to 128 in memory.

The kernel is written here because those of jax.experimental.pallas.ops.tpu take positions as the second to last axis,
and write 128 copies of every row's log-sum-exp.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

BLOCK = 512
"""Queries (in the gradient: keys) per call of a kernel."""
CHUNK = 512
"""Keys (in the gradient: queries) that it reads at a time."""
VECTOR_MEMORY = 12 * 2**20
"""Bytes for the arrays of a head; by default a kernel may use 16 MiB, and computes in the rest."""


def fits(query: jax.Array, key: jax.Array) -> bool:
    """Whether the kernels support query [B, N, T, D] and key [B, N, S, D]: their format, their memory, and S above 1.

    With a single key, they multiply by a matrix of one column, which the TPU's compiler rejects in bfloat16.
    """
    queries, keys = query.shape[2], key.shape[2]
    if query.dtype not in (jnp.bfloat16, jnp.float32) or keys == 1:
        return False
    channels, rows = _rounded(query.shape[3], 8), query.dtype.itemsize
    forward = 2 * 2 * keys * channels * rows
    backward = (3 * 2 * rows + 4) * queries * channels + 2 * 2 * 4 * 8 * queries
    blocks = 2 * 4 * min(BLOCK, max(queries, keys)) * channels * rows
    return max(forward, backward) + blocks <= VECTOR_MEMORY


def forward(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Attention [B, N, D, T] of query [B, N, D, T] to key and value [B, N, D, S], and log-sum-exps [B, N, 1, T]."""
    batch, heads, channels, queries = query.shape
    block = min(BLOCK, queries)
    mine, whole = partial(_mine, block), partial(_whole, key.shape[3])
    return _call(
        _forward,
        (query, key, value),
        (mine(channels), whole(channels), whole(channels)),
        (query, jax.ShapeDtypeStruct((batch, heads, 1, queries), jnp.float32)),
        (mine(channels), mine(1)),
        blocks=pl.cdiv(queries, block),
        scores=queries * key.shape[3],
        products=2,
        name="attention",
    )


def backward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    answer: jax.Array,
    log_sum: jax.Array,
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of query, key and value; `answer` and `log_sum` as from `forward`, `gradient` that of the answer."""
    channels, queries = query.shape[2:]
    keys = key.shape[3]
    block = min(BLOCK, keys)
    mine, whole = partial(_mine, block), partial(_whole, queries)
    inner = (gradient.astype(jnp.float32) * answer.astype(jnp.float32)).sum(2, keepdims=True)
    of_key, of_value, of_query = _call(
        partial(_backward, keys),
        (key, value, query, gradient, log_sum, inner),
        (mine(channels), mine(channels), whole(channels), whole(channels), whole(1), whole(1)),
        (key, value, query),
        (mine(channels), mine(channels), whole(channels)),
        blocks=pl.cdiv(keys, block),
        scores=queries * keys,
        products=5,
        scratch=(pltpu.VMEM((channels, queries), jnp.float32),),
        name="attention_gradient",
    )
    return of_query, of_key, of_value


def _forward(query_ref: Any, key_ref: Any, value_ref: Any, answer_ref: Any, log_sum_ref: Any) -> None:
    """A block of queries against all keys of a head. The scores are [keys, queries], so that maxima and sums run over
    the rows of registers."""
    query = query_ref[0, 0]
    channels, queries = query.shape

    def read(some: Any, carry: tuple[jax.Array, jax.Array, jax.Array]):
        largest, total, found = carry
        key, value = key_ref[0, 0, :, some], value_ref[0, 0, :, some]
        scores = _product(key, query, 0, 0) * channels**-0.5
        new = jnp.maximum(largest, scores.max(0, keepdims=True))
        weights, fade = jnp.exp(scores - new), jnp.exp(largest - new)
        found = fade * found + _product(value, weights.astype(value.dtype), 1, 0)
        return new, fade * total + weights.sum(0, keepdims=True), found

    zeros = jnp.zeros((channels, queries), jnp.float32)
    start = jnp.full((1, queries), -jnp.inf, jnp.float32), jnp.zeros((1, queries), jnp.float32), zeros
    largest, total, found = _in_chunks(key_ref.shape[-1], read, start)
    answer_ref[0, 0] = (found / total).astype(answer_ref.dtype)
    log_sum_ref[0, 0] = largest + jnp.log(total)


def _backward(
    keys: int,
    key_ref: Any,
    value_ref: Any,
    query_ref: Any,
    gradient_ref: Any,
    log_sum_ref: Any,
    inner_ref: Any,
    of_key_ref: Any,
    of_value_ref: Any,
    of_query_ref: Any,
    total_ref: Any,
) -> None:
    """A block of keys against all queries of a head; the gradient of the queries is summed up over the blocks."""
    key, value = key_ref[0, 0], value_ref[0, 0]
    channels, block = key.shape
    number = pl.program_id(2)
    scale = channels**-0.5
    last_is_smaller = keys % block != 0

    def inside(x: jax.Array, axis: int) -> jax.Array:
        """`x` with zeros beyond the last key, where it may contain anything, even NaN."""
        if not last_is_smaller:
            return x
        shape = tuple(block if i == axis else 1 for i in range(2))
        return jnp.where(number * block + jax.lax.broadcasted_iota(jnp.int32, shape, axis) < keys, x, 0)

    key, value = inside(key, 1), inside(value, 1)

    @pl.when(number == 0)
    def _() -> None:
        total_ref[...] = jnp.zeros_like(total_ref)

    def read(some: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        of_key, of_value = carry
        query, gradient = query_ref[0, 0, :, some], gradient_ref[0, 0, :, some]
        scores = _product(key, query, 0, 0) * scale
        weights = inside(jnp.exp(scores - log_sum_ref[0, 0, :, some]), 0)
        of_scores = weights * (_product(value, gradient, 0, 0) - inner_ref[0, 0, :, some])
        of_scores = (of_scores * scale).astype(query.dtype)
        total_ref[:, some] += _product(key, of_scores, 1, 0)
        of_value += _product(gradient, weights.astype(gradient.dtype), 1, 1)
        return of_key + _product(query, of_scores, 1, 1), of_value

    zeros = jnp.zeros((channels, block), jnp.float32)
    of_key, of_value = _in_chunks(query_ref.shape[-1], read, (zeros, zeros))
    of_key_ref[0, 0], of_value_ref[0, 0] = of_key.astype(key.dtype), of_value.astype(value.dtype)

    @pl.when(number == pl.num_programs(2) - 1)
    def _() -> None:
        of_query_ref[0, 0] = total_ref[...].astype(of_query_ref.dtype)


def _in_chunks(length: int, read: Callable[[Any, Any], Any], carry: Any) -> Any:
    """`carry = read(positions, carry)` for all positions below `length`, CHUNK at a time; the last may be fewer."""
    chunks, rest = divmod(length, CHUNK)
    if chunks:
        at = lambda i: pl.ds(pl.multiple_of(i * CHUNK, CHUNK), CHUNK)
        carry = jax.lax.fori_loop(0, chunks, lambda i, carry: read(at(i), carry), carry)
    return read(pl.ds(chunks * CHUNK, rest), carry) if rest else carry


def _product(a: jax.Array, b: jax.Array, axis: int, other: int) -> jax.Array:
    """The product of two matrices over these axes, summed in float32."""
    return jax.lax.dot_general(a, b, (((axis,), (other,)), ((), ())), preferred_element_type=jnp.float32)


def _mine(block: int, rows: int) -> pl.BlockSpec:
    """A head's [rows, block] of one block."""
    return pl.BlockSpec((1, 1, rows, block), lambda image, head, number: (image, head, 0, number))


def _whole(length: int, rows: int) -> pl.BlockSpec:
    """A head's whole [rows, length]."""
    return pl.BlockSpec((1, 1, rows, length), lambda image, head, number: (image, head, 0, 0))


def _call(
    kernel: Callable[..., None],
    inputs: tuple[jax.Array, ...],
    in_specs: tuple[pl.BlockSpec, ...],
    outputs: tuple[Any, ...],
    out_specs: tuple[pl.BlockSpec, ...],
    *,
    blocks: int,
    scores: int,
    products: int,
    name: str,
    scratch: tuple[Any, ...] = (),
) -> Any:
    """Run `kernel` for every image, head and block. scores: of a head; products: matrix products of that size."""
    batch, heads, channels = inputs[0].shape[:3]
    moved = sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in (*inputs, *outputs))
    return pl.pallas_call(
        kernel,
        grid=(batch, heads, blocks),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * batch * heads * scores * channels,
            transcendentals=batch * heads * scores,
            bytes_accessed=moved,
        ),
        name=name,
    )(*inputs)


def _rounded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
