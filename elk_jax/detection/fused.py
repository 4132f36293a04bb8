"""An EfficientDet with two trunks whose maps are joined (Sharma et al. 2024): parameters and features.

Shape legend: B batch, H W size of the padded images, I images of a breast, L maps of a trunk, h w cells and F channels
of one. The steps after the features are those of an EfficientDet (`efficientdet.py`, `dense.py`).

Parameters with the tap 'pyramid': own/{backbone, fpn} and other/{backbone, fpn}, the trunks; join/{level}/{kernel,
bias}; class_head, box_head. With the tap 'backbone' the trunks are backbones, and there is one fpn beside the heads.
Each part has the names of an EfficientDet's, so that a trained EfficientDet can become a trunk (`from_members`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.backbones.conv import matrix_product
from elk_jax.backbones.initial import draw_params
from elk_jax.detection import backbone, dense, efficientdet
from elk_jax.detection.detector import Batch, Detector, Params, Pyramid, image_of
from elk_jax.detection.efficientdet import EfficientDet
from elk_jax.detection.efficientdet_config import EfficientDetConfig
from elk_jax.detection.fused_config import FusedConfig
from elk_jax.errors import UserError

TRUNKS = ("own", "other")
"""The first trunk, which reads the image, and the second."""


def detector(config: FusedConfig) -> Detector:
    """A fused detector as a `Detector`."""
    model = EfficientDet(config)
    return Detector(
        config=config,
        init=partial(init, config),
        features=partial(features, config),
        outputs=partial(dense.outputs, model),
        loss_from_outputs=lambda params, pyramid, found, batch, rng, map_images: efficientdet.loss(
            config, found, batch, map_images
        ),
        predict_from_features=partial(dense.predict_from_features, model),
        class_layers=efficientdet.CLASS_LAYERS,
        conventions={field: _of_trunks(layers) for field, layers in efficientdet.conventions(config).items()},
        frozen=tuple(map(_of_trunks, efficientdet.frozen(config))),
        strides=config.strides,
        statistics=tuple(map(_of_trunks, backbone.statistics(config.backbone))),
        anchored=partial(dense.anchored, config),
        images=1 if config.second == "own" else 2,
        tested_images=1 if config.second == "own" or config.drop else 2,
    )


def member_config(config: FusedConfig) -> EfficientDetConfig:
    """The settings of the EfficientDets from which the trunks are taken."""
    shared = (field.name for field in fields(EfficientDetConfig) if field.name != "name")
    return EfficientDetConfig(**{name: getattr(config, name) for name in shared})


def init(config: FusedConfig, rng: jax.Array) -> Params:
    """Fresh parameters: those of an EfficientDet, and the trunk of a second one."""
    draws = jax.random.split(rng, 3)
    member = efficientdet.detector(member_config(config))
    own, other = (member.init(key) for key in draws[:2])
    joined = from_members(config, own, other)
    if config.join == "conv":
        return joined
    wider = [jax.ShapeDtypeStruct((*one.shape[:-1], 2 * one.shape[-1]), one.dtype) for one in _maps(config, own)]
    zeros = tuple(jnp.zeros(one.shape, one.dtype) for one in wider)
    method = "outputs" if config.tap == "pyramid" else "__call__"
    return {**joined, **draw_params(EfficientDet(config), draws[2], zeros, method=method)}


def from_members(config: FusedConfig, own: Params, other: Params) -> Params:
    """The parameters with the trunks of two trained EfficientDets (`member_config`), and the later parts of the first.

    With 'concat' the later parts have other shapes, and are left out.
    """
    names = ("backbone", "fpn") if config.tap == "pyramid" else ("backbone",)
    trunks = {trunk: {name: of[name] for name in names} for trunk, of in zip(TRUNKS, (own, other))}
    if config.join == "concat":
        return trunks
    join = {f"level{number}": init_join(one.shape[-1]) for number, one in enumerate(_maps(config, own))}
    return {**trunks, "join": join, **{name: part for name, part in own.items() if name not in names}}


def init_join(channels: int) -> dict[str, jax.Array]:
    """{kernel [2F, F], bias [F]}: initially the first map passes unchanged, and the second has no effect."""
    return {"kernel": jnp.eye(2 * channels, channels), "bias": jnp.zeros(channels)}


def features(config: FusedConfig, params: Params, batch: Batch, rng: jax.Array | None = None) -> Pyramid:
    """The levels [B, h, w, F or 2F] of a batch of images [B, H, W, I].

    I is 1, or 2 if the second trunk reads partners. rng: for networks that drop branches, and for dropping partners;
    None drops none. UserError for single images if partners are needed.
    """
    for_own, for_other, for_drop = (None, None, None) if rng is None else jax.random.split(rng, 3)
    own = trunk(config, params["own"], image_of(batch, 0), for_own)
    if config.second == "own":
        other = trunk(config, params["other"], image_of(batch, 0), for_other)
    elif batch["image"].shape[-1] == 2:
        other = trunk(config, params["other"], image_of(batch, 1), for_other)
        if config.drop and for_drop is not None:
            kept = jax.random.bernoulli(for_drop, 1 - config.drop, (len(batch["image"]), 1, 1, 1))
            other = tuple(jnp.where(kept, one, 0) for one in other)
    elif config.drop:
        other = tuple(jnp.zeros_like(one) for one in own)
    else:
        todo = "give pairs: set `partner` of the data source"
        raise UserError("the detector needs two images of a breast, but the data has one", todo=todo)
    maps = joined(params.get("join"), own, other)
    return maps if config.tap == "pyramid" else dense.levels(EfficientDet(config), params, maps)


def trunk(config: FusedConfig, params: Params, batch: Batch, rng: jax.Array | None = None) -> Pyramid:
    """The maps [B, h, w, F] of one trunk, fine to coarse."""
    maps = backbone.stages(config.backbone, params, batch, rng, strides=config.stages)
    return dense.levels(EfficientDet(config), params, maps) if config.tap == "pyramid" else maps


def joined(params: Mapping[str, Any] | None, own: Sequence[jax.Array], other: Sequence[jax.Array]) -> Pyramid:
    """Both maps of every level joined: concatenated, and projected if there are parameters for it."""
    both = tuple(jnp.concatenate(pair, axis=-1) for pair in zip(own, other, strict=True))
    if params is None:
        return both

    def project(number: int, x: jax.Array) -> jax.Array:
        layer = {name: jnp.asarray(value, x.dtype) for name, value in params[f"level{number}"].items()}
        return matrix_product(x, layer["kernel"]) + layer["bias"]

    return tuple(project(number, x) for number, x in enumerate(both))


def shares_of_other(params: Params) -> dict[str, float]:
    """Map -> the share of the second trunk in the weights of the joining layer, from 0 to 1, by Frobenius norms.

    {} for a detector without such a layer.
    """

    def share(kernel: np.ndarray) -> float:
        own, other = (float(np.linalg.norm(half)) for half in np.split(np.asarray(kernel, np.float64), 2))
        return other / (own + other)

    return {name: share(layer["kernel"]) for name, layer in params.get("join", {}).items()}


_traced_once = jax.jit(trunk, static_argnames="config")


def _maps(config: FusedConfig, member: Params) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of the maps of a trunk for a small image."""
    batch = {"image": jnp.zeros((1, 64, 64, 1)), "image_size": jnp.full((1, 2), 64.0)}
    return _traced_once.eval_shape(config, member, batch)


def _of_trunks(pattern: str) -> str:
    """An expression for layers of an EfficientDet, extended to those of both trunks."""
    return f"^(?:(?:{'|'.join(TRUNKS)})/)?{pattern[1:]}" if pattern.startswith("^") else pattern
