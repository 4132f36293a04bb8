"""Attention, and the transformer blocks between the convolutions of the U-Net.

Shapes: B batch, T tokens (H * W positions of a map), S tokens attended to (the same T, or those of the text), N heads,
C channels, D channels of the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from elk_jax.backbones.ambient import batch_spec
from elk_jax.backbones.norms import GroupNorm
from elk_jax.diffusion import flash
from elk_jax.diffusion.layers import conv, dense, layer_norm, lecun_normal, zeros
from elk_jax.errors import UserError
from elk_jax.precision import at_least_float32

Implementation = Literal["auto", "xla", "cudnn"]
"""'cudnn': flash attention of cuDNN, with memory of order T, not T * S. 'xla': blocks of the matrix, one after another.
'auto': a kernel if there is one (cuDNN on a GPU, see `uses_cudnn`; `flash` on a TPU), else blocks."""
Attends = Callable[..., tuple[jax.Array, ...]]

LARGEST = 2**25
"""Most scores (heads x queries x keys) of an image in one block, without a fused kernel."""
LARGEST_OF_CPU = 2**18
"""The same limit on a CPU, where a block should fit in the cache."""
LEAST_ROWS = 64
"""Fewest rows of a block: matrix products with fewer rows are slow."""


def uses_cudnn(requested: Implementation, dtype: Any, head_size: int) -> bool:
    """Whether attention of these heads is computed by cuDNN.

    'auto' selects it where it is available: on a GPU, in bfloat16 or float16, for head sizes that are a multiple of 8
    and at most 128 (256 from compute capability 9).
    """
    if requested != "auto":
        return requested == "cudnn"
    half = jnp.dtype(dtype) in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
    if jax.default_backend() != "gpu" or not half or head_size % 8:
        return False
    capability = str(getattr(jax.devices()[0], "compute_capability", "0"))
    try:
        return head_size <= (256 if float(capability) >= 9 else 128)
    except ValueError:  # not an NVIDIA GPU
        return False


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, implementation: Implementation = "auto", causal: bool = False
) -> jax.Array:
    """softmax(q k^T / sqrt(size)) v for query [B, T, N, size], key and value [B, S, N, size] -> [B, T, N, size].

    The softmax is in float32 or wider. causal: token t attends to tokens 0..t. The full T x S matrix is never
    materialised, forward or backward, except for causal attention (over the few tokens of a text).

    On a TPU, 'auto' uses `flash` if the program is traced on a mesh (`jax.sharding.use_abstract_mesh`) by whose size
    the batch is divisible: the compiler cannot split a kernel, so each device is given its own images.
    """
    cudnn = uses_cudnn(implementation, query.dtype, query.shape[-1])
    if cudnn or causal:
        form: Any = "cudnn" if cudnn else "xla"
        return jax.nn.dot_product_attention(query, key, value, is_causal=causal, implementation=form)
    heads_first = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    return jnp.swapaxes(_attend(*heads_first, implementation == "auto"), 1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(query: jax.Array, key: jax.Array, value: jax.Array, kernel: bool) -> jax.Array:
    """`attend` for query [B, N, T, size], key and value [B, N, S, size] -> [B, N, T, size]. kernel: it may be used.

    The gradient needs only one number per row, the log-sum-exp of its scores (Dao et al. 2022, FlashAttention,
    algorithms 1 and 4). The computation of both depends on the platform for which the program is compiled.
    """
    return _attend_forward(query, key, value, kernel)[0]


def _attend_forward(query: jax.Array, key: jax.Array, value: jax.Array, kernel: bool):
    scale = query.shape[-1] ** -0.5

    def on_cpu(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        query, key, value = map(at_least_float32, arrays)
        return _in_blocks(partial(_answer, 1), (query * scale,), (key, value), LARGEST_OF_CPU)

    def elsewhere(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, ...]:
        return _in_blocks(partial(_answer, scale), (query,), (key, value), LARGEST)

    def on_tpu(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(map(_transposed, flash.forward(*map(_transposed, arrays))))

    answer, log_sum = _by_platform(on_cpu, elsewhere, on_tpu if kernel else None, query, key, value)
    answer = answer.astype(query.dtype)
    return answer, (query, key, value, answer, log_sum)


def _attend_backward(kernel: bool, saved: tuple[jax.Array, ...], gradient: jax.Array):
    scale = gradient.shape[-1] ** -0.5

    def in_blocks(largest, factor, query, key, value, pull, inner, log_sum) -> tuple[jax.Array, ...]:
        rows, whole = (query, log_sum, pull, inner), (key, value)
        (of_query,) = _in_blocks(partial(_gradient_of_query, factor), rows, whole, largest)
        # the matrix is recomputed transposed: a product with its transpose is ten times slower on a CPU
        return of_query * scale, *_in_blocks(partial(_gradient_of_key, factor), whole, rows, largest)

    def on_cpu(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        query, key, value, answer, log_sum, pull = map(at_least_float32, arrays)
        # row sums come from the matrix products: separate reductions take three times as long
        pull = jnp.concatenate([pull, -(pull * answer).sum(-1, keepdims=True)], -1)
        return in_blocks(LARGEST_OF_CPU, 1, query * scale, key, _with_ones(value), pull, None, log_sum)

    def elsewhere(query, key, value, answer, log_sum, gradient) -> tuple[jax.Array, ...]:
        inner = (at_least_float32(gradient) * at_least_float32(answer)).sum(-1, keepdims=True)
        return in_blocks(LARGEST, scale, query, key, value, gradient, inner, log_sum)

    def on_tpu(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(map(_transposed, flash.backward(*map(_transposed, arrays))))

    found = _by_platform(on_cpu, elsewhere, on_tpu if kernel else None, *saved, gradient)
    return tuple(of_x.astype(x.dtype) for of_x, x in zip(found, saved[:3]))


_attend.defvjp(_attend_forward, _attend_backward)


def _by_platform(on_cpu: Attends, elsewhere: Attends, on_tpu: Attends | None, *arrays: jax.Array) -> Any:
    """The implementation of attention for the platform for which the program is compiled.

    arrays: [B, N, ...]; the first two are queries and keys. on_tpu: a kernel, for the images of one device; it is used
    if it fits, and if the ambient mesh defines which images those are.
    """
    as_wide = lambda function: lambda *arrays: jax.tree.map(at_least_float32, function(*arrays))
    forms = {"cpu": as_wide(on_cpu), "default": as_wide(elsewhere)}
    if on_tpu and flash.fits(*arrays[:2]):
        spec = batch_spec(len(arrays[0]))
        if jax.sharding.get_abstract_mesh().are_all_axes_manual:
            forms["tpu"] = as_wide(on_tpu)
        elif spec is not None:
            forms["tpu"] = as_wide(jax.shard_map(on_tpu, in_specs=spec, out_specs=spec, check_vma=False))
    return jax.lax.platform_dependent(*arrays, **forms)


def _answer(scale: float, query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(rows of the output, log-sum-exp of the scores of each row); the scores are the products times `scale`.

    The sums of rows come from a column of ones.
    """
    scores = _product(query, _transposed(key)) * scale
    largest = scores.max(-1, keepdims=True)
    found = _product(jnp.exp(scores - largest).astype(value.dtype), _with_ones(value))
    total = found[..., -1:]
    return found[..., :-1] / total, largest + jnp.log(total)


def _gradient_of_query(scale: float, query, log_sum, pull, inner, key, value) -> tuple[jax.Array, ...]:
    """Gradient of a block of queries, before it is scaled.

    pull: gradient of the rows of the output; inner: its product with them. If `inner` is None, `pull` has its negative
    as a column more, and `value` a column of ones.
    """
    weights = jnp.exp(_product(query, _transposed(key)) * scale - log_sum)
    of_weights = _product(pull, _transposed(value))
    of_scores = weights * (of_weights if inner is None else of_weights - inner)
    return (_product(of_scores.astype(key.dtype), key),)


def _gradient_of_key(scale: float, key, value, query, log_sum, pull, inner) -> tuple[jax.Array, ...]:
    """Gradients of a block of keys and of their values; the arguments are as above."""
    weights = jnp.exp(_product(key, _transposed(query)) * scale - _transposed(log_sum))
    of_weights = _product(value, _transposed(pull))
    of_scores = weights * (of_weights if inner is None else of_weights - _transposed(inner))
    of_value = _product(weights.astype(pull.dtype), pull[..., : key.shape[-1]])
    return _product(of_scores.astype(query.dtype), query) * scale, of_value


def _in_blocks(function: Attends, rows: tuple[Any, ...], fixed: tuple[Any, ...], largest: int) -> tuple[jax.Array, ...]:
    """`function(*rows, *fixed)` for rows [B, N, T, *] and fixed [B, N, S, *], some heads and some rows at a time.

    largest: most scores of an image in a block. The batch is not split: its images may be on several devices.
    """
    heads, length = rows[0].shape[1:3]
    parts, cuts = plan_blocks(heads, length, fixed[0].shape[2], largest)

    def of_some_heads(both: tuple[tuple[Any, ...], tuple[Any, ...]]) -> tuple[jax.Array, ...]:
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


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Matrix products of operands of any format, summed in float32 or wider."""
    return jnp.matmul(a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


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
    x: jax.Array, tokens: jax.Array, heads: int, implementation: Implementation, dtype: Any, qkv_bias: bool = False
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
    implementation: Implementation
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        return multi_head(x, x if context is None else context, self.heads, self.implementation, self.dtype)


class MapAttention(nn.Module):
    """Self-attention over the positions of a map [B, H, W, C]: group norm, one head, and a shortcut."""

    groups: int
    implementation: Implementation
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
    implementation: Implementation
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
    implementation: Implementation
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
