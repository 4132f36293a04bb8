"""All detectors, by the name in their settings: `recipe.model.name`, or `model.name` in model.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from elk_jax import fields
from elk_jax.detection import efficientdet, faster_rcnn, fused, retinanet
from elk_jax.detection.detector import Detector
from elk_jax.errors import UserError


class Kind(NamedTuple):
    """The settings of a detector, a frozen dataclass (see `Detector.config`), and the function that builds it."""

    config: type
    build: Callable[[Any], Detector]


DETECTORS = {
    "faster_rcnn": Kind(faster_rcnn.FasterRCNNConfig, faster_rcnn.detector),
    "retinanet": Kind(retinanet.RetinaNetConfig, retinanet.detector),
    "efficientdet": Kind(efficientdet.EfficientDetConfig, efficientdet.detector),
    "fused": Kind(fused.FusedConfig, fused.detector),
}


DEFAULT = faster_rcnn.FasterRCNNConfig
"""The settings of a recipe without a detector name."""


def kinds() -> dict[str, type]:
    """Name -> dataclass of the settings, as `fields.ByName` expects."""
    return {name: kind.config for name, kind in DETECTORS.items()}


def build(config: Any) -> Detector:
    """The detector of these settings."""
    return DETECTORS[config.name].build(config)


EARLIER = {"model": {"name": DEFAULT.name}}
"""Entries missing from a model.json written before there were several detectors."""


_FLAT = (
    "depth",
    "width",
    "stem_width",
    "norm",
    "stride_in_1x1",
    "remat",
    "pixel_scale",
    "pixel_mean",
    "pixel_std",
    "dtype",
)
_SHARED = ("norm_groups", "norm_eps")


def in_present_form(settings: Any) -> Any:
    """The settings of a detector in the current format.

    Before there were other backbones, the settings of a Faster R-CNN contained those of its backbone, a ResNet
    (_SHARED: of both).
    """
    if not isinstance(settings, Mapping) or settings.get("name", DEFAULT.name) != DEFAULT.name:
        return settings
    moved = {name: value for name, value in settings.items() if name in _FLAT}
    if "backbone" in settings or not moved:
        return settings
    shared = {name: value for name, value in settings.items() if name in _SHARED}
    own = {name: value for name, value in settings.items() if name not in _FLAT}
    return {**own, "backbone": {**asdict(DEFAULT().backbone), **moved, **shared}}


def stored_config(description: Mapping[str, Any], file: Path, complete: bool = False) -> Any:
    """The settings of a detector in model.json. UserError as in `fields.build`.

    description: the content of `file`. complete: settings with a default must be present too.
    """
    where, settings = f"{file}: model", fields.as_dict(description.get("model"), f"{file}: model")
    present = in_present_form({**EARLIER["model"], **settings})
    return fields.build_named(kinds(), present, where, complete=complete)


def stored(description: Mapping[str, Any], file: Path, complete: bool = False) -> Detector:
    """The detector described by the model.json `file`. UserError for another kind of model, and as in
    `stored_config`."""
    check_stored(description.get("architecture", ""), file.parent)
    return build(stored_config(description, file, complete))


def check_stored(architecture: str, folder: Path) -> None:
    """UserError if a model folder, whose model.json has this architecture, does not contain a detector."""
    if architecture not in DETECTORS:
        raise UserError("not a detector", where=folder, todo="give the model folder of a detector: RUN/STAGE/model")
