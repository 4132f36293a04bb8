"""Attention, and the transformer blocks between the convolutions of the U-Net.

Shapes: B batch, T tokens (H * W positions of a map), S tokens attended to (the same T, or those of the text), N heads,
C channels, D channels of the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from elk_jax.backbones.norms import GroupNorm
from elk_jax.diffusion.layers import conv, dense, layer_norm, lecun_normal, zeros
from elk_jax.errors import UserError
from elk_jax.precision import at_least_float32

Implementation = Literal["auto", "xla", "cudnn"]

LARGEST = 2**25
"""Scores (heads x queries x keys) of an image in one block, without a fused kernel."""
LARGEST_OF_CPU = 2**18
"""The same on a CPU, where a block should fit in the cache."""
LEAST_ROWS = 64
"""Least rows of a block: matrix products with fewer rows are slow."""


def choose_implementation(requested: str, dtype: Any, head_size: int) -> str:
    """'cudnn' (flash attention, with memory of order T, not T * S) or 'xla', for jax.nn.dot_product_attention.

    'auto' selects cuDNN where it is available: on a GPU, in bfloat16 or float16, for head sizes that are a multiple of
    8 and at most 128 (256 from compute capability 9).
    """
    if requested != "auto":
        return requested
    half = jnp.dtype(dtype) in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
    if jax.default_backend() != "gpu" or not half or head_size % 8:
        return "xla"
    capability = str(getattr(jax.devices()[0], "compute_capability", "0"))
    try:
        most = 256 if float(capability) >= 9 else 128
    except ValueError:  # not an NVIDIA GPU
        return "xla"
    return "cudnn" if head_size <= most else "xla"


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, implementation: str = "auto", causal: bool = False
) -> jax.Array:
    """softmax(q k^T / sqrt(size)) v for query [B, T, N, size], key and value [B, S, N, size] -> [B, T, N, size].

    The softmax is in float32 or wider. causal: token t attends to tokens 0..t. The full T x S matrix is never
    materialised, forward or backward, except for causal attention (over the few tokens of a text).
    """
    chosen: Any = choose_implementation(implementation, query.dtype, query.shape[-1])
    if chosen == "cudnn" or causal:
        return jax.nn.dot_product_attention(query, key, value, is_causal=causal, implementation=chosen)
    return jnp.swapaxes(_attend_in_blocks(*(jnp.swapaxes(x, 1, 2) for x in (query, key, value))), 1, 2)


@jax.custom_vjp
def _attend_in_blocks(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """`attend` for query [B, N, T, size], key and value [B, N, S, size] -> [B, N, T, size].

    Heads and rows of the matrix are processed block by block; the gradient needs only one number per row (Dao et al.
    2022, FlashAttention, algorithms 1 and 4). Row sums come from the matrix products, by a column of ones: separate
    reductions take three times as long on a CPU.
    """
    return _attend_forward(query, key, value)[0]


def _attend_forward(query: jax.Array, key: jax.Array, value: jax.Array):
    answer, log_sum = _in_blocks(_answer, (query,), (key, value))
    answer = answer.astype(query.dtype)
    return answer, (query, key, value, answer, log_sum)


def _attend_backward(saved: tuple[jax.Array, ...], gradient: jax.Array):
    query, key, value, answer, log_sum = saved
    pull, answer = at_least_float32(gradient), at_least_float32(answer)
    pulled = jnp.concatenate([pull, -(pull * answer).sum(-1, keepdims=True)], -1)
    ones = _with_ones(at_least_float32(value))
    (of_query,) = _in_blocks(_gradient_of_query, (query, log_sum, pulled), (key, ones))
    # the matrix is recomputed transposed: a product with its transpose is ten times slower on a CPU
    of_key, of_value = _in_blocks(_gradient_of_key, (key, ones), (query, log_sum, pulled))
    return of_query.astype(query.dtype), of_key.astype(key.dtype), of_value.astype(value.dtype)


_attend_in_blocks.defvjp(_attend_forward, _attend_backward)


def _answer(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(rows of the output, log-sum-exp of the scores of each row)."""
    query, key, value = _scaled(query), at_least_float32(key), at_least_float32(value)
    scores = query @ _transposed(key)
    largest = scores.max(-1, keepdims=True)
    found = jnp.exp(scores - largest) @ _with_ones(value)
    total = found[..., -1:]
    return found[..., :-1] / total, largest + jnp.log(total)


def _gradient_of_query(query: jax.Array, log_sum: jax.Array, pulled: jax.Array, key: jax.Array, ones: jax.Array):
    key = at_least_float32(key)
    weights = jnp.exp(_scaled(query) @ _transposed(key) - log_sum)
    return (_scaled((weights * (pulled @ _transposed(ones))) @ key),)


def _gradient_of_key(key: jax.Array, ones: jax.Array, query: jax.Array, log_sum: jax.Array, pulled: jax.Array):
    """Gradients of a block of keys and of their values."""
    query, key = _scaled(query), at_least_float32(key)
    weights = jnp.exp(key @ _transposed(query) - _transposed(log_sum))
    return (weights * (ones @ _transposed(pulled))) @ query, weights @ pulled[..., :-1]


def _in_blocks(
    function: Callable[..., tuple[jax.Array, ...]], rows: tuple[jax.Array, ...], fixed: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    """`function(*rows, *fixed)` for rows [B, N, T, *] and fixed [B, N, S, *], some heads and some rows at a time.

    The batch is not split: its images may be on several devices.
    """
    heads, length = rows[0].shape[1:3]
    largest = LARGEST_OF_CPU if jax.default_backend() == "cpu" else LARGEST
    parts, cuts = plan_blocks(heads, length, fixed[0].shape[2], largest)

    def of_some_heads(both: tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]) -> tuple[jax.Array, ...]:
        mine, whole = both
        return _mapped(lambda some: function(*some, *whole), mine, axis=2, parts=cuts)

    return _mapped(of_some_heads, (rows, fixed), axis=1, parts=parts)


def plan_blocks(heads: int, rows: int, scores: int, largest: int) -> tuple[int, int]:
    """(parts of the heads, parts of the rows of a head): fewest equal parts with at most `largest` scores per block.

    rows: number of rows of a head, each of `scores` scores. Rows are split only if a single head is too large, into
    blocks of at least LEAST_ROWS rows, which may then exceed `largest`.
    """
    parts = next((n for n in _divisors(heads) if heads // n * rows * scores <= largest), heads)
    if rows * scores <= largest:
        return parts, 1
    cuts = [n for n in _divisors(rows) if n == 1 or rows // n >= LEAST_ROWS]
    return parts, next((n for n in cuts if rows // n * scores <= largest), cuts[-1])


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _mapped(function: Callable[[Any], Any], arrays: Any, axis: int, parts: int) -> Any:
    """Apply `function` to `parts` equal parts of `arrays` (a tree) along `axis`, one after another."""
    if parts == 1:
        return function(arrays)

    def cut(x: jax.Array) -> jax.Array:
        shape = (*x.shape[:axis], parts, x.shape[axis] // parts, *x.shape[axis + 1 :])
        return jnp.moveaxis(x.reshape(shape), axis, 0)

    def joined(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, 0, axis)
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    found = jax.lax.map(function, jax.tree.map(cut, arrays))
    return jax.tree.map(joined, found)


def _scaled(query: jax.Array) -> jax.Array:
    return at_least_float32(query) * query.shape[-1] ** -0.5


def _transposed(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, -1, -2)


def _with_ones(x: jax.Array) -> jax.Array:
    """`x` with a column of ones appended."""
    return jnp.concatenate([x, jnp.ones_like(x[..., :1])], -1)


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x Phi(x) (Hendrycks & Gimpel 2016), not its tanh approximation.

    By erf, in float32 or wider, as in PyTorch: erfc, as in JAX, takes more than twice as long on a CPU.
    """
    wide = at_least_float32(x)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def multi_head(
    x: jax.Array, tokens: jax.Array, heads: int, implementation: str, dtype: Any, qkv_bias: bool = False
) -> jax.Array:
    """Attention of x [B, T, C] to `tokens` [B, S, D] -> [B, T, C], as layers of the calling module.

    Parameters to_q, to_k, to_v (with bias only if `qkv_bias`), to_out_0. UserError unless `heads` divides C.
    """
    channels = x.shape[-1]
    if channels % heads:
        raise UserError(
            f"{channels} channels cannot be split into {heads} heads",
            where="attention_head_dim",
            todo="set it (the number of heads, in diffusers' naming) to a divisor of every width",
        )

    def project(name: str, y: jax.Array) -> jax.Array:
        y = dense(channels, dtype, name, qkv_bias)(y)
        return y.reshape(*y.shape[:-1], heads, channels // heads)

    y = attend(project("to_q", x), project("to_k", tokens), project("to_v", tokens), implementation)
    return dense(channels, dtype, "to_out_0")(y.reshape(x.shape))


class Attention(nn.Module):
    """Multi-head attention of x [B, T, C] to `context` [B, S, D], or to x itself -> [B, T, C]."""

    heads: int
    implementation: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        return multi_head(x, x if context is None else context, self.heads, self.implementation, self.dtype)


class MapAttention(nn.Module):
    """Self-attention over the positions of a map [B, H, W, C]: group norm, one head, and a shortcut."""

    groups: int
    implementation: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        y = GroupNorm(self.groups, 1e-6, dtype=self.dtype, name="group_norm")(x)
        y = y.reshape(batch, height * width, channels)
        return x + multi_head(y, y, 1, self.implementation, self.dtype, qkv_bias=True).reshape(x.shape)


class GatedGelu(nn.Module):
    """One projection times the exact GELU of another (GEGLU, Shazeer 2020): [..., C] -> [..., features]."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y, gate = jnp.split(dense(2 * self.features, self.dtype, "proj")(x), 2, axis=-1)
        return y * gelu(gate)


class FeedForward(nn.Module):
    """A gated layer, four times as wide inside: [B, T, C] -> [B, T, C]."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        return dense(channels, self.dtype, "net_2")(GatedGelu(4 * channels, self.dtype, name="net_0")(x))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text if given, and a gated layer, each after a layer norm.

    x [B, T, C], context [B, S, D] or None -> [B, T, C].
    """

    heads: int
    implementation: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None) -> jax.Array:
        def attention(name: str) -> Attention:
            return Attention(self.heads, self.implementation, self.dtype, name=name)

        x = x + attention("attn1")(layer_norm(self.dtype, "norm1")(x))
        if context is not None:
            x = x + attention("attn2")(layer_norm(self.dtype, "norm2")(x), context)
        return x + FeedForward(self.dtype, name="ff")(layer_norm(self.dtype, "norm3")(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a map: x [B, H, W, C], context [B, S, D] or None -> [B, H, W, C].

    linear: proj_in and proj_out are dense layers (Stable Diffusion 2) instead of 1x1 convolutions (1.x): the same
    arithmetic with kernels of another shape.
    """

    heads: int
    layers: int
    groups: int
    linear: bool
    implementation: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None) -> jax.Array:
        batch, height, width, channels = x.shape

        def project(name: str, y: jax.Array, kernel_init: Any = lecun_normal) -> jax.Array:
            if self.linear:
                return dense(channels, self.dtype, name, kernel_init=kernel_init)(y)
            return conv(channels, self.dtype, name, 1, kernel_init)(y)

        y = project("proj_in", GroupNorm(self.groups, 1e-6, dtype=self.dtype, name="norm")(x))
        y = y.reshape(batch, height * width, channels)
        for i in range(self.layers):
            block = TransformerBlock(self.heads, self.implementation, self.dtype, name=f"transformer_blocks_{i}")
            y = block(y, context)
        return x + project("proj_out", y.reshape(x.shape), zeros)
