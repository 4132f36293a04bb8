"""Counts of grey levels of one region: co-occurrences, runs, zones and neighbourhoods.

Shapes: H, W image in pixels; G number of grey levels. Levels are [H, W] int32: 1 to G inside the region, 0 outside.
Definitions: Zwanenburg et al., Image biomarker standardisation initiative (arXiv 1612.07003), chapter 3; distance 1,
the four directions of the plane.
"""

from __future__ import annotations

import cv2
import numpy as np

DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Offsets (rows, columns) from a pixel to its neighbour."""


def cooccurrences(levels: np.ndarray, count: int) -> np.ndarray:
    """How often levels i + 1 and j + 1 are neighbours in each direction, both ways: [4, G, G] float64."""
    found = np.zeros((len(DIRECTIONS), count, count))
    for matrix, (down, right) in zip(found, DIRECTIONS):
        here, there = _neighbours(levels, down, right)
        both = (here > 0) & (there > 0)
        pairs = (here[both] - 1) * count + there[both] - 1
        matrix += np.bincount(pairs, minlength=count * count).reshape(count, count)
        matrix += matrix.T.copy()
    return found


def runs(levels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each direction, level and length of every run of equal levels: four pairs of [R] and [R]."""
    height, width = levels.shape
    # Zeros between the lines end a run; a shear by one column per row makes diagonals vertical.
    sheared = np.zeros((height, width + height), levels.dtype)
    mirrored = sheared.copy()
    for row in range(height):
        sheared[row, height - row : height - row + width] = levels[row]
        mirrored[row, height - row : height - row + width] = levels[row, ::-1]
    return [_run_lengths(lines) for lines in (levels, levels.T, sheared.T, mirrored.T)]


def zones(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Level and size in pixels of every 8-connected zone of equal levels: [Z] and [Z]."""
    found_levels, found_sizes = [], []
    for level in np.unique(levels[levels > 0]):
        count, _, stats, _ = cv2.connectedComponentsWithStats((levels == level).astype(np.uint8), connectivity=8)
        found_levels.append(np.full(count - 1, level))
        found_sizes.append(stats[1:, cv2.CC_STAT_AREA])
    return np.concatenate(found_levels), np.concatenate(found_sizes)


def tone_differences(levels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """For each level, the number of pixels with a neighbour in the region, and the sum of their absolute differences
    from the mean of those neighbours: [G] and [G] float64."""
    inside = (levels > 0).astype(np.float64)
    kernel = np.ones((3, 3))
    kernel[1, 1] = 0
    total = cv2.filter2D(levels.astype(np.float64), -1, kernel, borderType=cv2.BORDER_CONSTANT)
    number = np.round(cv2.filter2D(inside, -1, kernel, borderType=cv2.BORDER_CONSTANT))
    known = (levels > 0) & (number > 0)
    differences = np.abs(levels[known] - total[known] / number[known])
    pixels = np.bincount(levels[known] - 1, minlength=count).astype(np.float64)
    return pixels, np.bincount(levels[known] - 1, weights=differences, minlength=count)


def _neighbours(levels: np.ndarray, down: int, right: int) -> tuple[np.ndarray, np.ndarray]:
    """Two views of levels: the pixels, and their neighbours in one direction."""
    height, width = levels.shape
    left = max(0, -right)
    here = levels[: height - down, left : width - max(0, right)]
    return here, levels[down:, left + right : left + right + here.shape[1]]


def _run_lengths(lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    flat = np.pad(lines, ((0, 0), (0, 1))).ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=0) != 0)
    lengths = np.diff(np.append(starts, len(flat)))
    level = flat[starts]
    return level[level > 0], lengths[level > 0]
