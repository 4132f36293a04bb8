"""The interface of a detector: features of a pyramid, and the loss and detections computed from them.

Shapes: B batch of breasts, I images of each, of H x W pixels; L levels of h x w cells, C channels, M padded lesions, K
detections.

A batch is a mapping with the keys of `images.schema.Batch`: image [B, H, W, I or C] in [0, 1], image_size [B, 2]
(height, width), gt_boxes [B, M, 4], gt_labels, gt_valid, gt_ignore [B, M], and optionally valid [B] (images that
count). Features and predictions need only image and image_size.

Distillation reads the `features` or `outputs` of a teacher and a student; fusion changes the features before
`loss_from_features`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from elk_jax.errors import UserError

Params = Any
"""A nested dict of arrays."""
Batch = Mapping[str, jax.Array]
Pyramid = tuple[jax.Array, ...]
"""Levels [B, h, w, C], fine to coarse."""
Loss = tuple[jax.Array, dict[str, jax.Array]]
"""A scalar, and its terms: scalars by name."""
MapImages = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Maps a function of one image over the batch: jax.vmap, or jax.vmap inside shard_map, so that no top-k ever sees a
sharded batch."""

_FEATURES = 0xFEA7  # folded into the key of a step to derive the key of the features


TapName = Literal["pyramid", "backbone"]
"""Names of the maps of a detector that can be read."""


class Tap(NamedTuple):
    """Maps of a detector: (params, batch, rng=None) -> maps, fine to coarse, with these strides in pixels per cell.

    pyramid: (params, maps) -> the pyramid computed from them.
    """

    maps: Callable[..., Pyramid]
    strides: tuple[int, ...]
    pyramid: Callable[[Params, Pyramid], Pyramid]


class Anchored(NamedTuple):
    """Outputs for all A anchors of all levels: class logits, each against the background, and boxes in canvas px."""

    logits: jax.Array  # [B, A, Q]
    boxes: jax.Array  # [B, A, 4], not clipped to the image
    anchors: np.ndarray  # [A, 4]


@dataclass(frozen=True, eq=False)
class Detector:
    """One configured detector, as pure functions.

    config: a frozen dataclass. Every detector has the fields `name` (the key in `detectors.DETECTORS`), `num_classes`
    (Q, without background) and `score_floor` (detections score above it); training sets the last two. A detector with
    anchors has `anchor_sizes` (per level, in pixels of the resized image), which training may plan; others have no such
    field. The field `backbone` is a network of `backbones.networks`, so that any detector can start from its weights.

    init: rng -> params.
    features: (params, batch, rng=None) -> pyramid. rng: only in training, for networks that drop branches or read the
    statistics of the batch; None: drop none.
    outputs: (params, pyramid) -> outputs of the heads on a pyramid, in the detector's own form. Losses that share them
    also share one backward pass through the heads.
    loss_from_outputs: (params, pyramid, outputs, batch, rng, map_images) -> (scalar, terms: dict of scalars). Means are
    over the global batch; images with batch["valid"] False do not count.
    predict_from_features: (params, pyramid, batch, map_images) -> detections of every image, best first: boxes
    [B, K, 4] in pixels of the batch image; scores, labels, valid [B, K].

    class_layers: a regular expression (re.search on a/b/c names) of the layers whose shape depends on the classes.
    conventions: field -> regular expression of the layers whose weights change their meaning, but not their shape, when
    the field changes. Only fields that matter in this configuration.
    frozen: regular expressions of the parameters that are never trained, whatever the recipe sets.
    statistics: of the parameters that are running statistics of batches (`Model.statistics`).
    strides: pixels per cell of every level.
    stages: 1, or 2 for a detector that scores its own region proposals.
    anchored: (outputs, canvas (H, W)) -> the outputs for all anchors; for a two-stage detector those of its proposals,
    whose class is the objectness. None: there are none to compare.
    backbone: the maps from which the pyramid is computed; None: they cannot be read.
    images, tested_images: I in training and in testing, 2 for pairs (`SourceSpec.partner`).
    """

    config: Any
    init: Callable[[jax.Array], Params]
    features: Callable[..., Pyramid]
    outputs: Callable[[Params, Pyramid], Any]
    loss_from_outputs: Callable[[Params, Pyramid, Any, Batch, jax.Array, MapImages], Loss]
    predict_from_features: Callable[[Params, Pyramid, Batch, MapImages], dict[str, jax.Array]]
    class_layers: str
    conventions: Mapping[str, str]
    frozen: tuple[str, ...]
    strides: tuple[int, ...]
    stages: int = 1
    anchored: Callable[[Any, tuple[int, int]], Anchored] | None = None
    backbone: Tap | None = None
    statistics: tuple[str, ...] = ()
    images: int = 1
    tested_images: int = 1

    @property
    def name(self) -> str:
        return self.config.name

    def loss(self, params: Params, batch: Batch, rng: jax.Array, map_images: MapImages = jax.vmap) -> Loss:
        """The loss of a batch and its terms."""
        pyramid = self.features(params, batch, jax.random.fold_in(rng, _FEATURES))
        return self.loss_from_features(params, pyramid, batch, rng, map_images)

    def loss_from_features(
        self, params: Params, pyramid: Pyramid, batch: Batch, rng: jax.Array, map_images: MapImages = jax.vmap
    ) -> Loss:
        """`loss_from_outputs`, with the outputs for this pyramid."""
        return self.loss_from_outputs(params, pyramid, self.outputs(params, pyramid), batch, rng, map_images)

    def predict(self, params: Params, batch: Batch, map_images: MapImages = jax.vmap) -> dict[str, jax.Array]:
        """The detections of a batch. No gradient flows through the selection of boxes."""
        return self.predict_from_features(params, self.features(params, batch), batch, map_images)

    def tap(self, name: TapName) -> Tap:
        """The maps with this name. UserError if they cannot be read."""
        if name == "pyramid":
            return Tap(self.features, self.strides, lambda params, maps: maps)
        if self.backbone is None:
            raise UserError(f"the maps of {self.name}'s backbone cannot be read", where="tap", todo="set tap=pyramid")
        return self.backbone

    def settled_by(self, taken: Iterable[str]) -> list[str]:
        """The conventions that training must not change if it starts with weights of the names `taken`."""
        names = list(taken)
        return [field for field, layers in self.conventions.items() if any(re.search(layers, n) for n in names)]


def image_of(batch: Batch, number: int) -> dict[str, jax.Array]:
    """The batch with only the first (0) or the second (1) image of its pairs."""
    return {**batch, "image": batch["image"][..., number : number + 1]}


def has_anchors(config: Any) -> bool:
    """Whether a detector of this configuration has anchors, whose sizes can be planned."""
    return hasattr(config, "anchor_sizes")
