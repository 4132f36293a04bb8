"""Normalisation layers as pure functions: none changes its parameters.

Shapes: B batch, H W C. All layers keep the shape of their input.

A `Norm` is a factory: `norm(dtype=..., name=...)` gives a module. Networks take the factory as an argument
(`norm_from_name` maps names to factories). In the layers of NORMS, images do not interact: batch statistics come from a
pre-trained network and stay constant, so that every network supports per-example gradients. In BATCH_NORM, which a
ResNet may use instead, statistics are those of the batch, and the training step keeps their running means
(`BatchNorm`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from elk_jax.errors import UserError
from elk_jax.precision import at_least_float32

MOMENTUM = 0.1
"""The weight of a batch in running statistics: PyTorch's default."""

Initializer = Callable[..., jax.Array]
Norm = Callable[..., nn.Module]


def param_dtype(dtype: Any) -> Any:
    """Type of the parameters of a layer that computes in `dtype`: float32 or wider."""
    return jnp.promote_types(dtype, jnp.float32)


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with constant statistics, folded into one multiply-add.

    Parameters scale, bias, mean, var [C]. None is trained (as in FrozenBatchNorm2d of detectron2 and torchvision),
    except scale and bias with `train_affine`.
    """

    eps: float = 1e-5
    train_affine: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale, bias, mean, var = _batch_norm_params(self, x.shape[-1], self.dtype)
        mean, var = lax.stop_gradient((mean, var))
        if not self.train_affine:
            scale, bias = lax.stop_gradient((scale, bias))
        factor = scale * lax.rsqrt(var + self.eps)
        return (at_least_float32(x) * factor + (bias - mean * factor)).astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation as PyTorch trains it (Ioffe & Szegedy 2015), statistics in float32 or wider.

    training: the statistics are those of the batch, over images, rows and columns, on all devices; else the running
    ones. Parameters scale, bias, mean, var [C]; the last two are running means, var of unbiased variances.

    Nothing is mutable: in training, the derivative of any loss by `mean` and `var` is MOMENTUM times their difference
    from the statistics of the batch. A step that subtracts it unchanged (`Model.statistics`) is PyTorch's update; with
    micro-batches, the mean gives the update for the mean statistics. They belong to the parameters, so that
    checkpoints, averages and layouts treat them like any other.
    """

    eps: float = 1e-5
    training: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale, bias, mean, var = _batch_norm_params(self, x.shape[-1], self.dtype)
        wide = at_least_float32(x)
        if self.training:
            axes, values = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
            own_mean = wide.mean(axes)
            own_var = jnp.square(wide - own_mean).mean(axes)
            seen = own_mean, own_var * (values / max(values - 1, 1))
            wide, mean, var = followed(wide, (mean, var), jax.lax.stop_gradient(seen)), own_mean, own_var
        factor = scale * lax.rsqrt(var + self.eps)
        return ((wide - mean) * factor + bias).astype(self.dtype)


def _batch_norm_params(module: nn.Module, channels: int, dtype: Any) -> list[jax.Array]:
    """scale, bias, mean and var [C] of a batch norm, at first the identity."""
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    initial = {"scale": ones, "bias": zeros, "mean": zeros, "var": ones}
    return [module.param(name, made, (channels,), param_dtype(dtype)) for name, made in initial.items()]


@jax.custom_vjp
def followed(x: jax.Array, running: Any, seen: Any) -> jax.Array:
    """x, with a derivative by `running` defined as MOMENTUM (running - seen), a step towards `seen`."""
    return x


def _followed_forward(x: jax.Array, running: Any, seen: Any):
    return x, jax.tree.map(lambda old, new: MOMENTUM * (old - new), running, seen)


def _followed_backward(step: Any, gradient: jax.Array):
    return gradient, step, jax.tree.map(jnp.zeros_like, step)


followed.defvjp(_followed_forward, _followed_backward)


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018), statistics in float32 or wider, as one multiply-add per image.

    Parameters scale, bias [C]. UserError unless `groups` divides the number of channels.
    """

    groups: int = 32
    eps: float = 1e-5
    scale_init: Initializer = nn.initializers.ones
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels, stored = x.shape[-1], param_dtype(self.dtype)
        if channels % self.groups:
            raise UserError(
                f"{channels} channels cannot be split into {self.groups} groups",
                where="/".join(self.path),
                todo="set the number of groups to a divisor of every width",
            )
        scale = self.param("scale", self.scale_init, (channels,), stored)
        bias = self.param("bias", nn.initializers.zeros, (channels,), stored)
        wide = at_least_float32(x)

        def group_mean(per_channel: jax.Array) -> jax.Array:  # [B, C] -> [B, C], equal within a group
            grouped = per_channel.reshape(*per_channel.shape[:-1], self.groups, channels // self.groups)
            mean = jnp.mean(grouped, axis=-1, keepdims=True)
            return jnp.broadcast_to(mean, grouped.shape).reshape(per_channel.shape)

        # One pass over the activations gives both moments; everything after it is [B, C].
        mean = group_mean(jnp.mean(wide, axis=(-3, -2)))
        second = group_mean(jnp.mean(jnp.square(wide), axis=(-3, -2)))
        var = jnp.maximum(second - jnp.square(mean), 0.0)
        factor = scale * lax.rsqrt(var + self.eps)
        shift = bias - mean * factor
        return (wide * factor[..., None, None, :] + shift[..., None, None, :]).astype(self.dtype)


NORMS: dict[str, Callable[[int, float], Norm | None]] = {
    "frozen_bn": lambda groups, eps: partial(FrozenBatchNorm, eps=eps),
    "affine_bn": lambda groups, eps: partial(FrozenBatchNorm, eps=eps, train_affine=True),
    "gn": lambda groups, eps: partial(GroupNorm, groups=groups, eps=eps),
    "none": lambda groups, eps: None,
}
"""Name -> (groups, eps) -> norm. 'frozen_bn': nothing is trained; 'affine_bn': constant statistics, trained scale and
bias; 'gn': GroupNorm; 'none': no norm."""


BATCH_NORM = "batch_bn"
"""The name of `BatchNorm`: 'batch_bn', statistics of the batch, everything trained."""


def norm_from_name(name: str, *, groups: int = 32, eps: float = 1e-5, training: bool = False) -> Norm | None:
    """The norm factory called `name`, a key of NORMS or BATCH_NORM, for which alone `training` matters."""
    return partial(BatchNorm, eps=eps, training=training) if name == BATCH_NORM else NORMS[name](groups, eps)


def zero_residual_norm(norm: Norm | None) -> Norm | None:
    """The last norm of a residual branch: GroupNorm starts at scale 0 (Goyal et al. 2017), others are unchanged."""
    if isinstance(norm, partial) and norm.func is GroupNorm:
        return partial(norm, scale_init=nn.initializers.zeros)
    return norm


def frozen_patterns(name: str, prefixes: Sequence[str] = ("",)) -> tuple[str, ...]:
    """Regular expressions of the parameters under `prefixes` that the norm `name` does not train."""
    names = {"frozen_bn": "scale|bias|mean|var", "affine_bn": "mean|var"}.get(name)
    return tuple(f"^{prefix}.*/norm/({names})$" for prefix in prefixes) if names else ()


def statistics_patterns(name: str, prefixes: Sequence[str] = ("",)) -> tuple[str, ...]:
    """Regular expressions of the parameters under `prefixes` that are running statistics of the norm `name`."""
    return tuple(f"^{prefix}.*/norm/(mean|var)$" for prefix in prefixes) if name == BATCH_NORM else ()
