"""Which slices of a volume a source has, and what is marked in them.

A volume has N lesions, each annotated in one slice, its own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from elk_jax.images.schema import ImageInfo

IGNORED_SHARE = 0.25
"""Share of a volume's slices within which a lesion may be visible around its own slice: not background."""

OF_BOXES = ("lesion_slices", "lesion_boxes")
"""Fields of a slice with an entry for each of its boxes: the lesion's own slice, and the box as annotated if it
differs."""


def chosen_slices(count: int, at: np.ndarray, which: str) -> list[int]:
    """Positions of the slices selected by `SourceSpec.slices`; for a volume without lesions, the middle slice.

    count: slices of the volume. at: [N] own slices.
    """
    centres = np.unique(at) if len(at) else np.array([count // 2])
    if which == "all":
        return list(range(count))
    return [k for k in range(count) if np.abs(centres - k).min() <= _reach(which)]


def with_lesions(info: ImageInfo, boxes: np.ndarray, at: np.ndarray, which: str) -> tuple[ImageInfo, np.ndarray]:
    """A slice with the boxes of the lesions around it, and a mask [N] bool of those lesions.

    Lesions within the reach of `which` (`SourceSpec.slices`) are lesions of this slice; farther away, their boxes are
    ignored. info: its meta has `volume_slices`. boxes: [N, 4]. at: [N] own slices.
    """
    reach, away = _reach(which), np.abs(at - info.slice)
    chosen = away <= max(reach, IGNORED_SHARE * info.meta["volume_slices"])
    marked = replace(
        info,
        boxes=boxes[chosen],
        labels=np.zeros(int(chosen.sum()), np.int32),
        ignore=away[chosen] > reach,
        meta=info.meta | {"lesion_slices": at[chosen].tolist()},
    )
    return marked, chosen


def _reach(which: str) -> int:
    """Number of slices on each side of a lesion's own in which `SourceSpec.slices` marks it."""
    return int(which.partition(":")[2] or 0)
