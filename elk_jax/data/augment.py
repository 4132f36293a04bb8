"""From a record to an example of a batch: augmentation for training, resizing for evaluation.

Images [H, W, I] float32 in [0, 1], I = 1 or, of a pair, 2; boxes xyxy, px.

Order of `augment`: copy-paste, rotation, choice of scale, window that keeps lesions, resize, flips, grey
values. Scale and window are chosen before pixels are touched, so a pixel is interpolated once (twice with a
small rotation or a stretch). Both images of a pair share the geometry; their grey values change independently.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from elk_jax.data.half_precision import in_half_precision
from elk_jax.data.paste import paste_lesions
from elk_jax.data.transforms import (
    Boxes,
    Example,
    Pixels,
    Rounding,
    change_greys,
    crop,
    example_of,
    flip,
    lesion_window,
    resize_to,
    rotate,
    rotate_quarter,
    scaled_size,
    short_side_scale,
)
from elk_jax.errors import UserError
from elk_jax.fields import ABOVE_ZERO, SHARE, SIDE, AtLeast, Between, check
from elk_jax.images.schema import Record


@dataclass(frozen=True)
class Resize:
    """The size of images in a batch: by `short_sides` or by `jitter`; one of them is empty.

    short_sides: px; one is drawn at random (one entry: no choice); detectron2's rule "ResizeShortestEdge".
    max_long_side: px; the scale is lowered if the longer side would exceed it. 0: no limit.
    jitter: (low, high). The scale that just fits the image into its canvas, times a number drawn log-uniformly from
        [low, high]; the image is cropped to the canvas (large-scale jitter, Ghiasi et al. 2021).
    stretch: (height, width) to which every image is stretched first; (): images keep their size.
    rounding, pixels: how the size is rounded to whole px, and how pixels are interpolated: once, with `stretch` twice.
    boxes: how they follow the stretch.
    float16_white: the value of white in the image files, which are then read as float16; 0: not read as float16.
    """

    short_sides: tuple[Annotated[int, AtLeast(1)], ...] = ()
    max_long_side: Annotated[int, AtLeast(0)] = 0
    jitter: tuple[()] | tuple[Annotated[float, ABOVE_ZERO], Annotated[float, ABOVE_ZERO]] = ()
    stretch: tuple[()] | tuple[Annotated[int, SIDE], Annotated[int, SIDE]] = ()
    rounding: Rounding = "nearest"
    pixels: Pixels = "mean"
    boxes: Boxes = "scaled"
    float16_white: Annotated[int, Between(0, 65535)] = 0

    def __post_init__(self) -> None:
        check(self)
        if self.boxes == "ellipses" and not self.stretch:
            what = "boxes can be redrawn only in images of one size, and none is given"
            raise UserError(what, where="boxes", todo="give stretch=(height, width), or boxes=scaled")
        if bool(self.short_sides) == bool(self.jitter):
            found = f"short_sides is {self.short_sides} and jitter is {self.jitter}: exactly one must be set"
            raise UserError(found, where="short_sides", todo="give one of them, and () for the other")
        if self.jitter and self.jitter[0] > self.jitter[1]:
            raise UserError(f"jitter is {self.jitter}", where="jitter", todo="give (low, high) with low <= high")

    def scale(self, size: tuple[int, int], canvas: tuple[int, int], short_side: int | None = None) -> float:
        """The scale, without randomness, of an image whose size after `stretch` is (height, width): the one that fits
        the canvas, or gives a short side of `short_side` px (default: the last of `short_sides`)."""
        if self.jitter:
            return min(canvas[0] / size[0], canvas[1] / size[1])
        return short_side_scale(size, short_side or self.short_sides[-1], self.max_long_side)

    def stretched(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of an image of this size after `stretch`."""
        return self.stretch or size

    def size(self, size: tuple[int, int], scale: float, canvas: tuple[int, int] | None = None) -> tuple[int, int]:
        """(height, width) at this scale, within a canvas, of an image whose size after `stretch` is `size`."""
        return scaled_size(size, scale, canvas, self.rounding)


@dataclass(frozen=True)
class Augmentation:
    """Random changes. The default of each field changes nothing.

    horizontal_flip, vertical_flip, rotate90: probabilities.
    rotation: largest angle in degrees, in either direction; the image keeps its size.
    crop, crop_sides: probability of a crop, and (low, high) of the share of each side that remains.
    min_visible: a box with less than this share of its area visible becomes an ignore box.
    gain, gamma, noise: grey value x -> x^exp(u(-gamma, gamma)) * exp(u(-gain, gain)) + normal * u(0, noise);
        pixels that are 0 stay 0.
    copy_paste: probability that lesions of another record are pasted in (`paste.py`); the loader supplies that
        record.
    """

    horizontal_flip: Annotated[float, SHARE] = 0.0
    vertical_flip: Annotated[float, SHARE] = 0.0
    rotate90: Annotated[float, SHARE] = 0.0
    rotation: Annotated[float, Between(0, 45)] = 0.0
    crop: Annotated[float, SHARE] = 0.0
    crop_sides: tuple[Annotated[float, ABOVE_ZERO, SHARE], Annotated[float, ABOVE_ZERO, SHARE]] = (0.6, 1.0)
    min_visible: Annotated[float, SHARE] = 0.5
    gain: Annotated[float, AtLeast(0)] = 0.0
    gamma: Annotated[float, AtLeast(0)] = 0.0
    noise: Annotated[float, AtLeast(0)] = 0.0
    copy_paste: Annotated[float, SHARE] = 0.0

    def __post_init__(self) -> None:
        check(self)
        low, high = self.crop_sides
        if low > high:
            todo = "give (low, high) with low <= high"
            raise UserError(f"crop_sides is {self.crop_sides}", where="crop_sides", todo=todo)


NO_AUGMENTATION = Augmentation()


def augment(
    record: Record,
    augmentation: Augmentation,
    resize: Resize,
    canvas: tuple[int, int],
    rng: np.random.Generator,
    donor: Record | None = None,
) -> Example:
    """One random training example that fits `canvas` (height, width); `donor` supplies lesions to copy-paste."""
    example = _read(record, resize)
    if donor is not None and rng.random() < augmentation.copy_paste:
        example = paste_lesions(example, donor, rng)
    if rng.random() < augmentation.rotate90:
        example = rotate_quarter(example, int(rng.integers(1, 4)))
    if augmentation.rotation > 0:
        angle = rng.uniform(-augmentation.rotation, augmentation.rotation)
        example = rotate(example, angle, augmentation.min_visible)

    example = _stretched(example, resize)
    size = example.image.shape[:2]
    if resize.jitter:
        drawn = math.exp(rng.uniform(math.log(resize.jitter[0]), math.log(resize.jitter[1])))
        scale = resize.scale(size, canvas) * drawn
    else:
        scale = resize.scale(size, canvas, int(rng.choice(resize.short_sides)))
    share = np.ones(2)
    if rng.random() < augmentation.crop:
        share = rng.uniform(*augmentation.crop_sides, size=2)
    largest = ((canvas[0] + 0.49) / scale, (canvas[1] + 0.49) / scale)
    window = lesion_window(example, share, largest, rng)
    example = crop(example, window, augmentation.min_visible)
    example = resize_to(example, resize.size(example.image.shape[:2], scale, canvas), resize.pixels)

    if rng.random() < augmentation.horizontal_flip:
        example = flip(example, "horizontal")
    if rng.random() < augmentation.vertical_flip:
        example = flip(example, "vertical")
    images = np.split(example.image, example.image.shape[-1], axis=-1)
    return replace(example, image=np.concatenate([_other_greys(one, augmentation, rng) for one in images], axis=-1))


def _other_greys(image: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    gamma = math.exp(rng.uniform(-augmentation.gamma, augmentation.gamma))
    gain = math.exp(rng.uniform(-augmentation.gain, augmentation.gain))
    noise = rng.uniform(0.0, augmentation.noise)
    return change_greys(image, gamma, gain, noise, rng)


def resize_only(record: Record, resize: Resize, canvas: tuple[int, int]) -> Example:
    """Resize without randomness, for evaluation: by the last of `short_sides`, or with jitter to fit the canvas."""
    example = _stretched(_read(record, resize), resize)
    size = example.image.shape[:2]
    return resize_to(example, resize.size(size, resize.scale(size, canvas), canvas), resize.pixels)


def _read(record: Record, resize: Resize) -> Example:
    """The record in the precision used for resizing."""
    white, example = resize.float16_white, example_of(record)
    return replace(example, image=in_half_precision(example.image, white, record.info.title)) if white else example


def _stretched(example: Example, resize: Resize) -> Example:
    return resize_to(example, resize.stretched(example.image.shape[:2]), resize.pixels, resize.boxes)
