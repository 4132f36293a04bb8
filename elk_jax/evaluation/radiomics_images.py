"""Preparation and filtering of images as in PyRadiomics: normalisation, halving, wavelets, Laplacians.

Shapes: B images of one size, H, W in pixels; h, w that of the prepared ones. All filters work along one axis at a time,
without matrix products where the threads of those of large images would wait for each other.
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
"""Pixels of the halved image that are kept around a region, since filters reach beyond it."""

POLE = 3**0.5 - 2
"""Pole of the recursive filter that computes the coefficients of cubic B-splines."""

HORIZON = 40
"""Number of lines on which the first coefficient depends: higher powers of POLE are below rounding."""

WAVELETS = ("wavelet-LH", "wavelet-HL", "wavelet-HH", "wavelet-LL")
"""Low or high pass along the pixels of the rows, then of the columns."""


def normalised(images: np.ndarray) -> np.ndarray:
    """Grey values [B, H, W] with mean 0 and standard deviation SCALE, float64. NaN for a constant image."""
    values = images.astype(np.float64)
    spread = values.std((1, 2), ddof=1, keepdims=True) if values[0].size > 1 else np.zeros((len(values), 1, 1))
    return (values - values.mean((1, 2), keepdims=True)) / np.where(spread > 0, spread, np.nan) * SCALE


def halved(images: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images and masks [B, H, W] resampled to every second place, by cubic B-splines: [B, h, w], float64 and bool.

    All masks have the same bounding box; pixels further than PAD from it are left out. A place beyond the last pixel,
    which occurs with an odd size, is 0 and outside the mask.
    """
    height, width = images.shape[1:]
    rows, columns = (_grid(low, high, size) for (low, high), size in zip(bounds(masks[0]), (height, width)))
    down = _between(images.transpose(1, 0, 2), *rows)
    small = _between(down.transpose(2, 1, 0), *columns).transpose(1, 2, 0)
    (below, known_below), (right, known_right) = _nearest(*rows, height, False), _nearest(*columns, width, True)
    return small, masks[:, below][:, :, right] & np.outer(known_below, known_right)


def bounds(mask: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last row, first and last column of a non-empty region [H, W]."""
    found = []
    for axis in (1, 0):
        places = np.flatnonzero(mask.any(axis))
        found.append((int(places[0]), int(places[-1])))
    return found[0], found[1]


def wavelets(images: np.ndarray) -> dict[str, np.ndarray]:
    """The four parts of the stationary wavelet transform of images [B, h, w] with coif1, by the names in WAVELETS."""
    parts = {}
    for right, along in _low_and_high(images.transpose(2, 0, 1)).items():
        for down, part in _low_and_high(along.transpose(2, 1, 0)).items():
            parts[f"wavelet-{right}{down}"] = part.transpose(1, 0, 2)
    return {name: parts[name] for name in WAVELETS}


def laplacians(images: np.ndarray, deviations: tuple[float, ...], spacing: float) -> dict[str, np.ndarray]:
    """The Laplacian of Gaussians of images [B, h, w], times the squared deviation, by name; float32, as in ITK.

    deviations, spacing: in mm, which are pixels of the image before halving (spacing 2).
    """
    found = {}
    for deviation in deviations:
        (smooth_rows, bent_rows), (smooth, bent) = (_gaussian(size, deviation / spacing) for size in images.shape[1:])
        total = bent_rows @ (images @ smooth.T) + smooth_rows @ (images @ bent.T)
        name = f"log-sigma-{str(float(deviation)).replace('.', '-')}-mm-3D"
        found[name] = total.astype(np.float32)
    return found


def _grid(low: int, high: int, size: int) -> tuple[int, int]:
    """First and last place of the halved grid for rows low to high of `size`."""
    first = max(0, int(np.floor((low - 0.5) / 2 - PAD)))
    last = min(int(np.ceil(size / 2)) - 1, int(np.ceil((high + 0.5) / 2 + PAD)))
    return first, last


def _nearest(first: int, last: int, size: int, interpolated: bool) -> tuple[np.ndarray, np.ndarray]:
    """The pixel nearest to each place of a grid, and whether there is one. Halfway it is the later one.

    interpolated: places are computed as ITK does along rows, between the two ends; rounding moves some to the previous
    pixel.
    """
    steps = np.arange(last - first + 1)
    along = steps / len(steps) * (2.0 * len(steps)) if interpolated else 2.0 * steps
    nearest = np.floor(2 * first + 0.5 + along + 0.5).astype(int)
    return np.minimum(nearest, size - 1), 2 * (first + steps) + 1 < size


def _between(lines: np.ndarray, first: int, last: int) -> np.ndarray:
    """Lines [L, ...] -> those halfway between 2 k and 2 k + 1, for k from first to last, by cubic B-splines.

    The lines are mirrored at their ends. Beyond the last line, values are 0.
    """
    count = len(lines)
    if count == 1:
        return np.repeat(lines, last - first + 1, axis=0)
    reflect = lambda k: (count - 1) - np.abs((count - 1) - k % (2 * count - 2))
    weights = POLE ** np.arange(HORIZON)
    coefficients = 6 * lines
    coefficients[0] = np.tensordot(weights, coefficients[reflect(np.arange(HORIZON))], axes=1)
    for k in range(1, count):
        coefficients[k] += POLE * coefficients[k - 1]
    coefficients[-1] = POLE / (POLE**2 - 1) * (coefficients[-1] + POLE * coefficients[-2])
    for k in range(count - 2, -1, -1):
        coefficients[k] = POLE * (coefficients[k + 1] - coefficients[k])
    places = 2 * np.arange(first, last + 1)
    outer = coefficients[reflect(places - 1)] + coefficients[reflect(places + 2)]
    found = (outer + 23 * (coefficients[reflect(places)] + coefficients[reflect(places + 1)])) / 48
    found[places + 1 >= count] = 0
    return found


def _low_and_high(lines: np.ndarray) -> dict[str, np.ndarray]:
    """Lines [L, ...] filtered by coif1 across lines, periodically; an odd number of lines repeats the first one."""
    count = len(lines)
    padded = lines if count % 2 == 0 else np.concatenate([lines, lines[:1]])
    around = padded[np.arange(-2, count + 3) % len(padded)]
    low = np.array(COIF1)
    high = low[::-1] * (-1.0) ** np.arange(1, len(low) + 1)
    last = len(low) - 1
    return {
        name: sum(tap * around[last - k : last - k + count] for k, tap in enumerate(taps))  # type: ignore[misc]
        for name, taps in (("L", low), ("H", high))
    }


@functools.lru_cache(maxsize=16)
def _gaussian(size: int, deviation: float) -> tuple[np.ndarray, np.ndarray]:
    """Smoothing by a Gaussian, and its second derivative times the squared deviation: [size, size] each.

    deviation: in pixels. Recursive filters of order 4, as in ITK; the last pixel continues beyond the ends.
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
    m = np.append(n[1:], 0) - d * n[0]  # for the backward half, which excludes the pixel itself
    identity = np.eye(size)
    forwards = _one_way(identity, n, d)
    behind = np.concatenate([identity[1:], identity[-1:]])  # for each pixel, the next one
    backwards = _one_way(behind[::-1], m, d)[::-1]
    return forwards + backwards


def _one_way(inputs: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """y[k] = sum_i n_i x[k - i] - sum_j d_j y[k - j] over rows, as if the first row had been repeated for ever."""
    outputs = np.zeros_like(inputs)
    before = inputs[0] * n.sum() / (1 + d.sum())
    for k in range(len(inputs)):
        outputs[k] = sum(n[i] * inputs[max(k - i, 0)] for i in range(4))
        outputs[k] -= sum(d[j] * (outputs[k - j - 1] if k > j else before) for j in range(4))
    return outputs
