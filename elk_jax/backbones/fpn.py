"""Feature pyramid network (Lin et al. 2017).

Shapes: B batch, L levels; the map of level l has stride 2^l: [B, ceil(H / 2^l), ceil(W / 2^l), channels].
Parameters: lateral{2..5} (1x1) and output{2..5} (3x3), each a ConvNorm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


class FPN(nn.Module):
    """(C2, ..., C5) -> (P2, ..., P5, P6), all with `channels` channels; P6 is every second pixel of P5."""

    channels: int = 256
    norm: Norm | None = None
    first_level: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, stages: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        def conv(name: str, kernel_size: int, x: jax.Array) -> jax.Array:
            return ConvNorm(
                self.channels,
                kernel_size,
                norm=self.norm,
                kernel_init=xavier_uniform_fan_in,
                dtype=self.dtype,
                name=name,
            )(x)

        outputs: list[jax.Array] = []
        above = None
        for level, stage in reversed(list(enumerate(stages, start=self.first_level))):
            merged = conv(f"lateral{level}", 1, stage)
            if above is not None:
                merged = merged + upsample_to(above, *merged.shape[1:3])
            above = merged
            outputs.insert(0, conv(f"output{level}", 3, merged))
        return (*outputs, outputs[-1][:, ::2, ::2])
