"""Attention, and the transformer blocks between the U-Net's convolutions.

Shapes: B batch, T tokens (pixels of a map, H * W), S tokens attended to (T itself, or the text's), N heads, C channels,
D channels of the text.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from elk_jax.backbones.norms import GroupNorm
from elk_jax.diffusion.layers import conv, dense, layer_norm, lecun_normal, zeros
from elk_jax.errors import UserError

IMPLEMENTATIONS = ("auto", "xla", "cudnn")

LARGEST = 2**22
"""Scores (queries times keys) at a time where attention has no kernel of its own: 1024 queries to a map of 64 x 64."""


def choose_implementation(requested: str, dtype: Any, head_size: int) -> str:
    """'cudnn' (flash attention: memory in proportion to T, not T * S) or 'xla', of jax.nn.dot_product_attention.

    'auto' takes cuDNN where it exists: on a GPU, in bfloat16 or float16, for heads whose size is a multiple of 8 and
    at most 128 (256 from compute capability 9 on).
    """
    if requested != "auto":
        return requested
    half = jnp.dtype(dtype) in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
    if jax.default_backend() != "gpu" or not half or head_size % 8:
        return "xla"
    capability = str(getattr(jax.devices()[0], "compute_capability", "0"))
    try:
        most = 256 if float(capability) >= 9 else 128
    except ValueError:  # not one of NVIDIA's
        return "xla"
    return "cudnn" if head_size <= most else "xla"


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, implementation: str = "auto", causal: bool = False
) -> jax.Array:
    """softmax(q k^T / sqrt(size)) v for query [B, T, N, size], key and value [B, S, N, size] -> [B, T, N, size].

    The softmax is in float32 or wider. causal: token t attends to tokens 0..t. Without cuDNN a large map that
    attends to itself is worked off in blocks of queries, forward and backward: the whole T x S matrix is never there.
    """
    chosen: Any = choose_implementation(implementation, query.dtype, query.shape[-1])
    plain = partial(jax.nn.dot_product_attention, is_causal=causal, implementation=chosen)
    batch, length, heads, size = query.shape
    count = 1 if chosen == "cudnn" or causal else _blocks(length, key.shape[1])
    if count == 1:
        return plain(query, key, value)
    blocks = jnp.moveaxis(query.reshape(batch, count, length // count, heads, size), 1, 0)
    answers = jax.lax.map(jax.checkpoint(lambda some: plain(some, key, value)), blocks)
    return jnp.moveaxis(answers, 0, 1).reshape(query.shape)


def _blocks(queries: int, keys: int) -> int:
    """Into how many equal blocks queries are cut, so that a block has at most LARGEST scores; 1: no need."""
    return next(n for n in range(max(1, -(-queries * keys // LARGEST)), queries + 1) if queries % n == 0)


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x Phi(x) (Hendrycks & Gimpel 2016), not its tanh approximation."""
    return nn.gelu(x, approximate=False)


def multi_head(
    x: jax.Array, tokens: jax.Array, heads: int, implementation: str, dtype: Any, qkv_bias: bool = False
) -> jax.Array:
    """Attention of x [B, T, C] to `tokens` [B, S, D] -> [B, T, C], as layers of the module that calls it.

    Parameters to_q, to_k, to_v (biased only if `qkv_bias`), to_out_0. `heads` must divide C (UserError).
    """
    channels = x.shape[-1]
    if channels % heads:
        raise UserError(
            f"{channels} channels cannot be split into {heads} heads",
            todo="set attention_head_dim (the number of heads, in diffusers' naming) to a divisor of every width",
        )

    def project(name: str, y: jax.Array) -> jax.Array:
        y = dense(channels, dtype, name, qkv_bias)(y)
        return y.reshape(*y.shape[:-1], heads, channels // heads)

    y = attend(project("to_q", x), project("to_k", tokens), project("to_v", tokens), implementation)
    return dense(channels, dtype, "to_out_0")(y.reshape(x.shape))


class Attention(nn.Module):
    """Multi-head attention of x [B, T, C] to `context` [B, S, D], or to itself -> [B, T, C]."""

    heads: int
    implementation: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        return multi_head(x, x if context is None else context, self.heads, self.implementation, self.dtype)


class MapAttention(nn.Module):
    """Attention of the pixels of a map to each other: one head, group norm before, shortcut around it. [B, H, W, C]."""

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
    """Two projections, one gated by the exact GELU of the other (GEGLU, Shazeer 2020): [..., C] -> [..., features]."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y, gate = jnp.split(dense(2 * self.features, self.dtype, "proj")(x), 2, axis=-1)
        return y * gelu(gate)


class FeedForward(nn.Module):
    """A gated layer four times as wide: [B, T, C] -> [B, T, C]."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        return dense(channels, self.dtype, "net_2")(GatedGelu(4 * channels, self.dtype, name="net_0")(x))


class TransformerBlock(nn.Module):
    """Attention to itself, attention to the text if there is one, and a gated layer, each behind a layer norm.

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
    """Transformer blocks over the pixels of a map: x [B, H, W, C], context [B, S, D] or None -> [B, H, W, C].

    linear: proj_in and proj_out are dense layers (Stable Diffusion 2), else 1x1 convolutions (1.x), which is the same
    arithmetic with another shape of kernel.
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
