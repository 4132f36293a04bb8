"""Bidirectional feature pyramid (Tan, Pang and Le 2020, EfficientDet).

Shapes: B batch; the map of level l has stride 2^l: [B, ceil(H / 2^l), ceil(W / 2^l), channels].
Parameters: p6 (1x1, from C5) and cell{c}/{down,up}{level}, where `down` is on the way to finer levels: weights of its
inputs, conv (separable), and in the first cell inputs{level} (1x1) of the maps of the backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from elk_jax.backbones.conv import ConvNorm, Padding
from elk_jax.backbones.depthwise import SeparableConv
from elk_jax.backbones.efficientnet import activate
from elk_jax.backbones.fpn import upsample_to
from elk_jax.backbones.norms import Norm, param_dtype
from elk_jax.backbones.resnet import max_pool

Fusion = Literal["fast", "sum"]
"""'fast': a mean of the inputs with trained weights above 0. 'sum': their sum."""
FIRST = 3
"""The finest level."""


class Layers(NamedTuple):
    """Settings of every layer of a pyramid. bias: whether convolutions have one in addition to their norm."""

    channels: int
    fusion: Fusion = "fast"
    activation: str = "swish"
    norm: Norm | None = None
    bias: bool = True
    padding: Padding = "same"
    dtype: Any = jnp.float32


class BiFPN(nn.Module):
    """(C3, C4, C5) -> `levels` maps from P3 on, all with the channels of the layers."""

    layers: Layers
    cells: int
    levels: int = 5

    @nn.compact
    def __call__(self, stages: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        maps = list(stages)
        above = _projected(self.layers, "p6", maps[-1])
        while len(maps) < self.levels:
            above = max_pool(above, self.layers.padding)
            maps.append(above)
        for number in range(self.cells):
            maps = Cell(self.layers, name=f"cell{number}")(maps)
        return tuple(maps)


class Cell(nn.Module):
    """One pass down to the finest level and one pass up: as many maps as inputs, with the channels of the layers."""

    layers: Layers

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> list[jax.Array]:
        def node(way: str, level: int, inputs: Sequence[tuple[int, jax.Array]]) -> jax.Array:
            size = (maps[level].shape[1], maps[level].shape[2])
            return Node(self.layers, size, name=f"{way}{level + FIRST}")(inputs)

        last = len(maps) - 1
        down = {last: maps[last]}
        for level in reversed(range(last)):
            down[level] = node("down", level, [(level, maps[level]), (level + 1, down[level + 1])])
        up = [down[0]]
        for level in range(1, last + 1):
            own = [(level, maps[level]), (level, down[level])] if level < last else [(level, maps[level])]
            up.append(node("up", level, [*own, (level - 1, up[-1])]))
        return up


class Node(nn.Module):
    """Maps of several levels, resized to `size`, the size of the first, then weighted and convolved.

    inputs: (level from 0, map).
    """

    layers: Layers
    size: tuple[int, int]

    @nn.compact
    def __call__(self, inputs: Sequence[tuple[int, jax.Array]]) -> jax.Array:
        c, found = self.layers, []
        for level, x in inputs:
            x = _projected(c, f"inputs{level + FIRST}", x)
            if x.shape[1] > self.size[0] or x.shape[2] > self.size[1]:
                x = max_pool(x, c.padding)
            found.append(upsample_to(x, *self.size) if x.shape[1:3] != self.size else x)
        if c.fusion == "fast":
            weights = nn.relu(self.param("weights", nn.initializers.ones, (len(found),), param_dtype(c.dtype)))
            shares = (weights / (weights.sum() + 1e-4)).astype(c.dtype)
            found = [x * shares[i] for i, x in enumerate(found)]
        total = activate(c.activation, sum(found[1:], found[0]))
        return SeparableConv(c.channels, c.norm, c.bias or None, padding=c.padding, dtype=c.dtype, name="conv")(total)


def _projected(c: Layers, name: str, x: jax.Array) -> jax.Array:
    """A map with the channels of the pyramid: itself, or after a 1x1 convolution. Called in a compact module."""
    if x.shape[-1] == c.channels:
        return x
    glorot = nn.initializers.xavier_uniform()
    return ConvNorm(c.channels, 1, norm=c.norm, kernel_init=glorot, bias=c.bias or None, dtype=c.dtype, name=name)(x)
