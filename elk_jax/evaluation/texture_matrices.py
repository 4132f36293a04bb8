"""Counts of grey levels in regions: neighbours, runs, zones, dependences and neighbourhoods, for many images at once.

Shapes: N images; H, W their size in pixels; G number of grey levels; M = 4 N or N groups; U different pairs.
Levels are [N, H, W] integers: 1 to G inside the region, 0 outside.
Definitions: Zwanenburg et al., Image biomarker standardisation initiative (arXiv 1612.07003), chapter 3; distance 1,
the four directions of the plane.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Offsets (rows, columns) from a pixel to its neighbour. Group d N + n is image n in direction d."""


@dataclass(frozen=True, eq=False)
class Counts:
    """How often pairs of whole numbers occur in each group; only pairs that occur, ordered by group.

    groups: M. group, first, second, number: [U].
    """

    groups: int
    group: np.ndarray
    first: np.ndarray
    second: np.ndarray
    number: np.ndarray

    def sums(self, values: np.ndarray) -> np.ndarray:
        """The sum [M] of values [U] over each group."""
        return self._reduced(np.add, values)

    def largest(self, values: np.ndarray) -> np.ndarray:
        """The largest of values [U] in each group, [M]; 0 in an empty group."""
        return self._reduced(np.maximum, values)

    def totals(self) -> np.ndarray:
        """The number of pairs in each group, [M]."""
        return self.sums(self.number)

    def by_first(self) -> np.ndarray:
        """The number of pairs with each first number, [M, largest + 1]."""
        return self.table(self.first, int(self.first.max(initial=0)) + 1)

    def by_second(self) -> np.ndarray:
        """The number of pairs with each second number, [M, largest + 1]."""
        return self.table(self.second, int(self.second.max(initial=0)) + 1)

    def table(self, values: np.ndarray, size: int) -> np.ndarray:
        """The number of pairs with each of `values` [U], whole numbers below `size`: [M, size]."""
        found = np.bincount(self.group * size + values, self.number, self.groups * size)
        return found.reshape(self.groups, size)

    @functools.cached_property
    def _present(self) -> tuple[np.ndarray, np.ndarray]:
        """The groups that have pairs, and where each starts."""
        edges = np.searchsorted(self.group, np.arange(self.groups + 1))
        present = np.flatnonzero(np.diff(edges))
        return present, edges[present]

    def _reduced(self, how: np.ufunc, values: np.ndarray) -> np.ndarray:
        present, begins = self._present
        found = np.zeros(self.groups)
        if len(present):
            found[present] = how.reduceat(values, begins)
        return found


def neighbours(levels: np.ndarray) -> Counts:
    """The levels of neighbouring pixels, the lower one first: M = 4 N groups.

    A co-occurrence matrix counts both orders: half the number of such a pair is in each of two places, or all of it on
    the diagonal.
    """
    scale = int(levels.max(initial=0)) + 1
    rows = []
    for down, right in DIRECTIONS:
        here, there = _neighbours(levels, down, right)
        codes = np.minimum(here, there) * _one(scale, scale) * scale + np.maximum(here, there)
        rows.append(codes.reshape(len(levels), -1))
    width = max(row.shape[1] for row in rows)
    return _count(np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]))) for row in rows]), scale)


def runs(levels: np.ndarray) -> Counts:
    """Level and length of every run of equal levels: M = 4 N groups."""
    height, width = levels.shape[1:]
    scale = max(height, width) + 1
    by_rows = levels.transpose(1, 0, 2)  # [H, N, W]: a run in any direction except the first goes from row to row
    by_columns = levels.transpose(2, 0, 1)
    rows = [_run_ends(by_columns, 0, scale), *(_run_ends(by_rows, right, scale) for right in (0, 1, -1))]
    return _count(np.concatenate(rows), scale)


def zones(levels: np.ndarray) -> Counts:
    """Level and size in pixels of every 8-connected zone of equal levels: M = N groups."""
    from scipy import sparse  # the import takes a moment, and few programs need it
    from scipy.sparse import csgraph

    width = levels.shape[2]
    levels = np.ascontiguousarray(levels)
    place = np.arange(levels.size, dtype=np.int32)
    equal = np.zeros((*levels.shape, len(DIRECTIONS)), bool)
    for number, (down, right) in enumerate(DIRECTIONS):
        here, there = _neighbours(levels, down, right)
        _neighbours(equal[..., number], down, right)[0][:] = (here == there) & (here > 0)
    equal = equal.reshape(-1, len(DIRECTIONS))
    steps = np.array([down * width + right for down, right in DIRECTIONS], np.int32)
    ends = (place[:, None] + steps)[equal]
    begins = np.concatenate([[0], np.cumsum(equal.sum(1, dtype=np.int32))]).astype(np.int32)
    graph = sparse.csr_matrix((np.ones(len(ends)), ends, begins), (levels.size, levels.size))
    count, labels = csgraph.connected_components(graph, directed=False)
    sizes = np.bincount(labels, minlength=count)
    member = np.empty(count, np.int64)
    member[labels] = place  # one pixel of each zone
    level = levels.reshape(-1)[member]
    scale = int(sizes.max(initial=0)) + 1
    codes = np.zeros(levels.size, np.int64)
    codes[member] = level * np.int64(scale) + sizes
    kind = type(_one(level.max(initial=0) + 1, scale))
    return _count(codes.reshape(len(levels), -1).astype(kind), scale)


def dependences(levels: np.ndarray) -> Counts:
    """Level of every pixel, and how many of the pixel and its eight neighbours have that level: M = N groups."""
    alike = np.ones(levels.shape, np.int32)
    for down, right in DIRECTIONS:
        here, there = _neighbours(levels, down, right)
        equal = here == there
        for part in _neighbours(alike, down, right):
            part += equal
    return _count((levels * 10 + alike).reshape(len(levels), -1), 10)


def tone_differences(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each level, the number of pixels with a neighbour in the region, and the sum of their absolute differences
    from the mean of those neighbours: [N, G + 1] and [N, G + 1] float64."""
    total = np.zeros(levels.shape, np.int32)
    number = np.zeros(levels.shape, np.int32)
    inside = (levels > 0).astype(np.int32)
    for down, right in DIRECTIONS:
        for sums, values in ((total, levels), (number, inside)):
            (here, there), (left, right_) = _neighbours(sums, down, right), _neighbours(values, down, right)
            here += right_
            there += left
    known = (inside > 0) & (number > 0)
    differences = np.abs(levels - total / np.maximum(number, 1))
    size = int(levels.max(initial=0)) + 1
    codes = (np.arange(len(levels))[:, None, None] * size + levels)[known]
    pixels = np.bincount(codes, minlength=len(levels) * size).astype(np.float64)
    summed = np.bincount(codes, differences[known], len(levels) * size)
    return pixels.reshape(-1, size), summed.reshape(-1, size)


def _neighbours(images: np.ndarray, down: int, right: int) -> tuple[np.ndarray, np.ndarray]:
    """Two views of images [N, H, W]: the pixels, and their neighbours in one direction."""
    height, width = images.shape[1:]
    left = max(0, -right)
    here = images[:, : height - down, left : width - max(0, right)]
    return here, images[:, down:, left + right : left + right + here.shape[2]]


def _run_ends(lines: np.ndarray, right: int, scale: int) -> np.ndarray:
    """Codes level * scale + length [N, P] of the runs from line to line [L, N, W], shifted by `right` columns each
    time, at the pixels where they end; 0 elsewhere."""
    lines = np.ascontiguousarray(lines)
    ahead = slice(max(0, right), lines.shape[2] + min(0, right))
    behind = slice(max(0, -right), lines.shape[2] + min(0, -right))
    length = np.ones(lines.shape, np.int32)
    ends = np.ones(lines.shape, bool)
    for k in range(1, len(lines)):
        on = lines[k, :, ahead] == lines[k - 1, :, behind]
        length[k, :, ahead] += on * length[k - 1, :, behind]
        ends[k - 1, :, behind] = ~on
    codes = (lines * _one(lines.max(initial=0) + 1, scale) * scale + length) * ends
    return codes.transpose(1, 0, 2).reshape(lines.shape[1], -1)


def _count(codes: np.ndarray, scale: int) -> Counts:
    """Counts of codes [M, P], first * scale + second, one group per row. Codes with first 0 do not count."""
    groups, width = codes.shape
    size = int(codes.max(initial=0)) + 1
    if size <= width:  # a table of all codes is faster than sorting
        count = np.bincount((codes + np.arange(groups)[:, None] * size).ravel(), minlength=groups * size)
        starts = np.flatnonzero(count != 0)
        group, found = np.divmod(starts, size)
        number = count[starts]
    else:
        codes = np.sort(codes.astype(np.uint16) if size <= 1 << 16 else codes, axis=1)  # short ones sort faster
        new = np.ones(codes.shape, bool)
        np.not_equal(codes[:, 1:], codes[:, :-1], out=new[:, 1:])
        starts = np.flatnonzero(new)
        group, number = starts // width, np.diff(starts, append=codes.size)
        found = codes.ravel()[starts].astype(np.int64)
    first, second = np.divmod(found, scale)
    kept = first > 0
    return Counts(groups, group[kept], first[kept], second[kept], number[kept])


def _one(first: int, scale: int) -> np.integer:
    """1, in the narrowest type that holds codes of two numbers."""
    return np.int32(1) if int(first) * int(scale) < 2**31 else np.int64(1)  # type: ignore[return-value]
