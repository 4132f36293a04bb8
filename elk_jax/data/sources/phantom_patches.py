"""Patches around the lesions of the embedded phantom, in two classes: `phantom_patches:KEY=VALUE,KEY=VALUE`.

The class follows from the shape of the lesion, as radiologists read it: round, lobulated and rim-enhancing lesions are
`benign`, irregular, spiculated and clustered ones `malignant`. Options are those of `phantom:`, with `size` for the
breast, and those of `PatchOptions`. Patches [S, S, 1] float32 in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np

from elk_jax.data.patches import Cutting, resized, window_around
from elk_jax.data.sources import phantom, phantom_sets
from elk_jax.data.sources.source import ImageSource
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.fields import ABOVE_ZERO, SHARE, AtLeast
from elk_jax.images.schema import ImageInfo
from elk_jax.images.windows import cut
from elk_jax.threads import ProgressBar, no_bar

CLASSES = ("benign", "malignant")
KIND = "phantom_patches"


@dataclass(frozen=True)
class PatchOptions(phantom.PhantomOptions):
    """side: of a patch, px. margin, least: as in `Cutting`. row, column: centre of the lesion, as shares of the
    patch."""

    side: Annotated[int, AtLeast(8)] = 64
    margin: Annotated[float, ABOVE_ZERO] = 1.5
    least: Annotated[int, AtLeast(2)] = 24
    row: Annotated[float, SHARE] = 0.5
    column: Annotated[float, SHARE] = 0.5


def open_phantom_patches(spec: SourceSpec, split: str = "", progress: ProgressBar = no_bar) -> ImageSource:
    """The patches of one split ("": all); they are drawn now."""
    options = phantom_sets.parse(spec.place, PatchOptions, KIND, phantom.MODALITIES, phantom.WITHOUT)
    cutting, centre = Cutting(options.margin, options.least), (options.row, options.column)
    infos, read = phantom.draw(options, split, spec.spec, progress)
    found, patches = list[ImageInfo](), list[np.ndarray]()
    for position, info in enumerate(infos):
        image = read(position) if len(info.boxes) else np.zeros((0, 0, 1), np.float32)
        for number, (box, kind) in enumerate(zip(info.boxes, info.meta["lesion_kinds"])):
            window = window_around(box, info.height, info.width, cutting, centre)
            patches.append(np.round(resized(cut(image, window), options.side) * 255).astype(np.uint8))
            found.append(_info(info, number, kind, options.side))
    return ImageSource(f"{KIND}:{spec.place}", CLASSES, tuple(found), partial(_read, tuple(patches)))


def _info(info: ImageInfo, number: int, kind: str, side: int) -> ImageInfo:
    name = f"{info.image_id}_{number}"
    return ImageInfo(
        image_id=name,
        patient_id=info.patient_id,
        width=side,
        height=side,
        boxes=np.array([[0, 0, side, side]], np.float32),
        labels=np.array([int(kind in phantom_sets.MALIGNANT)], np.int32),
        ignore=np.zeros(1, bool),
        split=info.split,
        file_name=f"{name}.png",
        meta={key: value for key, value in info.meta.items() if key != "lesion_kinds"} | {"lesion_kind": kind},
    )


def _read(patches: tuple[np.ndarray, ...], position: int) -> np.ndarray:
    return (patches[position].astype(np.float32) * np.float32(1 / 255)).clip(0, 1)
