"""Images as PyRadiomics prepares and filters them before it measures features: normalised, halved, wavelets, Laplacian.

Shapes: H, W size of an image in pixels; h, w that of the prepared one; B images of one size.
A filter is linear along rows and along columns: it is a pair of matrices, made once for a size.
Sources: PyRadiomics (van Griethuysen et al. 2017), `imageoperations.py`; ITK's cubic B-splines (Unser 1999) and
recursive Gaussians (Deriche 1993, Farneback and Westin 2006); coif1 and the stationary transform of PyWavelets.
"""

from __future__ import annotations

import functools

import numpy as np

COIF1 = (
    *(-0.015655728135791993, -0.07273261951252645, 0.3848648468648578),
    *(0.8525720202116004, 0.3378976624574818, -0.07273261951252645),
)
"""Low-pass filter of the wavelet coif1."""

SCALE = 100.0
"""Standard deviation of the grey values of a normalised image."""

PAD = 10
"""Pixels of the halved image that are kept around a region, since filters look beyond it."""

WAVELETS = ("wavelet-LH", "wavelet-HL", "wavelet-HH", "wavelet-LL")
"""Low or high along the rows' pixels, then along the columns'."""


def normalised(image: np.ndarray) -> np.ndarray:
    """Grey values [H, W] of mean 0 and deviation SCALE, float64. NaN for a constant image."""
    values = image.astype(np.float64)
    spread = values.std(ddof=1) if values.size > 1 else 0.0
    return (values - values.mean()) / (spread or np.nan) * SCALE


def halved(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask [H, W] at every second pixel, between pixels by cubic B-splines: [h, w] float64 and bool.

    Pixels further than PAD from the bounding box of the mask are left out. A place beyond the last pixel, which an odd
    size has, is 0 and outside the mask.
    """
    box = bounds(mask)
    grids = [_grid(low, high, size) for (low, high), size in zip(box, image.shape)]
    rows, columns = (_spline(size, *grid) for grid, size in zip(grids, image.shape))
    small = rows @ image.astype(np.float64) @ columns.T
    (down, known_down), (right, known_right) = (
        _nearest(*grid, size, interpolated) for grid, size, interpolated in zip(grids, image.shape, (False, True))
    )
    return small, mask[np.ix_(down, right)] & np.outer(known_down, known_right)


def bounds(mask: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last row, first and last column of a region [H, W] that is not empty."""
    found = []
    for axis in (1, 0):
        places = np.flatnonzero(mask.any(axis))
        found.append((int(places[0]), int(places[-1])))
    return found[0], found[1]


def wavelets(images: np.ndarray) -> dict[str, np.ndarray]:
    """The four parts of the stationary wavelet transform of images [B, h, w] by coif1, by WAVELETS."""
    height, width = images.shape[1:]
    low_rows, high_rows = _wavelet(height)
    low_columns, high_columns = _wavelet(width)
    along = {"L": images @ low_columns.T, "H": images @ high_columns.T}
    down = {"L": low_rows, "H": high_rows}
    return {name: down[name[-1]] @ along[name[-2]] for name in WAVELETS}


def laplacians(images: np.ndarray, deviations: tuple[float, ...], spacing: float) -> dict[str, np.ndarray]:
    """The Laplacian of Gaussians of images [B, h, w], times the squared deviation, by name; float32, as ITK has it.

    deviations, spacing: in mm, which are pixels of the image that was halved (spacing 2).
    """
    found = {}
    for deviation in deviations:
        (smooth_rows, bent_rows), (smooth, bent) = (_gaussian(size, deviation / spacing) for size in images.shape[1:])
        total = bent_rows @ (images @ smooth.T) + smooth_rows @ (images @ bent.T)
        name = f"log-sigma-{str(float(deviation)).replace('.', '-')}-mm-3D"
        found[name] = total.astype(np.float32)
    return found


def _grid(low: int, high: int, size: int) -> tuple[int, int]:
    """First and last place of the halved grid for the rows low to high of `size`."""
    first = max(0, int(np.floor((low - 0.5) / 2 - PAD)))
    last = min(int(np.ceil(size / 2)) - 1, int(np.ceil((high + 0.5) / 2 + PAD)))
    return first, last


def _nearest(first: int, last: int, size: int, interpolated: bool) -> tuple[np.ndarray, np.ndarray]:
    """The pixel nearest to each place of a grid, and whether there is one. Half way it is the later one.

    interpolated: places are computed as ITK does along rows, between the two ends; rounding takes some to the pixel
    before.
    """
    steps = np.arange(last - first + 1)
    along = steps / len(steps) * (2.0 * len(steps)) if interpolated else 2.0 * steps
    nearest = np.floor(2 * first + 0.5 + along + 0.5).astype(int)
    return np.minimum(nearest, size - 1), 2 * (first + steps) + 1 < size


@functools.lru_cache(maxsize=64)
def _spline(size: int, first: int, last: int) -> np.ndarray:
    """Values between pixels 2 k and 2 k + 1, for k from first to last: [k, size]. The image is mirrored at its ends."""
    if size == 1:
        return np.ones((last - first + 1, 1))
    reflect = lambda k: (size - 1) - abs((size - 1) - k % (2 * size - 2))
    weights = np.zeros((size, size))  # of coefficients in the values at pixels
    for k in range(size):
        for step, weight in ((-1, 1 / 6), (0, 4 / 6), (1, 1 / 6)):
            weights[k, reflect(k + step)] += weight
    between = np.zeros((last - first + 1, size))
    for row, k in enumerate(range(first, last + 1)):
        if 2 * k + 0.5 < size - 0.5:
            for step, weight in ((-1, 1 / 48), (0, 23 / 48), (1, 23 / 48), (2, 1 / 48)):
                between[row, reflect(2 * k + step)] += weight
    return np.linalg.solve(weights.T, between.T).T


@functools.lru_cache(maxsize=16)
def _wavelet(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Low-pass and high-pass filter along an axis: [size, size] each, periodic; an odd size is padded by its first."""
    low = np.array(COIF1)
    high = low[::-1] * (-1.0) ** np.arange(1, len(low) + 1)
    padded = size + size % 2
    found = []
    for taps in (low, high):
        matrix = np.zeros((size, size))
        for row in range(size):
            for k, tap in enumerate(taps):
                place = (row - k + len(taps) // 2) % padded
                matrix[row, place if place < size else 0] += tap
        found.append(matrix)
    return found[0], found[1]


@functools.lru_cache(maxsize=16)
def _gaussian(size: int, deviation: float) -> tuple[np.ndarray, np.ndarray]:
    """Smoothing by a Gaussian, and its second derivative times the squared deviation: [size, size] each.

    deviation: in pixels. Recursive filters of order 4, as ITK's; the image goes on beyond its ends as its last pixel.
    """
    smooth, bent = _recursive(deviation)
    return _run(size, *smooth), _run(size, *bent)


_WAVES, _DECAYS = (0.6681, 2.0787), (-1.3932, -1.3732)
_COSINES, _SINES = {0: (1.3530, -0.3531), 2: (-1.3563, 0.3446)}, {0: (1.8151, 0.0902), 2: (5.2318, -2.2355)}


def _recursive(deviation: float) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Numerator N0..N3 and denominator D1..D4 of the causal half of a Gaussian and of its second derivative."""
    (cos1, cos2), (sin1, sin2) = (tuple(of(wave / deviation) for wave in _WAVES) for of in (np.cos, np.sin))
    exp1, exp2 = (np.exp(decay / deviation) for decay in _DECAYS)
    d = np.array(
        [
            -2 * (exp2 * cos2 + exp1 * cos1),
            4 * cos2 * cos1 * exp1 * exp2 + exp1**2 + exp2**2,
            -2 * cos1 * exp1 * exp2**2 - 2 * cos2 * exp2 * exp1**2,
            exp1**2 * exp2**2,
        ]
    )
    steps = np.arange(1, 5)
    sd, dd, ed = 1 + d.sum(), steps @ d, steps**2 @ d

    def numerator(order: int) -> np.ndarray:
        (a1, a2), (b1, b2) = _COSINES[order], _SINES[order]
        return np.array(
            [
                a1 + a2,
                exp2 * (b2 * sin2 - (a2 + 2 * a1) * cos2) + exp1 * (b1 * sin1 - (a1 + 2 * a2) * cos1),
                2 * exp1 * exp2 * ((a1 + a2) * cos2 * cos1 - b1 * cos2 * sin1 - b2 * cos1 * sin2)
                + a2 * exp1**2
                + a1 * exp2**2,
                exp2 * exp1**2 * (b2 * sin2 - a2 * cos2) + exp1 * exp2**2 * (b1 * sin1 - a1 * cos1),
            ]
        )

    zero, second = numerator(0), numerator(2)
    mixed = second - (2 * second.sum() - sd * second[0]) / (2 * zero.sum() - sd * zero[0]) * zero
    sn, dn, en = mixed.sum(), steps[:3] @ mixed[1:], steps[:3] ** 2 @ mixed[1:]
    curvature = (en * sd**2 - ed * sn * sd - 2 * dn * dd * sd + 2 * dd**2 * sn) / sd**3
    mean = 2 * zero.sum() / sd - zero[0]
    return (zero / mean, d), (mixed * deviation**2 / curvature, d)


def _run(size: int, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """The recursive filter, forwards and backwards, as a matrix [size, size]."""
    m = np.append(n[1:], 0) - d * n[0]  # of the half that runs backwards, which leaves the pixel itself out
    identity = np.eye(size)
    forwards = _one_way(identity, n, d)
    behind = np.concatenate([identity[1:], identity[-1:]])  # of each pixel, the next one
    backwards = _one_way(behind[::-1], m, d)[::-1]
    return forwards + backwards


def _one_way(inputs: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """y[k] = sum_i n_i x[k - i] - sum_j d_j y[k - j] over rows, as if the first row had been there for ever."""
    outputs = np.zeros_like(inputs)
    before = inputs[0] * n.sum() / (1 + d.sum())
    for k in range(len(inputs)):
        outputs[k] = sum(n[i] * inputs[max(k - i, 0)] for i in range(4))
        outputs[k] -= sum(d[j] * (outputs[k - j - 1] if k > j else before) for j in range(4))
    return outputs
