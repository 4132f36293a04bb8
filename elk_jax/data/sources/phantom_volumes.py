"""The embedded tomosynthesis phantom (`synthesis/phantom_volume.py`) as a data source: `phantom_volumes:KEY=VALUE,..`.

Modalities: `dbt`, slices of volumes; `mammogram` and `synthetic_2d`, one image of the same breast. With the same seed
all show the same patients; another seed draws other patients. The images are drawn when the source is opened, and kept
as 8-bit arrays. Images [H, W, 1] float32 in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Annotated

import cv2
import numpy as np

from elk_jax.data.sources import phantom_sets
from elk_jax.data.sources.source import ImageSource
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.errors import UserError
from elk_jax.fields import AtLeast, Between
from elk_jax.images.schema import ImageInfo
from elk_jax.randomness import Purpose, generator
from elk_jax.synthesis.phantom_volume import PhantomVolume, VolumeConfig, sample
from elk_jax.threads import ProgressBar, map_in_threads, no_bar

MODALITIES = ("dbt", "mammogram", "synthetic_2d")
WHICH = ("central", "near", "all")


@dataclass(frozen=True)
class VolumeOptions(VolumeConfig):
    """What can follow `phantom_volumes:`: these, `phantom_sets.SetOptions`, and the fields of `VolumeConfig`.

    which: slices of `dbt`. central: in which a lesion is in focus, of a volume without lesions the middle one; near:
        those within a quarter of the volume from these; all. A lesion that a slice does not cut through, although it is
        within a quarter of the volume, is an ignore box there: neither to be found nor wrong when found.
    shift, zoom: the mammogram is misaligned with the synthetic one, as by another compression: by up to this many
        pixels of an image 1024 high, and by a factor of up to 1 +- zoom.
    """

    count: int = 240
    seed: int = 0
    modality: str = MODALITIES[0]
    which: str = WHICH[0]
    shift: Annotated[float, AtLeast(0)] = 0.0
    zoom: Annotated[float, Between(0, 0.5)] = 0.0


def open_phantom_volumes(spec: SourceSpec, split: str = "", progress: ProgressBar = no_bar) -> ImageSource:
    """The slices or images of one split, "" for all; they are drawn now."""
    options = parse_options(spec.place)
    return _draw_all(spec.place, options, (options.modality,), split, progress)[0]


@dataclass(frozen=True)
class ViewPairs:
    """Two images of each view: entry k of both sources is one breast. Boxes are those of each image."""

    first: ImageSource
    second: ImageSource

    def __len__(self) -> int:
        return len(self.first)

    def read(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Both images, [H, W, 1] float32 in [0, 1]."""
        return self.first.read(position), self.second.read(position)


def open_pairs(spec: SourceSpec, split: str = "", progress: ProgressBar = no_bar) -> ViewPairs:
    """(synthetic mammogram, mammogram) of every view of a split; `modality` and `which` are not asked."""
    options = parse_options(spec.place)
    return ViewPairs(*_draw_all(spec.place, options, ("synthetic_2d", "mammogram"), split, progress))


def patients(options: str, split: str = "") -> dict[str, str]:
    """Patient id -> split of what `open_phantom_volumes` would draw. UserError for a bad option."""
    return phantom_sets.patients_of(parse_options(options), split, f"phantom_volumes:{options}")


def parse_options(text: str) -> VolumeOptions:
    """`size=128,seed=3` -> options. UserError that names the key and what is known."""
    options = phantom_sets.parse(text, VolumeOptions, "phantom_volumes", MODALITIES)
    if options.which not in WHICH:
        todo = f"choose one of: {', '.join(WHICH)}"
        raise UserError(f"unknown slices '{options.which}'", where=f"phantom_volumes:{text}", todo=todo)
    return options


Drawn = tuple[ImageInfo, np.ndarray]


def _draw_all(
    place: str, options: VolumeOptions, modalities: tuple[str, ...], split: str, progress: ProgressBar
) -> list[ImageSource]:
    """One source for each modality; every breast is drawn once."""
    name = f"phantom_volumes:{place}"
    jobs = phantom_sets.jobs(options, split, name)

    def draw(position: int) -> list[list[Drawn]]:
        part, index = jobs[position]
        volume = sample(options.seed, index, options)
        return [_IMAGES[modality](volume, options, part, index) for modality in modalities]

    views = map_in_threads(draw, len(jobs), progress)
    sources = []
    for number in range(len(modalities)):
        drawn = list(chain.from_iterable(view[number] for view in views))
        read = partial(phantom_sets.read_grey, tuple(image for _, image in drawn))
        sources.append(ImageSource(name, phantom_sets.CLASSES, tuple(info for info, _ in drawn), read))
    return sources


def _slices(volume: PhantomVolume, options: VolumeOptions, split: str, index: int) -> list[Drawn]:
    total = len(volume.slice_heights)
    chosen = chosen_slices(volume, options.which)
    drawn = []
    for position, image in zip(chosen, volume.slices(chosen)):
        shown = volume.shown(position)
        near = shown | (np.abs(volume.central - position) <= total / 4)
        info = _info(volume, image, "dbt", split)
        name = f"{info.image_id}_{position:03d}"
        kinds = [kind for kind, is_near in zip(volume.lesion_kinds, near) if is_near]
        own = volume.central[near].tolist()
        info = replace(
            info,
            image_id=name,
            file_name=f"{name}.png",
            boxes=volume.boxes[near],
            labels=np.zeros(int(near.sum()), np.int32),
            ignore=~shown[near],
            meta=info.meta | {"lesion_kinds": kinds, "volume_slices": total, "lesion_slices": own},
            volume=info.image_id,
            slice=position,
        )
        drawn.append((info, np.round(image * 255).astype(np.uint8)))
    return drawn


def chosen_slices(volume: PhantomVolume, which: str) -> list[int]:
    """Positions of the slices `which` of `VolumeOptions`, in order."""
    total = len(volume.slice_heights)
    if which == "all":
        return list(range(total))
    middles = volume.central if len(volume.central) else np.array([total // 2])
    if which == "central":
        return np.unique(middles).tolist()
    return [k for k in range(total) if (np.abs(middles - k) <= total / 4).any()]


def _synthetic(volume: PhantomVolume, options: VolumeOptions, split: str, index: int) -> list[Drawn]:
    image = volume.synthetic
    return [(_info(volume, image, "synthetic_2d", split), np.round(image * 255).astype(np.uint8))]


def _mammogram(volume: PhantomVolume, options: VolumeOptions, split: str, index: int) -> list[Drawn]:
    image, info = volume.mammogram, _info(volume, volume.mammogram, "mammogram", split)
    if options.shift or options.zoom:
        rng = generator(options.seed, Purpose.PHANTOM_VOLUME, index, 4)
        factor = 1 + rng.uniform(-1, 1) * options.zoom
        move = rng.uniform(-1, 1, 2) * options.shift * options.size / 1024
        # About the middle of the chest wall, where a second compression holds the breast.
        fixed = np.array([0 if volume.laterality == "L" else info.width, info.height / 2])
        offset = fixed * (1 - factor) + move
        matrix = np.array([[factor, 0, offset[0] + 0.5 * (factor - 1)], [0, factor, offset[1] + 0.5 * (factor - 1)]])
        image = cv2.warpAffine(image, matrix, (info.width, info.height), flags=cv2.INTER_LINEAR)
        limits = np.array([info.width, info.height] * 2, np.float32)
        boxes = np.clip(info.boxes * factor + np.tile(offset, 2), 0, limits).astype(np.float32)
        meta = info.meta | {"zoomed": float(factor), "moved": [float(step) for step in move]}
        info = _kept(replace(info, boxes=boxes, meta=meta))
    return [(info, np.round(image.clip(0, 1) * 255).astype(np.uint8))]


def _kept(info: ImageInfo) -> ImageInfo:
    """Without boxes that have left the image."""
    inside = (info.boxes[:, 2:] - info.boxes[:, :2] >= 1).all(1)
    kinds = [kind for kind, is_inside in zip(info.meta["lesion_kinds"], inside) if is_inside]
    return replace(
        info,
        boxes=info.boxes[inside],
        labels=info.labels[inside],
        ignore=info.ignore[inside],
        meta=info.meta | {"lesion_kinds": kinds},
    )


def _info(volume: PhantomVolume, image: np.ndarray, modality: str, split: str) -> ImageInfo:
    """Of an image of the whole breast, with all lesions."""
    name, count = f"{volume.patient_id}_{volume.laterality}_{volume.view}", len(volume.boxes)
    return ImageInfo(
        image_id=name,
        patient_id=volume.patient_id,
        width=image.shape[1],
        height=image.shape[0],
        boxes=volume.boxes,
        labels=np.zeros(count, np.int32),
        ignore=np.zeros(count, bool),
        split=split,
        file_name=f"{name}.png",
        meta={
            "laterality": volume.laterality,
            "view": volume.view,
            "density": volume.density,
            "modality": modality,
            "lesion_kinds": list(volume.lesion_kinds),
        },
    )


_IMAGES = {"dbt": _slices, "mammogram": _mammogram, "synthetic_2d": _synthetic}
