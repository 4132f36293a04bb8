"""The embedded phantom (`synthesis/phantom.py`) as a data source: `phantom:KEY=VALUE,KEY=VALUE`.

The images are drawn when the source is opened, since the boxes are known only then, and kept as 8-bit arrays.
Images [H, W, 1] float32 in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from elk_jax.data.sources import phantom_sets
from elk_jax.data.sources.source import ImageSource, Read, paired
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.images.schema import ImageInfo
from elk_jax.synthesis.phantom import PhantomConfig, sample
from elk_jax.threads import ProgressBar, map_in_threads, no_bar

MODALITIES = ("subtracted", "low_energy")
WITHOUT = ("square",)
"""Fields of `PhantomConfig` that cannot be given as options."""


@dataclass(frozen=True)
class PhantomOptions(PhantomConfig):
    """Options after `phantom:`: `phantom_sets.SetOptions`, and the fields of `PhantomConfig` except `square`."""

    count: int = 240
    seed: int = 0
    modality: str = MODALITIES[0]


def open_phantom(spec: SourceSpec, split: str = "", progress: ProgressBar = no_bar) -> ImageSource:
    """The phantoms of one split ("": all); they are drawn now."""
    infos, read = read_phantom(spec.place, split, progress)
    source = ImageSource(f"phantom:{spec.place}", phantom_sets.CLASSES, infos, read)
    if not spec.partner:
        return source
    check_partner(spec)
    return paired(source, read_phantom(f"{spec.place},modality={spec.partner}", split, progress)[1])


def check_partner(spec: SourceSpec) -> None:
    """UserError for a partner that these phantoms do not have, or a bad option."""
    phantom_sets.check_partner(spec, parse_options(spec.place).modality, MODALITIES)


def read_phantom(options: str, split: str = "", progress: ProgressBar = no_bar) -> tuple[tuple[ImageInfo, ...], Read]:
    """Draw the phantoms of one split ("": all): (infos, read). UserError for a bad option.

    progress: shows the drawing.
    """
    return draw(parse_options(options), split, f"phantom:{options}", progress)


def draw(options: PhantomOptions, split: str, where: str, progress: ProgressBar) -> tuple[tuple[ImageInfo, ...], Read]:
    """As `read_phantom`. where: the source, for errors."""
    jobs = phantom_sets.jobs(options, split, where)
    drawn = map_in_threads(lambda position: _draw(options, *jobs[position]), len(jobs), progress)
    infos = tuple(info for info, _ in drawn)
    return infos, partial(phantom_sets.read_grey, tuple(image for _, image in drawn))


def patients(options: str, split: str = "") -> dict[str, str]:
    """Patient id -> split of what `read_phantom` would draw. UserError for a bad option."""
    return phantom_sets.patients_of(parse_options(options), split, f"phantom:{options}")


def parse_options(text: str) -> PhantomOptions:
    """`size=256,seed=3` -> options. UserError with the bad key and the valid ones."""
    return phantom_sets.parse(text, PhantomOptions, "phantom", MODALITIES, without=WITHOUT)


def _draw(options: PhantomOptions, split: str, index: int) -> tuple[ImageInfo, np.ndarray]:
    phantom = sample(options.seed, index, options)
    image = phantom.subtracted if options.modality == "subtracted" else phantom.low_energy
    info = phantom_sets.whole_image(phantom, image.shape[1], image.shape[0], options.modality, split)
    return info, np.round(image * 255).astype(np.uint8)
