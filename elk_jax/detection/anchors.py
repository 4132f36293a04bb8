"""Anchors: NumPy constants for an image size, computed once, and the choice of their sizes from those of the lesions.

Order: levels from fine to coarse; within a level row by row, column by column, then the anchors of one cell. This is
the order in which a convolution's [H, W, cell anchors * outputs] is flattened, and that of detectron2 and torchvision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from elk_jax.errors import UserError


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float], rounded: bool = False) -> np.ndarray:
    """Anchors[K, 4] float32 of one cell, centred on the origin. sizes: square roots of areas. ratios: height / width.

    rounded=False: as in detectron2, sizes outermost. rounded=True: as in torchvision, ratios outermost and coordinates
    rounded to whole pixels. The two orders agree if a level has one size, as is usual with an FPN.
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
    anchor in units of the stride (0 for weights of detectron2 and torchvision, 0.5 for the middle of the cell).
    """
    stride_y, stride_x = stride if isinstance(stride, tuple) else (stride, stride)
    y = (np.arange(grid[0], dtype=np.float32) + np.float32(offset)) * np.float32(stride_y)
    x = (np.arange(grid[1], dtype=np.float32) + np.float32(offset)) * np.float32(stride_x)
    y, x = np.meshgrid(y, x, indexing="ij")
    shifts = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4)
    return (shifts + cell_anchors(sizes, ratios, rounded)[None]).reshape(-1, 4)


def grid_size(image_size: tuple[int, int], stride: int) -> tuple[int, int]:
    """(rows, columns) of the feature map with this stride: every halving rounds up, as padded convolutions do."""
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
    rounded=True is torchvision's complete convention: whole pixels (see `cell_anchors`), and a distance between anchors
    of image_size // grid, which is less than the stride if the image is not divisible by the stride (800 pixels at
    stride 64 give 13 rows, 61 pixels apart). Weights trained with torchvision expect its anchors there.
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

    boxes[N, 4]; the size of a box is the square root of its area. The central `coverage` of all sizes is divided into
    `num_levels` parts of equal ratio, and a level's anchor is the geometric middle of its part. In log scale, no lesion
    inside the range is then further than half a part from an anchor, and its IoU with a well placed square anchor of
    that size is at least the square of that ratio. Sizes of neighbouring levels differ by at least `smallest_step`, so
    that lesions of a single size do not give equal levels. A size far below four strides of its level leaves gaps
    between anchors. Raises UserError if no box has an area.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    sides = sides[np.isfinite(sides).all(1) & (sides > 0).all(1)]
    if not len(sides):
        todo = "set the anchor sizes, or check the boxes of the training split"
        raise UserError("there are no boxes to plan anchor sizes from", where="anchor_sizes", todo=todo)
    log_sizes = 0.5 * np.log(sides.prod(1))
    low, high = np.quantile(log_sizes, [(1 - coverage) / 2, (1 + coverage) / 2])
    step = max((high - low) / num_levels, math.log(smallest_step))
    middle = (low + high) / 2
    planned = np.exp(middle + step * (np.arange(num_levels) - (num_levels - 1) / 2))
    return tuple((round(float(size), 2),) for size in planned)


def scaled(sizes: Sequence[Sequence[float]], planned: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    """The anchor sizes of every level, scaled so that their geometric mean is the planned size."""
    means = [math.exp(sum(map(math.log, level)) / len(level)) for level in sizes]
    return tuple(
        tuple(round(size * wanted / mean, 2) for size in level)
        for level, mean, (wanted,) in zip(sizes, means, planned, strict=True)
    )
