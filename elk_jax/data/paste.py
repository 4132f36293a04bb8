"""Copy-paste: lesions of one record are pasted into the breast of another, with soft borders.

Images [H, W, 1] float32 in [0, 1]; boxes xyxy, px. Idea: Ghiasi et al. 2021, "Simple Copy-Paste".
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from elk_jax.data.transforms import Example
from elk_jax.images.grey import AIR
from elk_jax.images.schema import Record

MAX_PASTED = 2
MARGIN = 0.25  # of the box's sides, on each side: the ring in which the lesion fades into the breast
TRIES = 12
BREAST_SHARE = 0.95  # of the pixels of the pasted patch must be breast


def paste_lesions(example: Example, donor: Record, rng: np.random.Generator) -> Example:
    """Paste up to MAX_PASTED lesions of `donor` at random places inside the breast, clear of all boxes there.

    A lesion keeps its size relative to the image's short side. Its grey values are shifted so that the medians of its
    surroundings agree in both images. A lesion is skipped if no place is found in a few tries.
    """
    lesions = np.flatnonzero(~donor.info.ignore)
    chosen = rng.permutation(lesions)[: int(rng.integers(1, MAX_PASTED + 1))]
    zoom = min(example.image.shape[:2]) / min(donor.image.shape[:2])
    image = example.image[..., 0].copy()
    boxes, labels = list(example.boxes), list(example.labels)
    for lesion in chosen:
        patch, inner = _cut_out(donor.image[..., 0], donor.info.boxes[lesion], zoom)
        place = _find_place(image, patch.shape, np.array(boxes).reshape(-1, 4), rng)
        if place is None:
            continue
        top, left = place
        target = image[top : top + patch.shape[0], left : left + patch.shape[1]]
        weight = _soft_ellipse(patch.shape)
        ring = (weight < 0.5) & (patch > AIR) & (target > AIR)
        shift = np.median(target[ring]) - np.median(patch[ring]) if ring.any() else 0.0
        target += weight * (np.clip(patch + np.float32(shift), 0, 1) - target)
        boxes.append((inner + np.array([left, top, left, top])).astype(np.float32))
        labels.append(donor.info.labels[lesion])
    added = len(boxes) - len(example.boxes)
    return replace(
        example,
        image=image[..., None],
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int32),
        ignore=np.concatenate([example.ignore, np.zeros(added, bool)]),
    )


def _cut_out(image: np.ndarray, box: np.ndarray, zoom: float) -> tuple[np.ndarray, np.ndarray]:
    """The lesion with its margin, scaled by `zoom`, and its box inside that patch."""
    height, width = image.shape
    x1, y1, x2, y2 = box
    pad_x, pad_y = MARGIN * (x2 - x1), MARGIN * (y2 - y1)
    left, top = max(0, int(x1 - pad_x)), max(0, int(y1 - pad_y))
    right, bottom = min(width, int(np.ceil(x2 + pad_x))), min(height, int(np.ceil(y2 + pad_y)))
    patch = np.ascontiguousarray(image[top:bottom, left:right])
    inner = box - np.array([left, top, left, top], np.float32)
    if zoom == 1.0:
        return patch, inner
    size = (max(1, round(patch.shape[1] * zoom)), max(1, round(patch.shape[0] * zoom)))
    factor = np.array([size[0] / patch.shape[1], size[1] / patch.shape[0]] * 2)
    method = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
    return cv2.resize(patch, size, interpolation=method), inner * factor


def _find_place(
    image: np.ndarray, shape: tuple[int, ...], boxes: np.ndarray, rng: np.random.Generator
) -> tuple[int, int] | None:
    """(top, left) where a patch of `shape` lies in the breast and touches no box, or None."""
    room = np.array(image.shape) - np.array(shape)
    if (room < 0).any():
        return None
    for _ in range(TRIES):
        top, left = (int(rng.integers(0, limit + 1)) for limit in room)
        bottom, right = top + shape[0], left + shape[1]
        apart = (boxes[:, 0] >= right) | (boxes[:, 2] <= left) | (boxes[:, 1] >= bottom) | (boxes[:, 3] <= top)
        if apart.all() and (image[top:bottom, left:right] > AIR).mean() >= BREAST_SHARE:
            return top, left
    return None


def _soft_ellipse(shape: tuple[int, ...]) -> np.ndarray:
    """Weights [h, w]: 1 in the ellipse inscribed in the lesion's box, falling smoothly to 0 at the edge."""
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in shape)
    radius = np.sqrt(y[:, None] ** 2 + x[None, :] ** 2)
    core = 1 / (1 + 2 * MARGIN)
    t = np.clip((1 - radius) / (1 - core), 0, 1)
    return t * t * (3 - 2 * t)
