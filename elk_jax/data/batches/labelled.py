"""Batches of whole images with one class each, scaled to one size, for classifiers.

Shapes: B batch, S side of an image in the network. A batch is a function of (seed, batch number) only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict, cast

import numpy as np

from elk_jax.data.batches.shuffle import Augmenting, Shuffle, Stacked, batch_count, blank, host_rows
from elk_jax.data.batches.stream import Reading, Stream, digest, finite
from elk_jax.data.flips import random_flip
from elk_jax.data.patches import resized
from elk_jax.data.sources.source import ImageSource
from elk_jax.data.transforms import change_greys, moved
from elk_jax.fields import SHARE, AtLeast
from elk_jax.randomness import Purpose


class LabelledBatch(TypedDict):
    """One batch of images with their classes, a plain dict of arrays."""

    image: np.ndarray  # [B, S, S, 1] float32 in [0, 1]
    label: np.ndarray  # [B] int32
    valid: np.ndarray  # [B] bool, False for examples that only fill the last batch


@dataclass(frozen=True)
class LabelledConfig(Reading):
    """How images become batches.

    batch_size: of the GLOBAL batch, over all hosts. horizontal_flip, vertical_flip, transpose: probabilities; at one
    half each, an image is seen in all eight symmetries of the square. zoom: an image is scaled by exp(u(-zoom, zoom)).
    shift: it is moved by up to this share of its side along each axis. gain, gamma, noise: as in `data.augment`.
    """

    batch_size: Annotated[int, AtLeast(1)] = 16
    horizontal_flip: Annotated[float, SHARE] = 0.5
    vertical_flip: Annotated[float, SHARE] = 0.5
    transpose: Annotated[float, SHARE] = 0.5
    zoom: Annotated[float, AtLeast(0)] = 0.0
    shift: Annotated[float, SHARE] = 0.0
    gain: Annotated[float, AtLeast(0)] = 0.0
    gamma: Annotated[float, AtLeast(0)] = 0.0
    noise: Annotated[float, AtLeast(0)] = 0.0


@dataclass(frozen=True)
class Labelled:
    """Images and their classes [N]; size: S."""

    source: ImageSource
    labels: np.ndarray
    size: int

    def __len__(self) -> int:
        return len(self.source)

    def example(self, index: int) -> dict[str, np.ndarray]:
        """One image as it is."""
        image = resized(self.source[index].image, self.size)
        return {"image": np.ascontiguousarray(image, np.float32), "label": np.asarray(self.labels[index], np.int32)}

    def records(self) -> list[Any]:
        """What identifies the images, for JSON."""
        infos = zip(self.source.infos, self.labels)
        return [self.size, *((info.source, info.image_id, info.file_name, int(label)) for info, label in infos)]


def train_batches(
    found: Labelled, config: LabelledConfig, seed: int, process_index: int = 0, process_count: int = 1
) -> Stream[LabelledBatch]:
    """Endless batches: every image once an epoch, in a new order, mirrored and transposed at random."""
    make = shuffled(found, config, seed, process_index, process_count)
    return cast(Stream[LabelledBatch], Stream(make, digest(config, seed, found.records()), config))


def shuffled(
    found: Labelled, config: LabelledConfig, seed: int, process_index: int = 0, process_count: int = 1
) -> Stacked:
    """Batch number -> the batch of `train_batches`."""
    example = Augmenting(
        Augmented(found, config), Shuffle(len(found), seed, Purpose.LABELLED_ORDER), seed, Purpose.LABELLED_VIEWS
    )
    return Stacked(example, config.batch_size, host_rows(config.batch_size, process_index, process_count))


def eval_batches(found: Labelled, config: LabelledConfig) -> Iterator[LabelledBatch]:
    """Every image once, in order and unchanged. The last batch is filled with copies whose `valid` is False."""
    make = Stacked(found.example, config.batch_size, count=len(found))
    return cast(Iterator[LabelledBatch], finite(make, batch_count(len(found), config.batch_size), config))


def blank_batch(batch_size: int, size: int) -> LabelledBatch:
    """A batch of black images; it takes no memory. size: S."""
    numbers = (batch_size,)
    shapes = {"image": (batch_size, size, size, 1), "label": numbers, "valid": numbers}
    filled = blank(shapes, label=np.int32, valid=bool) | {"valid": np.broadcast_to(True, numbers)}
    return cast(LabelledBatch, filled)


@dataclass(frozen=True)
class Augmented:
    """Number of an image -> example, changed by the random numbers."""

    found: Labelled
    config: LabelledConfig

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        config = self.config
        flip = random_flip(rng, config.horizontal_flip, config.vertical_flip)
        turned = rng.random() < config.transpose
        scale, shift = np.exp(rng.uniform(-config.zoom, config.zoom)), rng.uniform(-config.shift, config.shift, 2)
        gamma, gain = np.exp(rng.uniform(-1, 1, 2) * (config.gamma, config.gain))
        noise = rng.uniform(0, config.noise)
        example = self.found.example(index)
        image = example["image"][flip]
        image = moved(image.swapaxes(0, 1) if turned else image, float(scale), shift * self.found.size)
        return example | {"image": np.ascontiguousarray(change_greys(image, float(gamma), float(gain), noise, rng))}
