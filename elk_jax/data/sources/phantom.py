"""The embedded phantom (`synthesis/phantom.py`) as a data source: `phantom:KEY=VALUE,KEY=VALUE`.

The images are drawn when the source is opened, since boxes are known only then, and kept as 8-bit arrays.
Images [H, W, 1] float32 in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np

from elk_jax.data.sources.source import ImageSource, Read
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.data.sources.splits import largest_remainder
from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo
from elk_jax.randomness import check_seed
from elk_jax.synthesis.phantom import VIEWS, PhantomConfig, patient_id, sample
from elk_jax.threads import ProgressBar, map_in_threads, no_bar

SPLITS = {"train": 0.6, "val": 0.15, "test": 0.25}
_SPACE = 1_000_000  # indices reserved for each split: its phantoms stay the same when `count` grows
MODALITIES = ("subtracted", "low_energy")
CLASSES = ("lesion",)


@dataclass(frozen=True)
class PhantomOptions(PhantomConfig):
    """What can follow `phantom:`: these, and the fields of `PhantomConfig` but `square`.

    count: images in all splits together, four views per patient; 60 / 15 / 25 % of the patients are in train / val /
        test.
    seed: sets of patients with different seeds are disjoint.
    modality: subtracted or low_energy; with the same seed, both show the same breasts and lesions.
    """

    count: int = 240
    seed: int = 0
    modality: str = "subtracted"


def open_phantom(spec: SourceSpec, split: str = "", progress: ProgressBar = no_bar) -> ImageSource:
    """The phantoms of one split, "" for all; they are drawn now."""
    infos, read = read_phantom(spec.place, split, progress)
    return ImageSource(f"phantom:{spec.place}", CLASSES, infos, read)


def read_phantom(options: str, split: str = "", progress: ProgressBar = no_bar) -> tuple[tuple[ImageInfo, ...], Read]:
    """Draw the phantoms of one split ("" for all): (infos, read). UserError for a bad option.

    progress: shows how far the drawing is.
    """
    chosen, jobs = parse_options(options), _jobs(options, split)
    drawn = map_in_threads(lambda position: _draw(chosen, *jobs[position]), len(jobs), progress)
    infos = tuple(info for info, _ in drawn)
    return infos, partial(_read, tuple(image for _, image in drawn))


def patients(options: str, split: str = "") -> dict[str, str]:
    """Patient id -> split of what `read_phantom` would draw. UserError for a bad option."""
    seed = parse_options(options).seed
    return {patient_id(seed, index): name for name, index in _jobs(options, split)}


def parse_options(text: str) -> PhantomOptions:
    """`size=256,seed=3` -> options. UserError that names the key and what is known."""
    kinds: dict[str, Any] = {f.name: type(f.default) for f in fields(PhantomOptions) if f.name != "square"}
    values: dict[str, object] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        key, equals, value = item.partition("=")
        if key not in kinds or not equals:
            todo = f"write KEY=VALUE with one of: {', '.join(kinds)}"
            raise UserError(f"unknown phantom option '{item}'", where=f"phantom:{text}", todo=todo)
        try:
            values[key] = kinds[key](value)
        except ValueError as error:
            what = f"phantom option {key} is '{value}', not of type {kinds[key].__name__}"
            raise UserError(what, where=f"phantom:{text}") from error
    options = PhantomOptions(**values)  # type: ignore[arg-type]
    if options.modality not in MODALITIES:
        todo = f"choose one of: {', '.join(MODALITIES)}"
        raise UserError(f"unknown phantom modality '{options.modality}'", where=f"phantom:{text}", todo=todo)
    check_seed(options.seed, f"phantom:{text}")
    if not len(VIEWS) * len(SPLITS) <= options.count <= _SPACE:
        raise UserError(
            f"phantom count {options.count} is out of range",
            where=f"phantom:{text}",
            todo=f"choose {len(VIEWS) * len(SPLITS)} (a patient per split) to {_SPACE}",
        )
    return options


def _jobs(options: str, split: str) -> list[tuple[str, int]]:
    """(split, phantom index) of the images of one split, "" for all."""
    if split and split not in SPLITS:
        todo = f"choose one of: {', '.join(SPLITS)}"
        raise UserError(f"a phantom has no split '{split}'", where=f"phantom:{options}", todo=todo)
    return [job for job in _indices(parse_options(options).count) if split in ("", job[0])]


def _indices(count: int) -> list[tuple[str, int]]:
    """(split, phantom index) of every image."""
    patients = largest_remainder(np.array(list(SPLITS.values())), count // len(VIEWS), at_least=1)
    return [
        (split, start * _SPACE + view)
        for start, (split, number) in enumerate(zip(SPLITS, patients))
        for view in range(number * len(VIEWS))
    ]


def _draw(options: PhantomOptions, split: str, index: int) -> tuple[ImageInfo, np.ndarray]:
    phantom = sample(options.seed, index, options)
    image = phantom.subtracted if options.modality == "subtracted" else phantom.low_energy
    name = f"{phantom.patient_id}_{phantom.laterality}_{phantom.view}"
    count = len(phantom.boxes)
    info = ImageInfo(
        image_id=name,
        patient_id=phantom.patient_id,
        width=image.shape[1],
        height=image.shape[0],
        boxes=phantom.boxes,
        labels=np.zeros(count, np.int32),
        ignore=np.zeros(count, bool),
        split=split,
        file_name=f"{name}.png",
        meta={
            "laterality": phantom.laterality,
            "view": phantom.view,
            "density": phantom.density,
            "modality": options.modality,
            "lesion_kinds": list(phantom.lesion_kinds),
        },
    )
    return info, np.round(image * 255).astype(np.uint8)


def _read(images: tuple[np.ndarray, ...], position: int) -> np.ndarray:
    return (images[position].astype(np.float32) * np.float32(1 / 255)).clip(0, 1)[..., None]
