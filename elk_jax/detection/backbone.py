"""A network of `backbones.networks` as the backbone of a detector: its maps at some strides, and its parameters.

Shapes: B batch, H W canvas, C channels; the map of a stride s is [B, ceil(H/s), ceil(W/s), C].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from elk_jax.backbones.initial import draw_params
from elk_jax.backbones.networks import NETWORKS
from elk_jax.detection.detector import Batch, Params, Pyramid
from elk_jax.errors import UserError


def check(config: Any, strides: Sequence[int]) -> None:
    """UserError unless a network can be the backbone of a detector that reads maps of these strides."""
    if config.num_classes:
        todo = "set it to 0: the detector has its own classes"
        raise UserError(f"the backbone has {config.num_classes} classes", where="backbone.num_classes", todo=todo)
    own = NETWORKS[config.name].strides(config)
    if missing := [stride for stride in strides if stride not in own]:
        what = f"the backbone has maps with {', '.join(map(str, own))} pixels per cell, but none with {missing[0]}"
        todo = f"choose one with maps at {', '.join(map(str, strides))} pixels per cell"
        raise UserError(what, where="backbone", todo=todo)


def draw(config: Any, rest: nn.Module, strides: Sequence[int], rng: jax.Array) -> Params:
    """Fresh parameters of a detector (see `draw_params`): `backbone`, and those of `rest`, which reads its maps."""
    backbone = {"backbone": NETWORKS[config.name].init(config, rng)["backbone"]}
    batch = {"image": jnp.zeros((1, 32, 32, len(config.pixel_mean))), "image_size": jnp.full((1, 2), 32.0)}
    maps = _traced_once.eval_shape(config, backbone, batch, strides=tuple(strides))
    return {**backbone, **draw_params(rest, rng, tuple(jnp.zeros(one.shape, one.dtype) for one in maps))}


def stages(
    config: Any, params: Params, batch: Batch, rng: jax.Array | None = None, *, strides: Sequence[int]
) -> Pyramid:
    """The last map at every stride (4, 8, 16, 32: C2, ..., C5) of a batch's images, which are 0 outside image_size."""
    network = NETWORKS[config.name]
    maps = network.features(config, params, batch["image"], rng, batch["image_size"])
    by_stride = dict(zip(network.strides(config), maps))
    return tuple(by_stride[stride] for stride in strides)


_traced_once = jax.jit(stages, static_argnames=("config", "strides"))


def frozen(config: Any) -> tuple[str, ...]:
    """Regular expressions of the parameters that are never trained."""
    return NETWORKS[config.name].frozen(config)


def statistics(config: Any) -> tuple[str, ...]:
    """Regular expressions of the parameters that are running statistics."""
    return NETWORKS[config.name].statistics(config)


def conventions(config: Any) -> dict[str, str]:
    """`Network.conventions` as settings of a detector.

    Without mean and spread of a single channel, which only change the contrast of the same grey values.
    """
    layers = NETWORKS[config.name].conventions(config)
    free = ("pixel_mean", "pixel_std") if len(config.pixel_mean) == 1 else ()
    return {f"backbone.{field}": pattern for field, pattern in layers.items() if field not in free}
