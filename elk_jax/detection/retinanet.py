"""RetinaNet (Lin et al. 2017): parameters, losses, predictions.

Shape legend: B batch, H W size of the padded images, L levels P3..P7 (or only C5), A_l anchors of a level and A of
all levels, M padded ground truth, K detections, Q classes, Q' class outputs: Q, or Q + 1 with a background.

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

from elk_jax.backbones.conv import ConvNorm
from elk_jax.backbones.fpn import FPN
from elk_jax.backbones.norms import Norm, frozen_patterns, norm_from_name
from elk_jax.detection import backbone, dense
from elk_jax.detection.dense import Outputs
from elk_jax.detection.detector import Batch, Detector, Loss, MapImages
from elk_jax.detection.retinanet_config import RetinaNetConfig, plain, torchvision, torchvision_v2
from elk_jax.detection.settings import norm_conventions
from elk_jax.precision import at_least_float32

__all__ = ["RetinaNet", "RetinaNetConfig", "plain", "torchvision", "torchvision_v2"]

CLASS_LAYERS = r"^class_head/logits/"


class Head(nn.Module):
    """Levels [B, H_l, W_l, C] -> per level [B, A_l, size]; all levels share one head.

    Parameters: conv1..conv{convs}, and `output`, the name of the last convolution.
    """

    cell_anchors: int
    size: int
    output: str
    convs: int
    width: int
    norm: Norm | None = None
    bias: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, levels: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        small, bias = nn.initializers.normal(0.01), nn.initializers.constant(self.bias)
        width = self.width or levels[0].shape[-1]
        trunk = [
            ConvNorm(width, norm=self.norm, kernel_init=small, dtype=self.dtype, name=f"conv{i + 1}")
            for i in range(self.convs)
        ]
        channels = self.cell_anchors * self.size
        last = ConvNorm(channels, kernel_init=small, bias_init=bias, dtype=self.dtype, name=self.output)
        found = []
        for x in levels:
            for layer in trunk:
                x = nn.relu(layer(x))
            found.append(at_least_float32(last(x)).reshape(x.shape[0], -1, self.size))
        return tuple(found)


class RetinaNet(nn.Module):
    """The parts after the backbone: fpn, class_head and box_head, top-level names of the parameters beside
    `backbone`."""

    config: RetinaNetConfig

    def setup(self) -> None:
        c = self.config
        dtype = jnp.dtype(c.backbone.dtype)
        norm = partial(norm_from_name, groups=c.norm_groups, eps=c.norm_eps)
        if c.fpn:
            self.fpn = FPN(c.fpn_channels, norm(c.fpn_norm), first_level=3, top=c.fpn_top, dtype=dtype)
        head = partial(
            Head,
            len(c.anchor_sizes[0]) * len(c.anchor_ratios),
            convs=c.head_convs,
            width=c.head_width,
            norm=norm(c.head_norm),
            dtype=dtype,
        )
        outputs = c.num_classes + (c.background == "first")
        self.class_head = head(size=outputs, output="logits", bias=-math.log((1 - c.prior) / c.prior))
        self.box_head = head(size=4, output="deltas")

    def __call__(self, stages: Sequence[jax.Array]) -> Outputs:
        """C3..C5, or only C5, -> outputs: uses every parameter, for `init`."""
        return self.outputs(self.levels(stages))

    def levels(self, stages: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """C3..C5 -> P3..P7; a single C5 is passed unchanged."""
        return self.fpn(stages) if self.config.fpn else tuple(stages)

    def outputs(self, levels: Sequence[jax.Array]) -> Outputs:
        """Levels -> class logits and box deltas for all anchors."""
        return Outputs(self.class_head(levels), self.box_head(levels))


def detector(config: RetinaNetConfig) -> Detector:
    """RetinaNet as a `Detector`."""
    return dense.detector(RetinaNet(config), loss, CLASS_LAYERS, conventions(config), frozen(config))


def frozen(config: RetinaNetConfig) -> tuple[str, ...]:
    """Regular expressions of parameters that are constants with the chosen norms and never trained."""
    fpn, heads = frozen_patterns(config.fpn_norm, ("fpn/",)), frozen_patterns(config.head_norm, ("(class|box)_head/",))
    return (*backbone.frozen(config.backbone), *fpn, *heads)


def conventions(config: RetinaNetConfig) -> dict[str, str]:
    """Setting -> the layers whose weights change their meaning with it (see `Detector`).

    Without the anchor sizes, which every training run may plan for its own lesions.
    """
    outputs = r"^(class_head/logits|box_head/deltas)/"
    return {
        **backbone.conventions(config.backbone),
        **({"fpn_top": r"^fpn/p6/"} if config.fpn else {}),
        **norm_conventions(r"^(fpn|class_head|box_head)/.*/norm/", config.fpn_norm, config.head_norm),
        "anchor_ratios": outputs,
        "anchor_offset": outputs,
        "anchor_rounded": outputs,
        "background": r"^class_head/logits/",
        "box_weights": r"^box_head/deltas/",
    }


def loss(config: RetinaNetConfig, found: Outputs, batch: Batch, map_images: MapImages = jax.vmap) -> Loss:
    """Sum of the two losses, and metrics: each loss, and the mean number of positive anchors of an image.

    The losses of an image are divided by its number of positive anchors, at least 1, and then averaged over the images
    (as in torchvision). Images without a lesion count as background. Images with batch["valid"] False do not count.
    """
    counts, sums = dense.losses(config, found, batch, map_images)
    images, positives = jnp.maximum(counts.sum(), 1), jnp.maximum(sums.positives, 1)

    def mean(per_image: jax.Array) -> jax.Array:
        return jnp.where(counts, per_image, 0).sum() / images

    losses = {"loss_class": mean(sums.classes / positives), "loss_box": mean(sums.box / positives)}
    return losses["loss_class"] + losses["loss_box"], {**losses, "positives": mean(sums.positives)}
