"""Sets of images to compare, read from data sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from elk_jax import host_memory
from elk_jax.data.sources import duplicates
from elk_jax.data.sources.decode import decode_image
from elk_jax.data.sources.duplicates import pixel_hash
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.patients import halving_doubt
from elk_jax.data.sources.source import ImageSource, subset
from elk_jax.data.sources.spec import OnError, SourceSpec
from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo
from elk_jax.images.windows import box_mask
from elk_jax.randomness import Purpose, random_order
from elk_jax.threads import ProgressBar, map_in_threads, no_bar

MOST_MEMORY = 0.25
"""Share of the machine's memory for the images of a set: both sets are in memory, and one a second time in other
units."""


Regions = Literal["images", "boxes", "masks"]
"""Regions of the radiomics: whole images, the boxes of lesions, or their masks."""


@dataclass(frozen=True)
class ImageSet:
    """N images [H, W] float32 in [0, 1] of any sizes, with their metadata. classes: "" without a class.

    regions: bool [H, W], where radiomics are computed; None: everywhere. () if all images are used whole.
    doubt: a reservation about halves by patient (`patients.halving_doubt`), or "".
    """

    name: str
    images: tuple[np.ndarray, ...]
    titles: tuple[str, ...]
    patients: tuple[str, ...]
    classes: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    regions: tuple[np.ndarray | None, ...] = ()
    doubt: str = ""

    def __len__(self) -> int:
        return len(self.images)

    def sizes(self) -> list[tuple[int, int]]:
        """Different (width, height) of the images, ascending."""
        return sorted({image.shape[::-1] for image in self.images})  # type: ignore[misc]


def read(
    spec: SourceSpec,
    split: str,
    *,
    most: int = 0,
    seed: int = 0,
    regions: Regions = "images",
    on_error: OnError = "stop",
    progress: ProgressBar = no_bar,
) -> ImageSet:
    """The images of a split of a source ("": all); if there are more than `most`, that many drawn by the seed (0: all).

    UserError as in `open_source`, for pairs, for missing masks, and for images that would take more than MOST_MEMORY.
    """
    masks = _mask_folder(spec) if regions == "masks" else None
    source = open_source(spec, split, on_error=on_error, cache_bytes=0)
    if source.images != 1:
        raise UserError("pairs of images", where=source.name, todo="leave `partner` out")
    if most and len(source) > most:
        source = subset(source, sorted(random_order(len(source), seed, Purpose.PATIENTS)[:most].tolist()))
    if masks is not None and not any((masks / info.file_name).is_file() for info in source.infos):
        raise UserError("no mask has the name of an image", where=masks, todo="rename them, or use the boxes")
    needed = 4 * sum(info.width * info.height for info in source.infos)
    held = MOST_MEMORY * host_memory.installed()
    if needed > held:
        what = f"{len(source)} images take {needed / 1e9:.1f} GB of memory, but only {held / 1e9:.1f} GB can be used"
        raise UserError(what, where=source.name, todo="compare fewer with --count, or cut patches")
    images = map_in_threads(lambda position: source[position].image[..., 0], len(source), progress)
    infos = source.infos
    return ImageSet(
        source.name,
        tuple(images),
        tuple(info.title for info in infos),
        tuple(info.patient_id for info in infos),
        _classes(source),
        source.skipped,
        () if regions == "images" else tuple(_region(info, masks) for info in infos),
        halving_doubt(infos),
    )


def _mask_folder(spec: SourceSpec) -> Path:
    """`masks/` beside a COCO file, where the programs that paint lesions write them. UserError if it is missing."""
    folder = Path(spec.place).parent / "masks"
    if spec.kind != "coco" or not folder.is_dir():
        todo = "give coco:FILE.json with a folder masks/ beside it, or use the boxes"
        raise UserError("no masks of the images", where=spec.spec, todo=todo)
    return folder


def _region(info: ImageInfo, masks: Path | None) -> np.ndarray | None:
    """The lesions of an image [H, W] bool: its mask if there is a file with the image's name, else all its boxes; None
    for an image with neither, and for one covered by its boxes."""
    if masks is not None and (path := masks / info.file_name).is_file():
        return np.asarray(decode_image(path)[0][..., 0] > 0)
    boxes = info.boxes[~info.ignore]
    if not len(boxes):
        return None
    region = np.logical_or.reduce([box_mask(box, info.height, info.width) for box in boxes])
    return None if region.all() else region


def _classes(source: ImageSource) -> tuple[str, ...]:
    """The single class of each image; "" for an image with none, or with boxes of several."""
    found = []
    for info in source.infos:
        labels = set(info.labels[~info.ignore].tolist())
        found.append(source.classes[labels.pop()] if len(labels) == 1 else "")
    return tuple(found)


def check_apart(real: ImageSet, synthetic: ImageSet) -> None:
    """UserError if an image is in both sets, as the distance would measure the copies."""
    first, second = ([(pixel_hash(i[..., None]), t) for i, t in zip(s.images, s.titles)] for s in (real, synthetic))
    duplicates.check_apart(first, second, synthetic.name)


def copies(one: ImageSet) -> int:
    """The number of images of a set that repeat an earlier one, pixel by pixel."""
    return len(one) - len({pixel_hash(image[..., None]) for image in one.images})


def common_classes(real: ImageSet, synthetic: ImageSet) -> list[str]:
    """The classes of both sets. UserError for images without a class, and for a class with fewer than two images."""
    for one in (real, synthetic):
        if "" in one.classes:
            raise UserError("images without a single class", where=one.name, todo="compare them without by_class")
    names = sorted({*real.classes, *synthetic.classes})
    for name in names:
        for one in (real, synthetic):
            count = one.classes.count(name)
            if count < 2:
                known = ", ".join(sorted(set(one.classes)))
                what = f"{count} image{'' if count == 1 else 's'} of the class '{name}' (there are {known})"
                raise UserError(what, where=one.name, todo="give two or more images of each class")
    return names


def of_class(one: ImageSet, name: str) -> np.ndarray:
    """Positions of the images of a class."""
    return np.flatnonzero(np.array(one.classes) == name)


def at(values: Sequence[str], positions: np.ndarray) -> list[str]:
    """The values at positions."""
    return [values[int(position)] for position in positions]
