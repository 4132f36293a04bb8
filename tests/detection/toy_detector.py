"""A second detector behind the interface, whole in one file: three convolutions and a head without anchors.

Every cell of one level predicts its class and the distances from its centre to the sides of a box (Tian et al. 2019).
Use: `monkeypatch.setitem(detectors.DETECTORS, "toy", toy_detector.KIND)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from elk_jax.backbones.initial import draw_params
from elk_jax.detection.boxes import area, clip
from elk_jax.detection.detector import Batch, Detector, Loss, MapImages, Params, Pyramid
from elk_jax.detection.detectors import Kind
from elk_jax.detection.losses import giou_loss, sigmoid_focal
from elk_jax.detection.nms import batched_nms
from elk_jax.fields import ABOVE_ZERO, SHARE, AtLeast, check
from elk_jax.precision import at_least_float32

STRIDE = 8
Outputs = tuple[jax.Array, jax.Array]


@dataclass(frozen=True)
class ToyConfig:
    """One level at 8 pixels per cell; grey images alone."""

    name: Literal["toy"] = "toy"
    num_classes: Annotated[int, AtLeast(1)] = 1
    score_floor: Annotated[float, SHARE] = 0.05
    width: Annotated[int, AtLeast(1)] = 16
    dropped: Annotated[float, SHARE] = 0.0
    """Share of the images of a training batch that lack the last convolution."""
    pixel_std: Annotated[float, ABOVE_ZERO] = 0.25
    detections: Annotated[int, AtLeast(1)] = 10

    def __post_init__(self) -> None:
        check(self)


class Toy(nn.Module):
    config: ToyConfig

    def setup(self) -> None:
        self.backbone = [nn.Conv(self.config.width, (3, 3), (2, 2)) for _ in range(3)]
        self.context = nn.Conv(self.config.width, (5, 5))
        self.classes = nn.Conv(self.config.num_classes, (1, 1), bias_init=nn.initializers.constant(-3.0))
        self.sides = nn.Conv(4, (1, 1))

    def __call__(self, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.head(self.features(image, jnp.ones(len(image))))

    def features(self, image: jax.Array, kept: jax.Array) -> jax.Array:
        x = image
        for layer in self.backbone:
            x = nn.relu(layer(x))
        return x + kept[:, None, None, None] * nn.relu(self.context(x))

    def head(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits [B, h, w, Q] and distances to left, top, right, bottom [B, h, w, 4] in pixels."""
        return self.classes(features), STRIDE * jnp.exp(jnp.clip(self.sides(features), -4, 4))


def detector(config: ToyConfig) -> Detector:
    model = Toy(config)
    return Detector(
        config=config,
        init=lambda rng: draw_params(model, rng, jnp.zeros((1, 16, 16, 1))),
        features=partial(features, model),
        outputs=partial(outputs, model),
        loss_from_outputs=partial(loss_from_outputs, model),
        predict_from_features=partial(predict_from_features, model),
        class_layers=r"^classes/",
        conventions={"pixel_std": r"^backbone_0/"},
        frozen=(),
        strides=(STRIDE,),
    )


KIND = Kind(ToyConfig, detector)


def features(model: Toy, params: Params, batch: Batch, rng: jax.Array | None = None) -> Pyramid:
    image = (at_least_float32(batch["image"]) - 0.5) / model.config.pixel_std
    kept = jnp.ones(len(image))
    if rng is not None:
        kept = 1.0 * jax.random.bernoulli(rng, 1 - model.config.dropped, kept.shape)
    return (model.apply({"params": params}, image, kept, method="features"),)


def loss_from_outputs(
    model: Toy, params: Params, pyramid: Pyramid, found: Outputs, batch: Batch, rng: jax.Array, map_images: MapImages
) -> Loss:
    """Every cell whose centre lies in a lesion learns the smallest such lesion; all others learn background."""
    logits, boxes = found
    counts = batch.get("valid", jnp.ones(len(logits), bool))[:, None]

    def of_image(logits, boxes, gt_boxes, gt_labels, gt_valid, gt_ignore):
        x, y = (centre[:, None] for centre in _centres(*pyramid[0].shape[1:3]))
        inside = (x > gt_boxes[:, 0]) & (x < gt_boxes[:, 2]) & (y > gt_boxes[:, 1]) & (y < gt_boxes[:, 3])
        sizes = jnp.where(inside & gt_valid & ~gt_ignore, area(gt_boxes), jnp.inf)
        lesion, positive = sizes.argmin(1), jnp.isfinite(sizes).any(1)
        classes = jax.nn.one_hot(gt_labels[lesion], model.config.num_classes) * positive[:, None]
        overlap = giou_loss(boxes, jnp.where(positive[:, None], gt_boxes[lesion], boxes))
        return sigmoid_focal(logits, classes).sum(1), jnp.where(positive, overlap, 0), positive

    truth = (batch[key] for key in ("gt_boxes", "gt_labels", "gt_valid", "gt_ignore"))
    classes, box, positive = map_images(of_image)(logits, boxes, *truth)
    positives = jnp.maximum((positive & counts).sum(), 1)
    terms = {
        "loss_class": jnp.where(counts, classes, 0).sum() / positives,
        "loss_box": jnp.where(counts, box, 0).sum() / positives,
    }
    return terms["loss_class"] + terms["loss_box"], terms


def predict_from_features(
    model: Toy, params: Params, pyramid: Pyramid, batch: Batch, map_images: MapImages = jax.vmap
) -> dict[str, jax.Array]:
    def of_image(logits, boxes, image_size):
        scores, labels = jax.nn.sigmoid(logits).max(-1), logits.argmax(-1)
        boxes = clip(boxes, image_size[0], image_size[1])
        usable = (scores > model.config.score_floor) & (area(boxes) > 0)
        index, valid = batched_nms(boxes, scores, labels, 0.5, model.config.detections, usable)
        found = {"boxes": boxes[index], "scores": scores[index], "labels": labels[index].astype(jnp.int32)}
        kept = {name: jnp.where(valid.reshape(-1, *(1,) * (x.ndim - 1)), x, 0) for name, x in found.items()}
        return {**kept, "valid": valid}

    return map_images(of_image)(*outputs(model, params, pyramid), batch["image_size"])


def outputs(model: Toy, params: Params, pyramid: Pyramid) -> Outputs:
    """Logits [B, N, Q] and boxes [B, N, 4] of the N cells."""
    (level,) = pyramid
    logits, sides = model.apply({"params": params}, level, method="head")
    left, top, right, bottom = (sides.reshape(len(sides), -1, 4)[..., i] for i in range(4))
    x, y = _centres(*level.shape[1:3])
    return logits.reshape(len(logits), -1, logits.shape[-1]), jnp.stack([x - left, y - top, x + right, y + bottom], -1)


def _centres(height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """x and y of the centres of all cells [N], in pixels."""
    y, x = jnp.mgrid[:height, :width]
    return (x.reshape(-1) + 0.5) * STRIDE, (y.reshape(-1) + 0.5) * STRIDE
