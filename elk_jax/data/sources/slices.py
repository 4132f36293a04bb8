"""Which slices of a volume a source has, and what is marked in them.

N lesions of a volume, each marked in one slice, its own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from elk_jax.images.schema import ImageInfo

IGNORED_SHARE = 0.25
"""Of a volume's slices, within which a lesion may be seen beside its own slice: no background there."""

OF_BOXES = ("lesion_slices", "lesion_boxes")
"""Fields of a slice that are lists with an entry for each of its boxes: the own slice of the lesion, and the box as it
was marked, where it is another."""


def chosen_slices(count: int, at: np.ndarray, which: str) -> list[int]:
    """Positions of slices by `SourceSpec.slices`; a volume without lesions has the middle one instead of theirs.

    count: slices of the volume. at: [N] own slices.
    """
    centres = np.unique(at) if len(at) else np.array([count // 2])
    if which == "all":
        return list(range(count))
    return [k for k in range(count) if np.abs(centres - k).min() <= _reach(which)]


def with_lesions(info: ImageInfo, boxes: np.ndarray, at: np.ndarray, which: str) -> tuple[ImageInfo, np.ndarray]:
    """A slice with the boxes of the lesions around it, and which they are, [N] bool.

    Lesions as far away as `which` of `SourceSpec.slices` says are lesions of this slice; beyond that their boxes are to
    be ignored. info: its meta has `volume_slices`. boxes: [N, 4]. at: [N] own slices.
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
    """Slices around a lesion's own that `SourceSpec.slices` marks with it."""
    return int(which.partition(":")[2] or 0)
