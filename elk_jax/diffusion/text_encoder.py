"""The text encoder of CLIP (Radford et al. 2021): that of ViT-L/14 in Stable Diffusion 1.x, of OpenCLIP's ViT-H in 2.x.

Shapes: B batch, T tokens (at most 77), N heads, D channels.

Parameters have the names of transformers' CLIPTextModel without `text_model.` (see unet.py on dots and numbers):
embeddings/*, encoder/layers_0/self_attn/q_proj/kernel, final_layer_norm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from elk_jax.backbones.initial import draw_params
from elk_jax.backbones.norms import param_dtype
from elk_jax.diffusion import settings
from elk_jax.diffusion.attention import Implementation, attend, gelu
from elk_jax.diffusion.layers import dense, layer_norm
from elk_jax.errors import UserError
from elk_jax.fields import EPSILON, Between, OneOf, check
from elk_jax.precision import DTYPES, at_least_float32


def quick_gelu(x: jax.Array) -> jax.Array:
    """x sigmoid(1.702 x), the activation of OpenAI's CLIP."""
    return x * nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"quick_gelu": quick_gelu, "gelu": gelu}


Count = Annotated[int, Between(1, 1 << 16)]


@dataclass(frozen=True)
class TextConfig:
    """Fields and defaults as in text_encoder/config.json of Stable Diffusion 1.5 (ViT-L/14), and three more.

    Stable Diffusion 2: hidden_size 1024, intermediate_size 4096, num_hidden_layers 23 (the published folder omits the
    last of OpenCLIP's 24), num_attention_heads 16, hidden_act 'gelu'.
    """

    vocab_size: Annotated[int, Between(1, 1 << 20)] = 49408
    max_position_embeddings: Annotated[int, Between(3, 1 << 16)] = 77
    hidden_size: Count = 768
    intermediate_size: Count = 3072
    num_hidden_layers: Annotated[int, Between(0, 64)] = 12
    num_attention_heads: Count = 12
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: Annotated[float, EPSILON] = 1e-5

    attention: Implementation = "auto"
    """See attention.Implementation."""
    remat: bool = False
    """Recompute the activations inside every layer in the backward pass."""
    dtype: Annotated[str, OneOf(DTYPES)] = "float32"
    """Number format of the computation."""

    def __post_init__(self) -> None:
        check(self)
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"{self.hidden_size} channels cannot be split into {self.num_attention_heads} heads",
                where="num_attention_heads",
                todo="give a divisor of hidden_size",
            )


_DEFAULTS = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
"""Of transformers: those that differ from ours. Its files can leave them out."""


def text_config(content: Mapping[str, Any], where: str = "", **changes: Any) -> TextConfig:
    """The configuration from transformers' text_encoder/config.json; `changes` (dtype, ...) override it.

    Raises UserError for any other type of text encoder.
    """
    kind = content.get("model_type", "clip_text_model")
    if kind != "clip_text_model":
        raise UserError(f"model_type is {kind!r}", where=where, todo="use a Stable Diffusion 1.x or 2.x model")
    # the `dtype` of a file is that of its stored numbers
    known = {field.name for field in dataclasses.fields(TextConfig)} - {"dtype"}
    ours = {name: value for name, value in content.items() if name in known}  # the rest: generation, dropout, ...
    return settings.from_json(TextConfig, {**ours, **changes}, _DEFAULTS, {}, where)


class SelfAttention(nn.Module):
    """Every token attends to itself and the tokens before it: [B, T, D] -> [B, T, D]."""

    config: TextConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, dtype = self.config, jnp.dtype(self.config.dtype)

        def project(name: str) -> jax.Array:
            y = dense(c.hidden_size, dtype, name)(x)
            return y.reshape(*y.shape[:-1], c.num_attention_heads, c.hidden_size // c.num_attention_heads)

        y = attend(project("q_proj"), project("k_proj"), project("v_proj"), c.attention, causal=True)
        return dense(c.hidden_size, dtype, "out_proj")(y.reshape(x.shape))


class FeedForward(nn.Module):
    """Two dense layers: [B, T, D] -> [B, T, D]."""

    config: TextConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        x = ACTIVATIONS[c.hidden_act](dense(c.intermediate_size, dtype, "fc1")(x))
        return dense(c.hidden_size, dtype, "fc2")(x)


class Layer(nn.Module):
    """Attention and feed-forward, each with a layer norm before and a shortcut: [B, T, D] -> [B, T, D]."""

    config: TextConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        x = x + SelfAttention(c, name="self_attn")(layer_norm(dtype, "layer_norm1", c.layer_norm_eps)(x))
        return x + FeedForward(c, name="mlp")(layer_norm(dtype, "layer_norm2", c.layer_norm_eps)(x))


class Table(nn.Module):
    """Rows of a table of `rows` embeddings: [...] int32 -> [..., features]. Only these are converted to `dtype`."""

    rows: int
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        start, stored = nn.initializers.normal(0.02), param_dtype(self.dtype)
        table = self.param("embedding", start, (self.rows, self.features), stored)
        return jnp.take(table, ids, axis=0).astype(self.dtype)


class Embeddings(nn.Module):
    """Sum of token and position embedding: [B, T] -> [B, T, D]."""

    config: TextConfig

    @nn.compact
    def __call__(self, token_ids: jax.Array) -> jax.Array:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        positions = jnp.arange(token_ids.shape[1])
        tokens = Table(c.vocab_size, c.hidden_size, dtype, name="token_embedding")(token_ids)
        return tokens + Table(c.max_position_embeddings, c.hidden_size, dtype, name="position_embedding")(positions)


class Layers(nn.Module):
    """All layers: [B, T, D] -> [B, T, D]."""

    config: TextConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kind = nn.remat(Layer) if self.config.remat else Layer
        for i in range(self.config.num_hidden_layers):
            x = kind(self.config, name=f"layers_{i}")(x)
        return x


class CLIPTextEncoder(nn.Module):
    """token_ids [B, T] int32 -> last hidden state after the final layer norm [B, T, D], float32 or wider.

    Padding is not masked: CLIP attends to it as to a word. Raises UserError if T exceeds max_position_embeddings.
    """

    config: TextConfig

    @nn.compact
    def __call__(self, token_ids: jax.Array) -> jax.Array:
        c = self.config
        if token_ids.shape[1] > c.max_position_embeddings:
            raise UserError(
                f"{token_ids.shape[1]} tokens, limit {c.max_position_embeddings}", where="max_position_embeddings"
            )
        x = Layers(c, name="encoder")(Embeddings(c, name="embeddings")(token_ids))
        return at_least_float32(layer_norm(jnp.dtype(c.dtype), "final_layer_norm", c.layer_norm_eps)(x))


def init(config: TextConfig, rng: jax.Array) -> Any:
    """Initial parameters (nested dict); only their shapes under jax.eval_shape."""
    return draw_params(CLIPTextEncoder(config), rng, jnp.zeros((1, 2), jnp.int32))
