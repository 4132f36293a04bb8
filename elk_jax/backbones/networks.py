"""Networks that classify an image, and whose features are read without their classifier: the table of all.

Shapes: B batch, H W input size, C channels, Q classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from elk_jax.backbones import efficientnet, swin


@dataclass(frozen=True)
class Network:
    """A kind of network as pure functions. A rng is of stochastic depth and the like; without one nothing is dropped.

    config: the dataclass of its settings, with `num_classes` (0: no classifier) and `image_size`.
    init: (config, rng) -> params, with `backbone` as one of their top-level names.
    features: (config, params, images [B, H, W, 1 or C] in [0, 1], rng=None) -> maps [B, h, w, C], the finest first.
    logits: (config, params, images, rng=None) -> [B, Q] in float32 or wider.
    frozen: config -> regular expressions of the parameters that are not trained.
    """

    config: type
    init: Callable[[Any, jax.Array], Any]
    features: Callable[..., tuple[jax.Array, ...]]
    logits: Callable[..., jax.Array]
    frozen: Callable[[Any], tuple[str, ...]]


def _network(module: Any, config: type) -> Network:
    return Network(config, module.init, module.features, module.logits, module.frozen)


NETWORKS = {
    "efficientnet": _network(efficientnet, efficientnet.EfficientNetConfig),
    "swin": _network(swin, swin.SwinConfig),
}
"""By `name` of the settings. A new kind of network is a line here."""

CLASS_LAYERS = ("hidden", "classifier")
"""Top-level names of the parameters that depend on the classes; all others are the same for any classes."""


def kinds() -> dict[str, type]:
    """Name -> dataclass of the settings, as `fields.ByName` wants them."""
    return {name: network.config for name, network in NETWORKS.items()}
