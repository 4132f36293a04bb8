"""The table of all networks, which classify images and provide features without their classifier.

Shapes: B batch, H W input size, C channels, Q classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from elk_jax.backbones import efficientnet, resnet, swin


@dataclass(frozen=True)
class Network:
    """A kind of network as pure functions. An rng is given only in training, for stochastic depth and the like; without
    it nothing is dropped, and batch norms read running statistics.

    config: the dataclass of its settings, with `num_classes` (0: no classifier), `image_size`, `pixel_mean`,
    `pixel_std` and `dtype`.
    init: (config, rng) -> params, with `backbone` among their top-level names.
    features: (config, params, images [B, H, W, 1 or C] in [0, 1], rng=None, image_size=None) -> maps [B, h, w, C], the
    finest first. They read only `backbone`. image_size [B, 2]: height and width of the images within their canvas; the
    input is zero outside after normalisation.
    logits: (config, params, images, rng=None) -> [B, Q] in float32 or wider.
    frozen: config -> regular expressions of the parameters that are not trained.
    statistics: config -> those of the parameters that are running statistics (see `Model`).
    strides: config -> pixels per cell of every map of `features`.
    conventions: config -> field -> regular expression of the layers whose weights change their meaning, but not their
    shape, with the field.
    """

    config: type
    init: Callable[[Any, jax.Array], Any]
    features: Callable[..., tuple[jax.Array, ...]]
    logits: Callable[..., jax.Array]
    frozen: Callable[[Any], tuple[str, ...]]
    strides: Callable[[Any], tuple[int, ...]]
    conventions: Callable[[Any], dict[str, str]]
    statistics: Callable[[Any], tuple[str, ...]] = lambda config: ()


def _network(module: Any, config: type, **more: Any) -> Network:
    m = module
    return Network(config, m.init, m.features, m.logits, m.frozen, m.strides, m.conventions, **more)


NETWORKS = {
    "resnet": _network(resnet, resnet.ResNetConfig, statistics=resnet.statistics),
    "efficientnet": _network(efficientnet, efficientnet.EfficientNetConfig),
    "swin": _network(swin, swin.SwinConfig),
    "monai_swin": _network(swin, swin.MonaiSwinConfig),
}
"""By `name` of the settings. A new kind of network is a line here."""

CLASS_LAYERS = ("hidden", "classifier")
"""Top-level names of the parameters that depend on the classes; all others are the same for any classes."""


def kinds() -> dict[str, type]:
    """Name -> dataclass of the settings, as `fields.ByName` expects."""
    return {name: network.config for name, network in NETWORKS.items()}
