"""Bidirectional feature pyramid (Tan, Pang and Le 2020, EfficientDet).

Shapes: B batch; the map of level l has stride 2^l: [B, ceil(H / 2^l), ceil(W / 2^l), channels].
Parameters: p6 (1x1, of C5) and cell{c}/{down,up}{level}, where `down` is on the way to finer levels: weights of its
inputs, conv (separable), and in the first cell inputs{level} (1x1) of the maps of the backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

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


class BiFPN(nn.Module):
    """(C3, C4, C5) -> `levels` maps from P3 on, all with `channels` channels.

    bias: whether convolutions have one beside their norm.
    """

    channels: int
    cells: int
    levels: int = 5
    fusion: Fusion = "fast"
    activation: str = "swish"
    norm: Norm | None = None
    bias: bool = True
    padding: Padding = "same"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, stages: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        maps = list(stages)
        above = _projected(self, "p6", maps[-1])
        while len(maps) < self.levels:
            above = max_pool(above, self.padding)
            maps.append(above)
        for number in range(self.cells):
            maps = Cell(
                self.channels,
                self.fusion,
                self.activation,
                self.norm,
                self.bias,
                self.padding,
                self.dtype,
                name=f"cell{number}",
            )(maps)
        return tuple(maps)


class Cell(nn.Module):
    """One way down to the finest level and one way up: as many maps as it is given, all with `channels` channels."""

    channels: int
    fusion: Fusion
    activation: str
    norm: Norm | None
    bias: bool
    padding: Padding
    dtype: Any

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> list[jax.Array]:
        def node(way: str, level: int, inputs: Sequence[tuple[int, jax.Array]]) -> jax.Array:
            return Node(
                (maps[level].shape[1], maps[level].shape[2]),
                self.channels,
                self.fusion,
                self.activation,
                self.norm,
                self.bias,
                self.padding,
                self.dtype,
                name=f"{way}{level + FIRST}",
            )(inputs)

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
    """Maps of several levels, the first of its own size, brought to `size`, weighed and convolved.

    inputs: (level from 0, map).
    """

    size: tuple[int, int]
    channels: int
    fusion: Fusion
    activation: str
    norm: Norm | None
    bias: bool
    padding: Padding
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Sequence[tuple[int, jax.Array]]) -> jax.Array:
        found = []
        for level, x in inputs:
            x = _projected(self, f"inputs{level + FIRST}", x)
            if x.shape[1] > self.size[0] or x.shape[2] > self.size[1]:
                x = max_pool(x, self.padding)
            found.append(upsample_to(x, *self.size) if x.shape[1:3] != self.size else x)
        if self.fusion == "fast":
            weights = nn.relu(self.param("weights", nn.initializers.ones, (len(found),), param_dtype(self.dtype)))
            shares = (weights / (weights.sum() + 1e-4)).astype(self.dtype)
            found = [x * shares[i] for i, x in enumerate(found)]
        total = activate(self.activation, sum(found[1:], found[0]))
        conv = SeparableConv(
            self.channels, self.norm, self.bias or None, padding=self.padding, dtype=self.dtype, name="conv"
        )
        return conv(total)


def _projected(module: Any, name: str, x: jax.Array) -> jax.Array:
    """A map with the channels of the pyramid: itself, or behind a 1x1 convolution."""
    if x.shape[-1] == module.channels:
        return x
    conv = ConvNorm(
        module.channels,
        1,
        norm=module.norm,
        kernel_init=nn.initializers.xavier_uniform(),
        bias=module.bias or None,
        dtype=module.dtype,
        name=name,
    )
    return conv(x)
