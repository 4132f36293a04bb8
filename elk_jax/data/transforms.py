"""Transforms of an image together with its boxes: pure functions of (example, parameters, random generator).

Shapes: H, W image size, N boxes, all of one example. Images [H, W, I] float32 in [0, 1], I = 1 or, of a pair, 2;
boxes xyxy, px.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

from elk_jax.data.flips import flip_boxes, flip_image
from elk_jax.images.boxes import area
from elk_jax.images.schema import Record

Rounding = Literal["nearest", "down"]
"""Setting: how the sides of a resized image are rounded (`scaled_size`)."""
Pixels = Literal["mean", "linear"]
"""Setting: how the pixels of a resized image are interpolated (`resize_to`)."""
Boxes = Literal["scaled", "ellipses"]
"""Setting: how boxes follow a resized image (`resize_to`)."""


@dataclass(frozen=True)
class Example:
    """A record on its way into a batch; `scale` (x, y) is the product of all resizing so far."""

    image: np.ndarray  # [H, W, I] float32
    boxes: np.ndarray  # [N, 4] float32
    labels: np.ndarray  # [N] int32
    ignore: np.ndarray  # [N] bool
    scale: tuple[float, float] = (1.0, 1.0)


def example_of(record: Record) -> Example:
    """The unchanged record."""
    info = record.info
    return Example(record.image, info.boxes, info.labels, info.ignore)


def short_side_scale(size: tuple[int, int], short_side: int, max_long_side: int = 0) -> float:
    """Scale that makes the shorter side of `size` `short_side` px long, with the longer side within its limit."""
    scale = short_side / min(size)
    if max_long_side and scale * max(size) > max_long_side:
        scale = max_long_side / max(size)
    return scale


def scaled_size(
    size: tuple[int, int], scale: float, canvas: tuple[int, int] | None = None, rounding: Rounding = "nearest"
) -> tuple[int, int]:
    """(height, width) after scaling, at least 1 and at most the canvas.

    nearest: int(x + 0.5), as in detectron2. down: int(x), as in torchvision.
    """
    more = 0.5 if rounding == "nearest" else 0.0
    height, width = (max(1, int(side * scale + more)) for side in size)
    return (height, width) if canvas is None else (min(height, canvas[0]), min(width, canvas[1]))


def lesion_window(
    example: Example, share: np.ndarray, largest: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Choose a window (left, top, right, bottom), in whole px, that contains one lesion completely if there is one.

    share: (height, width) of the window as a share of the image. The window grows if the chosen lesion needs it.
    largest: upper limit of (height, width); it takes precedence over the lesion (only a lesion larger than the canvas
        is cut).
    """
    size = np.array(example.image.shape[:2])
    limit = np.maximum(np.minimum(size, np.floor(np.asarray(largest) + 1e-6)), 1).astype(int)
    length = np.clip(np.round(size * np.asarray(share)).astype(int), 1, limit)
    low, high = np.zeros(2, int), size - length
    lesions = np.flatnonzero(~example.ignore)
    if len(lesions) and (length < size).any():
        first = np.maximum(np.floor(example.boxes[:, 1::-1]).astype(int), 0)  # (top, left)
        last = np.minimum(np.ceil(example.boxes[:, 3:1:-1]).astype(int), size)
        fitting = lesions[(last - first <= limit)[lesions].all(axis=1)]
        lesion = rng.choice(fitting if len(fitting) else lesions)
        length = np.minimum(np.maximum(length, last[lesion] - first[lesion]), limit)
        ends = np.stack([last[lesion] - length, first[lesion]])  # the window's start lies between these two
        low, high = np.maximum(ends.min(0), 0), np.minimum(ends.max(0), size - length)
    top, left = (int(rng.integers(a, b + 1)) for a, b in zip(low, high))
    return left, top, left + int(length[1]), top + int(length[0])


def crop(example: Example, window: tuple[int, int, int, int], min_visible: float = 0.5) -> Example:
    """Cut out `window` (left, top, right, bottom; whole px inside the image).

    Boxes are clipped to it. Those with less than `min_visible` of their area left become ignore boxes; those with
    none are removed.
    """
    left, top, right, bottom = window
    boxes = example.boxes - np.array([left, top, left, top], np.float32)
    example = replace(example, image=example.image[top:bottom, left:right], boxes=boxes)
    return _clip_boxes(example, min_visible)


def resize_to(example: Example, size: tuple[int, int], pixels: Pixels = "mean", boxes_are: Boxes = "scaled") -> Example:
    """Resize to (height, width); corners stay aligned.

    mean: the mean over the area of a pixel if both sides shrink, else linear. linear: always between the nearest four
    pixels, which skips most pixels if an image shrinks a lot (PyTorch's bilinear, not antialiased).
    ellipses: boxes become whole pixels, and may be lost (`redrawn`), even if the image already has this size.
    """
    height, width = example.image.shape[:2]
    if boxes_are == "ellipses":
        boxes, seen = redrawn(example.boxes, (height, width), size)
        resized = resize_to(example, size, pixels)
        return replace(resized, boxes=boxes[seen], labels=example.labels[seen], ignore=example.ignore[seen])
    if size == (height, width):
        return example
    image = resized_pixels(example.image, size, pixels)
    x, y = size[1] / width, size[0] / height
    boxes = (example.boxes * np.array([x, y, x, y])).astype(np.float32)
    scale = (example.scale[0] * x, example.scale[1] * y)
    return replace(example, image=image, boxes=boxes, scale=scale)


def resized_pixels(image: np.ndarray, size: tuple[int, int], pixels: Pixels = "mean") -> np.ndarray:
    """An image [H, W, I] resized to another (height, width); pixels as in `resize_to`."""
    if image.shape[:2] == size:
        return image
    shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    method = cv2.INTER_AREA if shrinks and pixels == "mean" else cv2.INTER_LINEAR
    return _with_images(cv2.resize(np.ascontiguousarray(image), size[::-1], interpolation=method))


def redrawn(boxes: np.ndarray, size: tuple[int, int], new_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(boxes [N, 4] recovered from masks that are resized with the image, [N] bool: which boxes were recovered).

    As MONAI 1.3.0 does it (`BoxToMask` with ellipses, `Resize` of masks, `MaskToBox`): a box [N, 4], truncated to whole
    pixels of an image of `size` (height, width), becomes the ellipse inscribed in it, which is a circle squeezed by
    omitting rows and columns; each pixel of `new_size` shows the old pixel at its top left; the bounds of what remains
    are the new box. An ellipse between those pixels is lost. A box that leaves the image, which MONAI refuses, is
    clipped.
    """
    found = np.zeros((len(boxes), 4), np.float32)
    limits = np.array([*size[::-1], *size[::-1]])
    whole = np.clip(np.trunc(boxes).astype(int), 0, limits).tolist()
    shown = [_nearest(old, new) for old, new in zip(size[::-1], new_size[::-1])]  # of columns, of rows
    for number, (x0, y0, x1, y1) in enumerate(whole):
        longest = max(x1 - x0, y1 - y0)
        places, squares = [], []
        for pixels, first, last in zip(shown, (x0, y0), (x1, y1)):
            own = np.flatnonzero((pixels >= first) & (pixels < last))
            squeezed = _nearest(longest, last - first)[pixels[own] - first] if len(own) else own
            places.append(own)
            squares.append((squeezed - (longest - 1) / 2) ** 2)
        inside = squares[0][:, None] + squares[1] <= (longest / 2) ** 2
        columns, rows = places[0][inside.any(1)], places[1][inside.any(0)]
        if len(columns):
            found[number] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return found, found[:, 2] > 0


def _nearest(old: int, new: int) -> np.ndarray:
    """For each of `new` pixels the one of `old` pixels that it shows, as in PyTorch's "nearest", in float32."""
    places = np.floor(np.arange(new, dtype=np.float32) * (np.float32(old) / np.float32(new)))
    return np.minimum(places.astype(int), old - 1)


def flip(example: Example, direction: str) -> Example:
    """Mirror "horizontal" (left and right) or "vertical"."""
    height, width = example.image.shape[:2]
    boxes = flip_boxes(example.boxes, width, height, direction)
    return replace(example, image=flip_image(example.image, direction), boxes=boxes)


def rotate_quarter(example: Example, turns: int) -> Example:
    """Rotate by `turns` x 90 degrees counter-clockwise; exact."""
    image, boxes, (x, y) = example.image, example.boxes, example.scale
    for _ in range(turns % 4):
        x1, y1, x2, y2 = boxes.T
        width = np.float32(image.shape[1])
        boxes = np.stack([y1, width - x2, y2, width - x1], axis=1)
        image, x, y = np.rot90(image), y, x
    return replace(example, image=image, boxes=boxes, scale=(x, y))


def rotate(example: Example, degrees: float, min_visible: float = 0.5) -> Example:
    """Rotate counter-clockwise about the centre by a small angle; the size stays, and new pixels are 0.

    A box becomes the bounding box of the rotated ELLIPSE inscribed in it: lesions are round, and the bounding box of
    the rotated rectangle would grow by half at 15 degrees.
    """
    height, width = example.image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    image = cv2.warpAffine(np.ascontiguousarray(example.image), matrix, (width, height), flags=cv2.INTER_LINEAR)
    radians = math.radians(degrees)
    cos, sin = math.cos(radians), math.sin(radians)
    boxes = example.boxes.astype(np.float64)
    x = (boxes[:, 0] + boxes[:, 2]) / 2 - width / 2
    y = (boxes[:, 1] + boxes[:, 3]) / 2 - height / 2
    half_x, half_y = (boxes[:, 2] - boxes[:, 0]) / 2, (boxes[:, 3] - boxes[:, 1]) / 2
    new_x, new_y = x * cos + y * sin + width / 2, -x * sin + y * cos + height / 2
    reach_x, reach_y = np.hypot(half_x * cos, half_y * sin), np.hypot(half_x * sin, half_y * cos)
    turned = np.stack([new_x - reach_x, new_y - reach_y, new_x + reach_x, new_y + reach_y], axis=1)
    return _clip_boxes(replace(example, image=_with_images(image), boxes=turned.astype(np.float32)), min_visible)


def moved(image: np.ndarray, scale: float, shift: np.ndarray) -> np.ndarray:
    """An image [H, W, 1] scaled about its centre, then moved by `shift` px (down, right); the size stays.

    Borders are filled with the mirrored image, which has the same texture.
    """
    if scale == 1.0 and not np.any(shift):
        return image
    height, width = image.shape[:2]
    centre = np.array([width - 1, height - 1]) / 2
    matrix = np.column_stack([scale * np.eye(2), centre * (1 - scale) + np.asarray(shift, float)[::-1]])
    found = cv2.warpAffine(
        np.ascontiguousarray(image[..., 0]), matrix, (width, height), flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )  # fmt: skip
    return found[..., None]


def change_greys(image: np.ndarray, gamma: float, gain: float, noise: float, rng: np.random.Generator) -> np.ndarray:
    """x -> x^gamma * gain + normal * noise, within [0, 1]; pixels that are 0 (air, padding) stay 0."""
    if gamma == 1.0 and gain == 1.0 and noise == 0.0:
        return image
    tissue = image > 0
    changed = cv2.pow(np.ascontiguousarray(image), gamma).reshape(image.shape) * np.float32(gain)
    if noise > 0:
        changed += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(noise)
    return np.clip(changed, 0.0, 1.0) * tissue


def _with_images(image: np.ndarray) -> np.ndarray:
    """[H, W, I]: OpenCV drops the last axis of a single image."""
    return image[..., None] if image.ndim == 2 else image


def _clip_boxes(example: Example, min_visible: float) -> Example:
    """Boxes clipped to the image; see `crop`."""
    height, width = example.image.shape[:2]
    boxes = np.clip(example.boxes, 0, np.array([width, height, width, height], np.float32))
    visible = area(boxes) / np.maximum(area(example.boxes), 1e-9)
    left = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    ignore = example.ignore | (visible < min_visible)
    return replace(example, boxes=boxes[left], labels=example.labels[left], ignore=ignore[left])
