"""All detectors, by the name in their settings: `recipe.model.name`, and `model.name` in model.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from elk_jax import fields
from elk_jax.detection import faster_rcnn
from elk_jax.detection.detector import Detector


class Kind(NamedTuple):
    """The settings of a detector, a frozen dataclass (see `Detector.config`), and what builds it from them."""

    config: type
    build: Callable[[Any], Detector]


DETECTORS = {
    "faster_rcnn": Kind(faster_rcnn.FasterRCNNConfig, faster_rcnn.detector),
}


DEFAULT = faster_rcnn.FasterRCNNConfig
"""The settings of a recipe that names no detector."""


def kinds() -> dict[str, type]:
    """Name -> dataclass of the settings, as `fields.ByName` wants them."""
    return {name: kind.config for name, kind in DETECTORS.items()}


def config_from(settings: Mapping[str, Any], where: str) -> Any:
    """The settings of the detector that `settings` name. UserError for an unknown name, and as `fields.build`.

    where: the section, such as `config.detector.model`.
    """
    return fields.build_named(kinds(), settings, where)


def build(config: Any) -> Detector:
    """The detector of these settings."""
    return DETECTORS[config.name].build(config)
