"""Patches around the lesions of the embedded phantom, in two classes: `phantom_patches:KEY=VALUE,KEY=VALUE`.

The classes follow from the form of the lesion, as radiologists read it: round, lobulated and rim-enhancing ones are
`benign`, irregular, spiculated and clustered ones `malignant`. Options are those of `phantom:`; `size` is the breast's.
Patches [S, S, 1] float32 in [0, 1].
"""

from __future__ import annotations

from functools import partial

import numpy as np

from elk_jax.data.patches import Cutting, resized, window_around
from elk_jax.data.sources import phantom, phantom_sets
from elk_jax.data.sources.source import ImageSource
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.images.schema import ImageInfo
from elk_jax.images.windows import cut
from elk_jax.threads import ProgressBar, no_bar

CLASSES = ("benign", "malignant")
SIDE = 64
CUTTING = Cutting(margin=1.5, least=24)


def open_phantom_patches(spec: SourceSpec, split: str = "", progress: ProgressBar = no_bar) -> ImageSource:
    """The patches of one split, "" for all; they are drawn now."""
    infos, read = phantom.read_phantom(spec.place, split, progress)
    found, patches = list[ImageInfo](), list[np.ndarray]()
    for position, info in enumerate(infos):
        image = read(position) if len(info.boxes) else np.zeros((0, 0, 1), np.float32)
        for number, (box, kind) in enumerate(zip(info.boxes, info.meta["lesion_kinds"])):
            window = window_around(box, info.height, info.width, CUTTING)
            patches.append(np.round(resized(cut(image, window), SIDE) * 255).astype(np.uint8))
            found.append(_info(info, number, kind))
    return ImageSource(f"phantom_patches:{spec.place}", CLASSES, tuple(found), partial(_read, tuple(patches)))


def _info(info: ImageInfo, number: int, kind: str) -> ImageInfo:
    name = f"{info.image_id}_{number}"
    return ImageInfo(
        image_id=name,
        patient_id=info.patient_id,
        width=SIDE,
        height=SIDE,
        boxes=np.array([[0, 0, SIDE, SIDE]], np.float32),
        labels=np.array([int(kind in phantom_sets.MALIGNANT)], np.int32),
        ignore=np.zeros(1, bool),
        split=info.split,
        file_name=f"{name}.png",
        meta={key: value for key, value in info.meta.items() if key != "lesion_kinds"} | {"lesion_kind": kind},
    )


def _read(patches: tuple[np.ndarray, ...], position: int) -> np.ndarray:
    return (patches[position].astype(np.float32) * np.float32(1 / 255)).clip(0, 1)
