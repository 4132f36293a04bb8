"""Anchors: NumPy constants of an image size, computed once, and their choice from the sizes of the lesions.

Order: levels from fine to coarse; inside a level row by row, column by column, then the anchors of one cell. This is
the order in which a convolution's [H, W, cell anchors * outputs] is flattened, and that of detectron2 and torchvision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from elk_jax.errors import UserError


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float], rounded: bool = False) -> np.ndarray:
    """Anchors[K, 4] float32 of one cell, centred on the origin. `sizes` are square roots of areas, ratios height /
    width.

    rounded=False: detectron2's, sizes outermost. rounded=True: torchvision's, ratios outermost and the coordinates
    rounded to whole pixels. The two orders agree where a level has one size, which is the rule with an FPN.
    """
    if rounded:
        root = np.sqrt(np.asarray(ratios, np.float32))
        sides = np.asarray(sizes, np.float32)
        widths = ((1 / root)[:, None] * sides[None, :]).reshape(-1)
        heights = (root[:, None] * sides[None, :]).reshape(-1)
        return np.round(np.stack([-widths, -heights, widths, heights], axis=1) / 2).astype(np.float32)
    boxes = []
    for size in sizes:
        for ratio in ratios:
            width = math.sqrt(size**2 / ratio)
            height = ratio * width
            boxes.append([-width / 2, -height / 2, width / 2, height / 2])
    return np.array(boxes, np.float32).reshape(-1, 4)


def level_anchors(
    grid: tuple[int, int],
    stride: int | tuple[int, int],
    sizes: Sequence[float],
    ratios: Sequence[float],
    offset: float = 0.0,
    rounded: bool = False,
) -> np.ndarray:
    """Anchors[grid_h * grid_w * K, 4] float32 of one level: the cell's anchors at every (column, row) * stride.

    grid: (rows, columns) of the feature map. stride: pixels, or (vertical, horizontal). offset: centre of the first
    anchor in units of the stride (0 for detectron2's and torchvision's weights, 0.5 for the middle of the cell).
    """
    stride_y, stride_x = stride if isinstance(stride, tuple) else (stride, stride)
    y = (np.arange(grid[0], dtype=np.float32) + np.float32(offset)) * np.float32(stride_y)
    x = (np.arange(grid[1], dtype=np.float32) + np.float32(offset)) * np.float32(stride_x)
    y, x = np.meshgrid(y, x, indexing="ij")
    shifts = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4)
    return (shifts + cell_anchors(sizes, ratios, rounded)[None]).reshape(-1, 4)


def grid_size(image_size: tuple[int, int], stride: int) -> tuple[int, int]:
    """(rows, columns) of the feature map of this stride: every halving rounds up, as padded convolutions do."""
    return math.ceil(image_size[0] / stride), math.ceil(image_size[1] / stride)


def pyramid_anchors(
    image_size: tuple[int, int],
    strides: Sequence[int],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float],
    offset: float = 0.0,
    rounded: bool = False,
) -> tuple[np.ndarray, ...]:
    """Anchors of every level, [A_l, 4] float32 each, for a padded image of `image_size` = (height, width) pixels.

    strides: pixels per cell of each level. sizes: per level a tuple of anchor sizes. ratios: height / width, shared.
    rounded=True is torchvision's convention in full: whole pixels (see `cell_anchors`), and the distance between
    anchors is image_size // grid, which is less than the stride where the stride does not divide the image (800 pixels
    at stride 64 are 13 rows, 61 pixels apart). Weights trained with torchvision expect its anchors there.
    """
    if len(strides) != len(sizes):
        todo = "give one tuple of sizes per level"
        raise UserError(f"{len(sizes)} anchor sizes for {len(strides)} feature levels", where="anchor_sizes", todo=todo)
    levels = []
    for stride, level_sizes in zip(strides, sizes):
        grid = grid_size(image_size, stride)
        step = (image_size[0] // grid[0], image_size[1] // grid[1]) if rounded else (stride, stride)
        levels.append(level_anchors(grid, step, level_sizes, ratios, offset, rounded))
    return tuple(levels)


def plan_sizes(
    boxes: np.ndarray, num_levels: int, coverage: float = 0.95, smallest_step: float = 2 ** (1 / 3)
) -> tuple[tuple[float], ...]:
    """One anchor size per level, from the lesions of the training split (in pixels of the RESIZED images).

    boxes[N, 4]; the size of a box is the square root of its area. The central `coverage` of all sizes is cut into
    `num_levels` parts of equal ratio, and a level's anchor is the geometric middle of its part: no lesion inside the
    range is then further from an anchor than half a part, in log scale, and its IoU with a well placed square anchor of
    that size is at least the square of that ratio. Sizes of neighbouring levels differ by `smallest_step` at least, so
    that lesions of one size do not give equal levels. A size far below four strides of its level leaves gaps between
    anchors. Raises UserError when no box has an area.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    sides = sides[np.isfinite(sides).all(1) & (sides > 0).all(1)]
    if not len(sides):
        todo = "give anchor sizes by hand or check the training split's boxes"
        raise UserError("no box to plan anchors from", where="anchor_sizes", todo=todo)
    log_sizes = 0.5 * np.log(sides.prod(1))
    low, high = np.quantile(log_sizes, [(1 - coverage) / 2, (1 + coverage) / 2])
    step = max((high - low) / num_levels, math.log(smallest_step))
    middle = (low + high) / 2
    planned = np.exp(middle + step * (np.arange(num_levels) - (num_levels - 1) / 2))
    return tuple((round(float(size), 2),) for size in planned)


def scaled(sizes: Sequence[Sequence[float]], planned: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    """The anchor sizes of every level with the ratios that they have, and the planned size as their geometric mean."""
    means = [math.exp(sum(map(math.log, level)) / len(level)) for level in sizes]
    return tuple(
        tuple(round(size * wanted / mean, 2) for size in level)
        for level, mean, (wanted,) in zip(sizes, means, planned, strict=True)
    )
