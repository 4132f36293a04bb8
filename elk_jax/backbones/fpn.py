"""Feature pyramid network (Lin et al. 2017).

Shapes: B batch, L levels; the map of level l has stride 2^l: [B, ceil(H / 2^l), ceil(W / 2^l), channels].
Parameters: lateral{2..5} (1x1) and output{2..5} (3x3), each a ConvNorm; p6 and p7 if upper levels are convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from elk_jax.backbones.conv import ConvNorm, xavier_uniform_fan_in
from elk_jax.backbones.norms import Norm


def upsample_to(x: jax.Array, height: int, width: int) -> jax.Array:
    """Nearest-neighbour upsampling by two, cropped to [B, height, width, C] (sizes 2n or 2n - 1).

    A stride of two produces only these sizes. Pixel i of the result is pixel i // 2 of x, as in torch's
    `interpolate(mode="nearest", size=...)`.
    """
    batch, h, w, channels = x.shape
    doubled = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, h, 2, w, 2, channels))
    return doubled.reshape(batch, 2 * h, 2 * w, channels)[:, :height, :width]


Top = Literal["subsampled", "p5", "c5"]
"""Levels above those of the backbone. 'subsampled': P6 is every second pixel of P5. Otherwise P6 is a convolution with
stride 2 of P5 or C5, and P7 one of the rectified P6 (Lin et al. 2017b, RetinaNet)."""


class FPN(nn.Module):
    """(C2, ..., C5) -> (P2, ..., P5) and the levels of `top`, all with `channels` channels."""

    channels: int = 256
    norm: Norm | None = None
    first_level: int = 2
    top: Top = "subsampled"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, stages: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        def layer(name: str, kernel_size: int, **options: Any) -> ConvNorm:
            width, init = self.channels, xavier_uniform_fan_in
            return ConvNorm(width, kernel_size, kernel_init=init, dtype=self.dtype, name=name, **options)

        outputs: list[jax.Array] = []
        above = None
        for level, stage in reversed(list(enumerate(stages, start=self.first_level))):
            merged = layer(f"lateral{level}", 1, norm=self.norm)(stage)
            if above is not None:
                merged = merged + upsample_to(above, *merged.shape[1:3])
            above = merged
            outputs.insert(0, layer(f"output{level}", 3, norm=self.norm)(merged))
        if self.top == "subsampled":
            return (*outputs, outputs[-1][:, ::2, ::2])
        p6 = layer("p6", 3, stride=2)(outputs[-1] if self.top == "p5" else stages[-1])
        return (*outputs, p6, layer("p7", 3, stride=2)(nn.relu(p6)))
