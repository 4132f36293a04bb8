"""The embedded tomosynthesis phantom (`synthesis/phantom_volume.py`) as a data source: `phantom_volumes:KEY=VALUE,..`.

Modalities: `dbt`, slices of volumes; `mammogram` and `synthetic_2d`, one image of the same breast. With the same seed
all show the same patients; another seed draws others. The images are drawn when the source is opened, and kept as 8-bit
arrays. Images [H, W, 1] float32 in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Annotated

import cv2
import numpy as np

from elk_jax.data.registration import misplacement
from elk_jax.data.sources import phantom_sets
from elk_jax.data.sources.slices import chosen_slices, with_lesions
from elk_jax.data.sources.source import ImageSource, paired
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.fields import AtLeast, Between
from elk_jax.images.schema import ImageInfo
from elk_jax.randomness import Purpose, generator
from elk_jax.synthesis.phantom_volume import PhantomVolume, VolumeConfig, sample
from elk_jax.threads import ProgressBar, map_in_threads, no_bar

OF_VIEWS = ("mammogram", "synthetic_2d")
"""Modalities with one image per breast: two of them form a pair."""
MODALITIES = ("dbt", *OF_VIEWS)


@dataclass(frozen=True)
class VolumeOptions(VolumeConfig):
    """Options after `phantom_volumes:`: these, `phantom_sets.SetOptions`, and the fields of `VolumeConfig`.

    shift, zoom: misalignment of the mammogram with the synthetic one, as by another compression: up to `shift` pixels
        of an image 1024 high, and a factor of up to 1 +- zoom.
    """

    count: int = 240
    seed: int = 0
    modality: str = MODALITIES[0]
    shift: Annotated[float, AtLeast(0)] = 0.0
    zoom: Annotated[float, Between(0, 0.5)] = 0.0


def open_phantom_volumes(spec: SourceSpec, split: str = "", progress: ProgressBar = no_bar) -> ImageSource:
    """The slices or images of one split ("": all); they are drawn now."""
    options = parse_options(spec.place)
    if not spec.partner:
        return _draw_all(spec, options, (options.modality,), split, progress)[0]
    check_partner(spec)
    first, second = _draw_all(spec, options, (options.modality, spec.partner), split, progress)
    return paired(first, second.read)


def check_partner(spec: SourceSpec) -> None:
    """UserError for a partner that these images do not have, or a bad option."""
    phantom_sets.check_partner(spec, parse_options(spec.place).modality, OF_VIEWS)


def has_slices(options: str) -> bool:
    """Whether the images are slices of volumes. UserError for a bad option."""
    return parse_options(options).modality == MODALITIES[0]


def patients(options: str, split: str = "") -> dict[str, str]:
    """Patient id -> split of what `open_phantom_volumes` would draw. UserError for a bad option."""
    return phantom_sets.patients_of(parse_options(options), split, f"phantom_volumes:{options}")


def parse_options(text: str) -> VolumeOptions:
    """`size=128,seed=3` -> options. UserError with the bad key and the valid ones."""
    return phantom_sets.parse(text, VolumeOptions, "phantom_volumes", MODALITIES)


Drawn = tuple[ImageInfo, np.ndarray]


def _draw_all(
    spec: SourceSpec, options: VolumeOptions, modalities: tuple[str, ...], split: str, progress: ProgressBar
) -> list[ImageSource]:
    """One source for each modality; every breast is drawn once."""
    jobs = phantom_sets.jobs(options, split, spec.spec)

    def draw(position: int) -> list[list[Drawn]]:
        part, index = jobs[position]
        volume = sample(options.seed, index, options)
        images = {
            "dbt": lambda: _slices(volume, spec.slices, part),
            "mammogram": lambda: [_mammogram(volume, options, part, index)],
            "synthetic_2d": lambda: [_image(volume, volume.synthetic, "synthetic_2d", part)],
        }
        return [images[modality]() for modality in modalities]

    views = map_in_threads(draw, len(jobs), progress)
    sources = []
    for number in range(len(modalities)):
        drawn = list(chain.from_iterable(view[number] for view in views))
        read = partial(phantom_sets.read_grey, tuple(image for _, image in drawn))
        sources.append(ImageSource(spec.spec, phantom_sets.CLASSES, tuple(info for info, _ in drawn), read))
    return sources


def _slices(volume: PhantomVolume, which: str, split: str) -> list[Drawn]:
    total = len(volume.slice_heights)
    classes = {"cancer" if kind in phantom_sets.MALIGNANT else "benign" for kind in volume.lesion_kinds}
    fields = {
        "study_uid": volume.study,
        "view": f"{volume.laterality}{volume.view}".lower(),
        "class": min(classes, key="cancer benign".index, default="normal"),
        "volume_slices": total,
    }
    chosen, drawn = chosen_slices(total, volume.central, which), list[Drawn]()
    for position, image in zip(chosen, volume.slices(chosen)):
        whole, grey = _image(volume, image, "dbt", split)
        name = f"{whole.image_id}_{position:03d}"
        of_slice = replace(
            whole,
            image_id=name,
            file_name=f"{name}.png",
            meta=whole.meta | fields,
            volume=whole.image_id,
            slice=position,
        )
        info, seen = with_lesions(of_slice, volume.boxes, volume.central, which)
        kinds = [kind for kind, is_seen in zip(volume.lesion_kinds, seen) if is_seen]
        drawn.append((replace(info, meta=info.meta | {"lesion_kinds": kinds}), grey))
    return drawn


def _mammogram(volume: PhantomVolume, options: VolumeOptions, split: str, index: int) -> Drawn:
    """The mammogram, misaligned according to the options."""
    image = volume.mammogram
    info, grey = _image(volume, image, "mammogram", split)
    if options.shift or options.zoom:
        rng = generator(options.seed, Purpose.PHANTOM_VOLUME, index, 4)
        # About the middle of the chest wall, where a second compression holds the breast.
        held = (0 if volume.laterality == "L" else info.width, info.height / 2)
        found = misplacement(rng, options.shift * options.size / 1024, options.zoom, held)
        image = cv2.warpAffine(image, found.matrix, (info.width, info.height), flags=cv2.INTER_LINEAR)
        limits = np.array([info.width, info.height] * 2, np.float32)
        boxes = np.clip(info.boxes * found.factor + np.tile(found.offset, 2), 0, limits).astype(np.float32)
        meta = info.meta | {"zoomed": found.factor, "moved": found.moved.tolist()}
        info = _kept(replace(info, boxes=boxes, meta=meta))
        grey = _as_grey(image)
    return info, grey


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


def _image(volume: PhantomVolume, image: np.ndarray, modality: str, split: str) -> Drawn:
    """An image of the whole breast, with all lesions."""
    info = phantom_sets.whole_image(volume, image.shape[1], image.shape[0], modality, split)
    return info, _as_grey(image)


def _as_grey(image: np.ndarray) -> np.ndarray:
    return np.round(image.clip(0, 1) * 255).astype(np.uint8)
