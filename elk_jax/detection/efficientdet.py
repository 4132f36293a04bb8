"""EfficientDet (Tan, Pang and Le 2020): parameters, losses, predictions.

Shape legend: B batch, H W size of the padded images, L levels P3..P7 (P8), A_l anchors of a level, Q classes.
The steps around the modules are in `dense.py`. Batches and `map_images`: see `detector.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from elk_jax.backbones.bifpn import BiFPN, Layers
from elk_jax.backbones.conv import Padding
from elk_jax.backbones.depthwise import SeparableConv
from elk_jax.backbones.efficientnet import activate
from elk_jax.backbones.norms import Norm, frozen_patterns, norm_from_name
from elk_jax.detection import backbone, dense
from elk_jax.detection.dense import Outputs
from elk_jax.detection.detector import Batch, Detector, Loss, MapImages
from elk_jax.detection.efficientdet_config import EfficientDetConfig, named
from elk_jax.detection.settings import norm_conventions
from elk_jax.precision import at_least_float32

__all__ = ["EfficientDet", "EfficientDetConfig", "named"]

CLASS_LAYERS = r"^class_head/logits/pointwise/"

_small = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class LevelNorm(nn.Module):
    """The norm of one level."""

    norm: Norm
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(dtype=self.dtype, name="norm")(x)


class Head(nn.Module):
    """Levels [B, H_l, W_l, C] -> per level [B, A_l, size]. Levels share convolutions; each has its own norms.

    Parameters: conv1..conv{convs}, norms{1..convs}_{level} and `output`, the name of the last convolution.
    """

    cell_anchors: int
    size: int
    output: str
    convs: int
    activation: str
    norm: Norm | None
    biases: bool
    bias: float
    padding: Padding
    dtype: Any

    @nn.compact
    def __call__(self, levels: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        width = levels[0].shape[-1]

        def conv(name: str, features: int, **options: Any) -> SeparableConv:
            made = partial(SeparableConv, features, kernel_init=_small, padding=self.padding, dtype=self.dtype)
            return made(name=name, **options)

        own_bias = self.biases or self.norm is None
        trunk = [conv(f"conv{i + 1}", width, bias=own_bias) for i in range(self.convs)]
        bias = nn.initializers.constant(self.bias)
        last = conv(self.output, self.cell_anchors * self.size, bias_init=bias)
        found = []
        for level, x in enumerate(levels, start=3):
            for i, layer in enumerate(trunk, start=1):
                x = layer(x)
                x = x if self.norm is None else LevelNorm(self.norm, self.dtype, name=f"norms{i}_{level}")(x)
                x = activate(self.activation, x)
            found.append(at_least_float32(last(x)).reshape(x.shape[0], -1, self.size))
        return tuple(found)


class EfficientDet(nn.Module):
    """The parts after the backbone: fpn, class_head and box_head, top-level names of the parameters beside
    `backbone`."""

    config: EfficientDetConfig

    def setup(self) -> None:
        c = self.config
        norm = norm_from_name(c.norm, groups=c.norm_groups, eps=c.norm_eps)
        dtype = jnp.dtype(c.backbone.dtype)
        layers = Layers(c.channels, c.fusion, c.activation, norm, c.biases, c.padding, dtype)
        self.fpn = BiFPN(layers, c.cells, c.levels)
        head = partial(
            Head,
            len(c.anchor_sizes[0]) * len(c.anchor_ratios),
            convs=c.head_convs,
            activation=c.activation,
            norm=norm,
            biases=c.biases,
            padding=c.padding,
            dtype=dtype,
        )
        self.class_head = head(size=c.num_classes, output="logits", bias=-math.log((1 - c.prior) / c.prior))
        self.box_head = head(size=4, output="deltas", bias=0.0)

    def __call__(self, stages: Sequence[jax.Array]) -> Outputs:
        """C3..C5 -> outputs: uses every parameter, for `init`."""
        return self.outputs(self.levels(stages))

    def levels(self, stages: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """C3..C5 -> P3..P7."""
        return self.fpn(stages)

    def outputs(self, levels: Sequence[jax.Array]) -> Outputs:
        """Levels -> class logits and box deltas for all anchors."""
        return Outputs(self.class_head(levels), self.box_head(levels))


def detector(config: EfficientDetConfig) -> Detector:
    """EfficientDet as a `Detector`."""
    return dense.detector(EfficientDet(config), loss, CLASS_LAYERS, conventions(config), frozen(config))


def frozen(config: EfficientDetConfig) -> tuple[str, ...]:
    """Regular expressions of parameters that are constants with the chosen norms and never trained."""
    return (*backbone.frozen(config.backbone), *frozen_patterns(config.norm, ("(fpn|class_head|box_head)/",)))


def conventions(config: EfficientDetConfig) -> dict[str, str]:
    """Setting -> the layers whose weights change their meaning with it (see `Detector`).

    Without the anchor sizes, which every training run may plan for its own lesions.
    """
    own, outputs = r"^(fpn|class_head|box_head)/", r"^(class_head/logits|box_head/deltas)/"
    return {
        **backbone.conventions(config.backbone),
        "activation": own,
        "padding": own,
        **norm_conventions(f"{own}.*/norm/", config.norm),
        "anchor_ratios": outputs,
        "anchor_offset": outputs,
        "box_weights": r"^box_head/deltas/",
    }


def loss(config: EfficientDetConfig, found: Outputs, batch: Batch, map_images: MapImages = jax.vmap) -> Loss:
    """Sum of the two losses, and metrics: each loss, and the mean number of positive anchors of an image.

    Both are divided by the number of positive anchors in the whole batch, at least 1. Images without a lesion count as
    background. Images with batch["valid"] False do not count.
    """
    counts, sums = dense.losses(config, found, batch, map_images)
    sums = jax.tree.map(lambda per_image: jnp.where(counts, per_image, 0).sum(), sums)
    positives = jnp.maximum(sums.positives, 1)
    losses = {"loss_class": sums.classes / positives, "loss_box": box_scale(config) * sums.box / positives}
    mean = sums.positives / jnp.maximum(counts.sum(), 1)
    return losses["loss_class"] + losses["loss_box"], {**losses, "positives": mean}


def box_scale(config: EfficientDetConfig) -> float:
    """The factor of the box loss: its weight, times the factor from a sum of `smooth_l1` to a mean of Huber losses."""
    huber = (config.box_smooth_l1_beta or 1.0) / 4 if config.box_loss == "l1" else 1.0
    return config.box_loss_weight * huber
