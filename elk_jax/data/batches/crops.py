"""From a source to an inpainter's batches: close-ups of lesions, and of healthy tissue with lesion-like masks.

Shapes: B batch, W side of the square window in the image's pixels, S side of the model's picture. A batch is a
function of (seed, batch number) only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypedDict, cast

import numpy as np

from elk_jax.data.batches.shuffle import Shuffle, Stacked, batch_count, blank, host_rows
from elk_jax.data.batches.stream import Reading, Stream, finite
from elk_jax.data.batches.stream import digest as stream_digest
from elk_jax.data.flips import random_flip
from elk_jax.data.sources.source import ImageSource
from elk_jax.errors import UserError
from elk_jax.fields import SHARE, AtLeast
from elk_jax.images.breast import breast_mask
from elk_jax.images.schema import ImageInfo
from elk_jax.randomness import Purpose, generator
from elk_jax.spread import spread
from elk_jax.synthesis.closeups import Closeup, fitting_lesions, lesion_closeup, tissue_closeup
from elk_jax.synthesis.compositing import to_model
from elk_jax.synthesis.placement import AreaRule, area_rule


class CloseupBatch(TypedDict):
    """One batch of close-ups, a plain dict of arrays."""

    image: np.ndarray  # [B, S, S, 1] float32 in [0, 1]
    mask: np.ndarray  # [B, S, S, 1] float32, 1 over the lesion (or the place for one)
    lesion: np.ndarray  # [B] float32, 1 for a lesion, 0 for healthy tissue under the mask
    index: np.ndarray  # [B] int32, which image of the source
    valid: np.ndarray  # [B] bool, False for examples that only fill the last batch


@dataclass(frozen=True)
class CloseupConfig(Reading):
    """How a source becomes close-ups.

    window: W, native pixels.
    margin: share of a lesion's width and height by which the mask extends beyond its box on each side. Lesions that do
        not fit into the window with it are left out.
    batch_size: of the GLOBAL batch, over all hosts.
    tissue_share: share of the examples that show healthy tissue under the mask instead of a lesion.
    horizontal_flip, vertical_flip: probabilities. gain: grey values are multiplied by 1 - gain to 1 + gain.
    """

    window: Annotated[int, AtLeast(1)] = 64
    margin: Annotated[float, SHARE] = 0.15
    batch_size: Annotated[int, AtLeast(1)] = 8
    tissue_share: Annotated[float, SHARE] = 0.2
    horizontal_flip: Annotated[float, SHARE] = 0.5
    vertical_flip: Annotated[float, SHARE] = 0.5
    gain: Annotated[float, SHARE] = 0.1

    @property
    def largest(self) -> int:
        """Upper limit, in native pixels, of both sides of a lesion's box (exclusive)."""
        return int(self.window / (1 + 2 * self.margin))


def train_closeups(
    source: ImageSource, config: CloseupConfig, size: int, seed: int, process_index: int = 0, process_count: int = 1
) -> Stream[CloseupBatch]:
    """Endless batches of random close-ups. Every lesion occurs once an epoch, at a new place in a new window; healthy
    tissue, if drawn (`tissue_share`), replaces a lesion.

    size: S. UserError: no lesion fits into the window, no image has healthy tissue although some is wanted, batch size
    not divisible by the number of hosts, unreadable image (when it is reached).
    """
    make = shuffled(source, config, size, seed, process_index, process_count)
    return cast(Stream[CloseupBatch], Stream(make, digest(source, config, size, seed), config))


def shuffled(
    source: ImageSource, config: CloseupConfig, size: int, seed: int, process_index: int = 0, process_count: int = 1
) -> Stacked:
    """Batch number -> the batch of `train_closeups`."""
    lesions = fitting_lesions(source.infos, config.largest)
    shuffle = Shuffle(len(lesions), seed, Purpose.CLOSEUP_ORDER)
    example = _Training(source, config, size, tuple(lesions), seed, shuffle, lesion_sizes(source, config.largest))
    return Stacked(example, config.batch_size, host_rows(config.batch_size, process_index, process_count))


def apart(source: ImageSource, config: CloseupConfig, size: int, sizes: AreaRule) -> tuple[Augmented, list[ImageInfo]]:
    """(number of a lesion -> an example of it; the image of every lesion), for private training.

    size: S. sizes: of the masks over healthy tissue. UserError: no lesion fits into the window.
    """
    lesions = tuple(fitting_lesions(source.infos, config.largest))
    return Augmented(source, config, size, lesions, sizes), [source.infos[position] for position, _ in lesions]


def eval_closeups(
    source: ImageSource, config: CloseupConfig, size: int, seed: int, count: int = 0
) -> Iterator[CloseupBatch]:
    """`count` lesions (0: all that fit) in order, each in one random window that is always the same; no flips.

    size: S. Lesions are spread over the whole source. The last batch is filled with copies whose `valid` is False.
    """
    lesions = fitting_lesions(source.infos, config.largest)
    chosen = tuple(lesions[i] for i in spread(len(lesions), count or len(lesions)))
    plain = replace(config, horizontal_flip=0.0, vertical_flip=0.0, gain=0.0)
    make = Stacked(_Evaluation(source, plain, size, chosen, seed), config.batch_size, count=len(chosen))
    return cast(Iterator[CloseupBatch], finite(make, batch_count(len(chosen), config.batch_size), config))


def cached_closeups(
    examples: Mapping[str, np.ndarray],
    config: CloseupConfig,
    origin: str,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Stream[dict[str, np.ndarray]]:
    """Endless batches of examples held in memory (arrays with a leading axis), in a new order every epoch.

    origin: the inputs that determine the examples. Not the examples themselves: recomputed, they may differ in the last
    bit, and a training run must still resume.
    """
    shuffle = Shuffle(len(next(iter(examples.values()))), seed, Purpose.CACHED_ORDER)
    example = lambda slot: {key: values[shuffle(slot)] for key, values in examples.items()}
    make = Stacked(example, config.batch_size, host_rows(config.batch_size, process_index, process_count))
    return Stream(make, stream_digest(config, seed, origin), replace(config, workers=0))


def blank_batch(batch_size: int, size: int) -> CloseupBatch:
    """A batch of black close-ups of tissue; it takes no memory. size: S."""
    picture, numbers = (batch_size, size, size, 1), (batch_size,)
    shapes = {"image": picture, "mask": picture, "lesion": numbers, "index": numbers, "valid": numbers}
    return cast(CloseupBatch, blank(shapes, index=np.int32, valid=bool) | {"valid": np.broadcast_to(True, numbers)})


def digest(source: ImageSource, config: CloseupConfig, size: int, seed: int) -> str:
    """Fingerprint of everything that `train_closeups` depends on."""
    return stream_digest(config, size, seed, records(source))


def records(source: ImageSource) -> list[Any]:
    """What identifies the lesions of a source, for JSON."""
    return [(info.image_id, info.boxes.tolist(), info.ignore.tolist()) for info in source.infos]


def lesion_sizes(source: ImageSource, largest: int, kind: str = "free") -> AreaRule:
    """Sizes and shapes of the lesions of a source whose sides are below `largest` px; see `placement.area_rule`."""
    boxes = [info.boxes[~info.ignore] for info in source.infos]
    return area_rule(np.concatenate(boxes), kind, largest)


@dataclass(frozen=True)
class _Lesions:
    """Lesions of a source that fit into the window, as (image, lesion)."""

    source: ImageSource
    config: CloseupConfig
    size: int
    lesions: tuple[tuple[int, int], ...]

    def around(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A close-up of a lesion."""
        position, lesion = self.lesions[number]
        pixels, boxes = self.source[position].image[..., 0], self.source.infos[position].boxes
        closeup = lesion_closeup(pixels, boxes, lesion, self.config.window, rng, self.config.margin)
        return _example(self.config, self.size, closeup, position, True, rng)

    def tissue(self, position: int, sizes: AreaRule, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
        """A close-up of healthy tissue of an image; None if no window of it is healthy."""
        info, window = self.source.infos[position], self.config.window
        if min(info.width, info.height) < window:
            return None
        pixels = self.source[position].image[..., 0]
        breast, margin = breast_mask(pixels), self.config.margin
        closeup = tissue_closeup(pixels, breast, info.boxes, window, sizes, rng, margin=margin)
        return None if closeup is None else _example(self.config, self.size, closeup, position, False, rng)


@dataclass(frozen=True)
class _Evaluation(_Lesions):
    """Number of a lesion -> example."""

    seed: int

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        return self.around(number, generator(self.seed, Purpose.EVAL_CLOSEUP, number))


@dataclass(frozen=True)
class _Training(_Lesions):
    """Slot -> example. Healthy tissue is taken from a random image that has some."""

    seed: int
    shuffle: Shuffle
    sizes: AreaRule

    def __call__(self, slot: int) -> dict[str, np.ndarray]:
        rng = generator(self.seed, Purpose.CLOSEUP, slot)
        if rng.random() < self.config.tissue_share:
            return self._tissue(rng)
        return self.around(self.shuffle(slot), rng)

    def _tissue(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        for position in rng.permutation(len(self.source)):
            found = self.tissue(int(position), self.sizes, rng)
            if found is not None:
                return found
        raise UserError(
            f"no image has a healthy window of {self.config.window} px",
            where=self.source.name,
            todo="use a smaller window, or closeups.tissue_share=0",
        )


@dataclass(frozen=True)
class Augmented(_Lesions):
    """Number of a lesion -> example, which depends on the image of that lesion only.

    Healthy tissue is taken from the same image. If it has no healthy window, the lesion is shown instead.
    """

    sizes: AreaRule

    def __call__(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        if rng.random() < self.config.tissue_share:
            found = self.tissue(self.lesions[number][0], self.sizes, rng)
            if found is not None:
                return found
        return self.around(number, rng)


def _example(
    config: CloseupConfig, size: int, closeup: Closeup, position: int, lesion: bool, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    image, mask = to_model(closeup.image, closeup.mask, size)
    flip = random_flip(rng, config.horizontal_flip, config.vertical_flip)
    if config.gain:
        image = np.clip(image * np.float32(rng.uniform(1 - config.gain, 1 + config.gain)), 0, 1)
    return {
        "image": image[flip][..., None],
        "mask": mask[flip][..., None].astype(np.float32),
        "lesion": np.asarray(lesion, np.float32),
        "index": np.asarray(position, np.int32),
    }
