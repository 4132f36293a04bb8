"""Placement of painted lesions: a healthy window and a box in it, sampled like the lesions of the training split.

Shapes: H, W image size in pixels; S side of the square window; N boxes, xyxy, px.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo
from elk_jax.images.windows import Window, blocked_by, count_covered, cut, draw_corner, shifted
from elk_jax.randomness import Purpose, generator, random_order
from elk_jax.synthesis.canvases import healthy_window

AREAS = ("free", "medium")
TRIES = 5
"""Sizes drawn per window, and windows drawn per image."""


@dataclass(frozen=True)
class AreaRule:
    """Sizes of painted lesions: box area (px^2) and height / width, each uniform between two bounds."""

    area: tuple[float, float]
    ratio: tuple[float, float]

    def __post_init__(self) -> None:
        for name, (low, high) in (("area", self.area), ("ratio", self.ratio)):
            if not (0 < low <= high and np.isfinite(high)):
                raise UserError(f"lesion {name} from {low:g} to {high:g}", where=name, todo="give 0 < low <= high")

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """(height, width) in whole pixels, at least 1."""
        area, ratio = rng.uniform(*self.area), rng.uniform(*self.ratio)
        return max(1, round(float(np.sqrt(area * ratio)))), max(1, round(float(np.sqrt(area / ratio))))


def area_rule(training_boxes: np.ndarray, kind: str = "free", size: int | None = None) -> AreaRule:
    """The size rule derived from the lesions of the TRAINING split.

    training_boxes: [N, 4], without ignore boxes.
    kind: "free", area from the smallest to the largest box; or "medium", between the quartiles. The ratio
        height / width lies within one standard deviation of its mean (not below the smallest one seen).
    size: px; boxes with a side that is not below it are left out, as in the training of the inpainter.
    UserError if no box is left, a box is empty, or the kind is unknown.
    Source: Montoya-del-Angel et al. 2024.
    """
    if kind not in AREAS:
        raise UserError(f"unknown lesion area '{kind}'", where="area", todo=f"choose one of: {', '.join(AREAS)}")
    boxes = np.asarray(training_boxes, np.float64).reshape(-1, 4)
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    if len(boxes) and min(width.min(), height.min()) <= 0:
        raise UserError("a training box has no area", where=f"{len(boxes)} boxes", todo="repair or remove it")
    fits = np.ones(len(boxes), bool) if size is None else np.maximum(width, height) < size
    if not fits.any():
        least = f", the smallest needs {np.maximum(width, height).min():.0f} px" if len(boxes) else ""
        raise UserError(
            f"no training lesion fits the window: {size or 'any'} px{least}",
            where=f"{len(boxes)} boxes",
            todo="use a larger window, or a split with lesions",
        )
    area, ratio = (width * height)[fits], (height / width)[fits]
    low, high = (area.min(), area.max()) if kind == "free" else np.quantile(area, [0.25, 0.75])
    mean, spread = ratio.mean(), ratio.std()
    return AreaRule((float(low), float(high)), (float(max(mean - spread, ratio.min())), float(mean + spread)))


def find_box(breast: np.ndarray, boxes: np.ndarray, rule: AreaRule, rng: np.random.Generator) -> Window | None:
    """A box in a window, fully inside the breast and clear of known lesions; None if TRIES sizes find no place.

    breast: [S, S] bool. boxes: [N, 4] in the window's pixels. For each size drawn, all places that fit are equally
    likely.
    """
    blocked = ~breast | blocked_by(boxes, *breast.shape)
    for _ in range(TRIES):
        height, width = rule.draw(rng)
        corner = draw_corner(count_covered(blocked, height, width) == 0, rng)
        if corner is not None:
            x, y = corner
            return x, y, x + width, y + height
    return None


@dataclass(frozen=True)
class Placement:
    """The placement of lesion `index` of a set."""

    position: int  # of the canvas among the images given
    window: Window  # in the pixels of the canvas
    box: Window  # in the pixels of the window
    provenance: dict  # canvas, patient_id, window, box (in the canvas), seed, index: plain, for the annotation file


def plan_placement(
    seed: int,
    index: int,
    infos: Sequence[ImageInfo],
    positions: Sequence[int],
    breast_of: Callable[[int], np.ndarray],
    size: int,
    rule: AreaRule,
) -> Placement:
    """The placement of lesion `index`: a function of (seed, index) only, so that an interrupted set can be resumed.

    positions: the images that can be canvases (`canvases.canvas_positions`); one round of indices visits each once,
        in a new order each round. An image without a healthy window is replaced by a random other one.
    breast_of: position -> breast mask [H, W] bool.
    UserError if no image has a healthy window with room for a lesion.
    """
    count = len(positions)
    if not count:
        raise UserError("no canvas to paint on", todo="give images of training patients")
    order = random_order(count, seed, Purpose.CANVAS_ORDER, index // count)
    rng = generator(seed, Purpose.PLACEMENT, index)
    first = index % count
    others = rng.permutation(np.delete(order, first))
    healthy = False
    for chosen in (order[first], *others):
        position = int(positions[int(chosen)])
        info, breast = infos[position], breast_of(position)
        for _ in range(TRIES):
            window = healthy_window(breast, info.boxes, size, rng)
            if window is None:
                break
            healthy = True
            box = find_box(cut(breast, window), np.zeros((0, 4)), rule, rng)
            if box is not None:
                provenance = {
                    "canvas": info.image_id,
                    "patient_id": info.patient_id,
                    "window": list(window),
                    "box": list(shifted(box, window[0], window[1])),
                    "seed": seed,
                    "index": index,
                }
                return Placement(position, window, box, provenance)
    if healthy:
        what = f"no window of {size} px has room for a lesion in the breast"
        raise UserError(what, where=f"{count} canvases", todo="allow smaller lesions")
    what, todo = f"no healthy window of {size} px found", "use a smaller window or other images"
    raise UserError(what, where=f"{count} canvases", todo=todo)
