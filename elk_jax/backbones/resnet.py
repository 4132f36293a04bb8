"""Residual networks (He et al. 2016) as feature extractors.

Shapes: B batch, H W input size, C channels; stage l (2..5) is C_l [B, ceil(H/2^l), ceil(W/2^l), C].

Parameters: stem/conv, res{2..5}_{block}/conv{1,2,3} and /shortcut, each a ConvNorm (kernel, norm/*).
Padding is as in PyTorch, so that weights of torchvision and detectron2 give the same features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from elk_jax.backbones.conv import ConvNorm
from elk_jax.backbones.norms import Norm

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Residual blocks of the stages res2..res5, by depth: all depths that there are."""


def has_bottlenecks(depth: int) -> bool:
    """Whether the blocks of a ResNet are bottlenecks (1x1, 3x3, 1x1) or basic (3x3, 3x3)."""
    return depth >= 50


class Stem(nn.Module):
    """7x7 convolution of stride 2, ReLU, max-pool of stride 2: [B, H, W, C_in] -> [B, H/4, W/4, width]."""

    width: int
    norm: Norm | None
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return max_pool(nn.relu(ConvNorm(self.width, 7, 2, self.norm, dtype=self.dtype, name="conv")(x)))


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 max-pool of stride 2, padded by 1 with -inf: [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), C].

    It is the maximum of three shifted slices, along one axis and then the other. The gradient of a windowed reduction
    is several times slower on a CPU, and on a sharded batch it gathers the activations of all devices.
    """
    for axis in (1, 2):
        size = -(-x.shape[axis] // 2)
        padding = [(1, 1) if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(x, padding, constant_values=-jnp.inf)
        first, second, third = (
            jax.lax.slice_in_dim(padded, start, start + 2 * size - 1, stride=2, axis=axis) for start in range(3)
        )
        x = jnp.maximum(jnp.maximum(first, second), third)
    return x


@jax.custom_vjp
def rectified_sum(branch: jax.Array, skipped: jax.Array) -> jax.Array:
    """relu(branch + skipped), of one shape and type: the end of a residual block.

    It is written as a selection between two arrays, here and in the gradient. XLA's CPU compiler duplicates cheap
    functions of one array into all their consumers: a maximum with zero would be recomputed, with all the blocks before
    it, in every block of a stage (a third more time and memory for 101 layers).
    """
    total = branch + skipped
    return jnp.where(total <= 0, jnp.zeros_like(total), total)  # NaN propagates


def _rectified_sum_forward(branch: jax.Array, skipped: jax.Array):
    total = rectified_sum(branch, skipped)
    return total, total


def _rectified_sum_backward(total: jax.Array, gradient: jax.Array):
    gradient = jnp.where(total > 0, gradient, jnp.zeros_like(gradient))
    return gradient, gradient


rectified_sum.defvjp(_rectified_sum_forward, _rectified_sum_backward)


class Block(nn.Module):
    """What both kinds of residual blocks are told. last_norm: of the last convolution, before the shortcut is added."""

    width: int
    stride: int
    norm: Norm | None
    last_norm: Norm | None
    stride_in_1x1: bool
    dtype: Any


class BasicBlock(Block):
    """Two 3x3 convolutions and a shortcut: [B, H, W, C_in] -> [B, H/stride, W/stride, width]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(ConvNorm(self.width, 3, self.stride, self.norm, dtype=self.dtype, name="conv1")(x))
        y = ConvNorm(self.width, 3, 1, self.last_norm, dtype=self.dtype, name="conv2")(y)
        return rectified_sum(y, shortcut(self, x, self.width))


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions and a shortcut: [B, H, W, C_in] -> [B, H/stride, W/stride, 4 width].

    The stride is in the first 1x1 (the original network, detectron2) or in the 3x3 (torchvision).
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        stride1, stride3 = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
        y = nn.relu(ConvNorm(self.width, 1, stride1, self.norm, dtype=self.dtype, name="conv1")(x))
        y = nn.relu(ConvNorm(self.width, 3, stride3, self.norm, dtype=self.dtype, name="conv2")(y))
        y = ConvNorm(4 * self.width, 1, 1, self.last_norm, dtype=self.dtype, name="conv3")(y)
        return rectified_sum(y, shortcut(self, x, 4 * self.width))


def shortcut(block: Block, x: jax.Array, features: int) -> jax.Array:
    """The input itself, or its 1x1 projection if the block changes its size or channels."""
    if block.stride == 1 and x.shape[-1] == features:
        return x
    return ConvNorm(features, 1, block.stride, block.norm, dtype=block.dtype, name="shortcut")(x)


class ResNet(nn.Module):
    """Image [B, H, W, C_in] -> (C2, C3, C4, C5) at strides 4, 8, 16, 32.

    depth: a key of BLOCKS. width: of the convolutions in the blocks of C2, each later stage doubles it (fewer than
    64 for narrow networks). stem_width: channels of the stem; 0: as `width`.
    norm: factory of all norms; None: convolutions with biases.
    last_norm: last norm of each residual branch (`norms.zero_residual_norm(norm)`); None: same as `norm`.
    remat: recompute the activations inside the blocks of these stages (2..5) in the backward pass.
    """

    depth: int = 50
    width: int = 64
    stem_width: int = 0
    norm: Norm | None = None
    last_norm: Norm | None = None
    stride_in_1x1: bool = False
    remat: Sequence[int] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array) -> tuple[jax.Array, ...]:
        block_type = Bottleneck if has_bottlenecks(self.depth) else BasicBlock
        x = Stem(self.stem_width or self.width, self.norm, self.dtype, name="stem")(image)
        stages = []
        for stage, blocks in enumerate(BLOCKS[self.depth], start=2):
            make_block = nn.remat(block_type) if stage in self.remat else block_type
            for i in range(blocks):
                x = make_block(
                    width=self.width * 2 ** (stage - 2),
                    stride=2 if i == 0 and stage > 2 else 1,
                    norm=self.norm,
                    last_norm=self.last_norm or self.norm,
                    stride_in_1x1=self.stride_in_1x1,
                    dtype=self.dtype,
                    name=f"res{stage}_{i}",
                )(x)
            stages.append(x)
        return tuple(stages)
