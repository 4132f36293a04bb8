"""Criteria by which a prediction hits a lesion, as functions of boxes, for FROC.

Shapes: K predictions, N lesions, G regions of one image; boxes xyxy in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from elk_jax.errors import UserError
from elk_jax.fields import ABOVE_ZERO, Range
from elk_jax.images.boxes import iou


@dataclass(frozen=True)
class Criterion:
    """A rule with its name; call it as `criterion(boxes[K, 4], gt_boxes[N, 4]) -> hits[K, N] bool`.

    by_region: regions are counted in place of lesions; see `regions`.
    """

    name: str
    rule: Callable[[np.ndarray, np.ndarray], np.ndarray]
    by_region: bool = False

    def __call__(self, boxes: np.ndarray, gt_boxes: np.ndarray) -> np.ndarray:
        return self.rule(boxes, gt_boxes)


def iou_at_least(threshold: float = 0.3) -> Criterion:
    """Intersection over union of at least `threshold`, above 0 and up to 1; 0.3 is ELK's rule."""
    _check(threshold, Range(0, 1, above=True), "the threshold of IoU")
    return Criterion(f"IoU >= {threshold:g}", lambda boxes, gt_boxes: iou(boxes, gt_boxes) >= threshold)


MOST_PIXELS, MOST_DIAGONALS = 1000.0, 5.0
"""Largest distance: beyond it, nearly every prediction in an image would be a hit."""


def _check(value: float, limits: Range, what: str) -> None:
    if not limits.takes(value):
        raise UserError(f"{what} is {value!r}", where="criterion", todo=f"give a number {limits}")


ELK_RULE = iou_at_least(0.3)


def centre_in_box() -> Criterion:
    """The centre of the prediction is inside the box of the lesion (borders included), whatever the prediction's size.

    This is the rule for marks in computer-aided detection, with the lesion's box in place of its outline. Source:
    Petrick et al., Evaluation of computer-aided detection and diagnosis systems, Medical Physics 40 (2013), 087001.
    """
    return Criterion("centre in box", _centre_in_box)


def regions(threshold: float = 0.3) -> Criterion:
    """IoU of at least `threshold` with a region; another box on a found region is neither a hit nor a false positive.

    Lesions whose boxes overlap form one region (`regions_of`), which is found once: at the score of the best prediction
    that has that IoU with one of its lesions or with the smallest box around all of them. A prediction that hits no
    region but lies on one (`lies_on`, for the lesions and the box around them) does not count if the region is found at
    its score or a higher one. Otherwise it is a false positive: it came before the region was found.
    """
    return Criterion(f"regions, {iou_at_least(threshold).name}", iou_at_least(threshold).rule, by_region=True)


ON_LESION = 0.05
"""IoU from which a box lies on a lesion, even if it is far from hitting it."""


def lies_on(boxes: np.ndarray, gt_boxes: np.ndarray) -> np.ndarray:
    """Whether boxes lie on lesions [K, N]: IoU of at least ON_LESION, or the centre of the box is inside the lesion's.

    A box around several lumps lies on each that it does not dwarf; a small box within a large lesion lies on it too.
    """
    return (iou(boxes, gt_boxes) >= ON_LESION) | _centre_in_box(boxes, gt_boxes)


def regions_of(gt_boxes: np.ndarray) -> np.ndarray:
    """The number of the region [N] of each lesion, from 0 in the order of their first lesions.

    Lesions belong to one region if their boxes overlap, or if a chain of such lesions connects them.
    """
    linked = iou(gt_boxes, gt_boxes) > 0
    numbers = np.full(len(gt_boxes), -1)
    for first in range(len(gt_boxes)):
        if numbers[first] >= 0:
            continue
        reached = np.arange(len(gt_boxes)) == first
        while (grown := reached | linked[reached].any(axis=0)).sum() > reached.sum():
            reached = grown
        numbers[reached] = numbers.max() + 1
    return numbers


def centre_distance(pixels: float = 100.0, diagonals: float = 0.5) -> Criterion:
    """Distance of the centres at most max(`diagonals` x diagonal of the lesion's box, `pixels`): DBTex, in plane.

    As in DBTex, a prediction within reach of several lesions hits only the nearest one. pixels: up to MOST_PIXELS.
    diagonals: up to MOST_DIAGONALS. At least one of them is above 0.
    """
    _check(pixels, Range(0, MOST_PIXELS), "the distance in pixels")
    _check(diagonals, Range(0, MOST_DIAGONALS), "the distance in diagonals")
    _check(max(pixels, diagonals), ABOVE_ZERO, "the larger of the distances")

    def rule(boxes: np.ndarray, gt_boxes: np.ndarray) -> np.ndarray:
        distance = np.linalg.norm(_centres(boxes)[:, None] - _centres(gt_boxes)[None], axis=-1)
        limit = np.maximum(diagonals * np.linalg.norm(gt_boxes[:, 2:] - gt_boxes[:, :2], axis=-1), pixels)
        fits = distance <= limit[None]
        if gt_boxes.shape[0] == 0:
            return fits
        nearest = np.argmin(np.where(fits, distance, np.inf), axis=1)
        return fits & (np.arange(len(gt_boxes))[None] == nearest[:, None])

    return Criterion(f"centre distance <= max({diagonals:g} diagonal, {pixels:g} px)", rule)


def criterion_from_text(text: str) -> Criterion:
    """`iou:0.3`, `centre_in_box`, `regions:0.3` or `centre_distance:100:0.5` (pixels, diagonals) -> a criterion."""
    makers: dict[str, Callable[..., Criterion]] = {
        "iou": iou_at_least,
        "centre_in_box": centre_in_box,
        "regions": regions,
        "centre_distance": centre_distance,
    }
    name, *values = text.split(":")
    try:
        return makers[name](*map(float, values))
    except UserError as error:
        raise UserError(f"in {text!r}, {error.what}", where="criterion", todo=error.todo) from error
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"unknown criterion {text!r}",
            where="criterion",
            todo="use iou:0.3, centre_in_box, regions:0.3 or centre_distance:100:0.5",
        ) from error


def _centres(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _centre_in_box(boxes: np.ndarray, gt_boxes: np.ndarray) -> np.ndarray:
    centres = _centres(boxes)[:, None]
    return np.all((centres >= gt_boxes[None, :, :2]) & (centres <= gt_boxes[None, :, 2:]), axis=-1)
