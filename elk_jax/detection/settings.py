"""Common parts of the settings of all detectors: types of their fields, and checks of their consistency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from elk_jax.backbones.norms import NORMS
from elk_jax.fields import NOT_EMPTY, NOT_NEGATIVE, POSITIVE, SHARE, Between, OneOf, impossible

NormName = Annotated[str, OneOf(tuple(NORMS))]
FromOne = Annotated[int, Between(1, 1 << 16)]
NotNegative = Annotated[float, NOT_NEGATIVE]
Positive = Annotated[float, POSITIVE]
Share = Annotated[float, SHARE]
Positives = Annotated[tuple[Positive, ...], NOT_EMPTY]


def check_anchors(config: Any, levels: int) -> None:
    """UserError unless `anchor_sizes` has the same number for every level."""
    per_level = {len(sizes) for sizes in config.anchor_sizes}
    if len(config.anchor_sizes) != levels or len(per_level) != 1:
        todo = f"give {levels} tuples of equal length, one per level" if levels > 1 else "give one tuple"
        raise impossible(config, "anchor_sizes", todo)


def norm_conventions(layers: str, *names: str) -> dict[str, str]:
    """The conventions (see `Detector`) that come with norms of these names. layers: the layers of the norms."""
    used = set(names) - {"none"}
    return ({"norm_groups": layers} if "gn" in used else {}) | ({"norm_eps": layers} if used else {})


def check_groups(config: Any, grouped: Mapping[str, bool]) -> None:
    """UserError unless the widths that group norms split are divisible by `norm_groups`. grouped: field -> whether they
    split it."""
    for width, is_grouped in grouped.items():
        if is_grouped and getattr(config, width) % config.norm_groups:
            raise impossible(config, "norm_groups", f"give a divisor of {width} = {getattr(config, width)}")
