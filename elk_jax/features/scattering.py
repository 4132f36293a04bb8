"""Wavelet scattering of order 2 (Bruna and Mallat 2013), its windows, and its averages over the square's symmetries.

Shapes: B batch, H W size of an image (even), J scales (2 or more), L orientations (even), T pairs of scales
(j1 < j2, J (J - 1) / 2), R rows and C columns of windows, F features.

An order is the modulus of a convolution with Morlet wavelets; the first order convolves the image, the second convolves
the first. Their averages under Gaussian windows are the coefficients. A window can be at any point of the image, since
it is evaluated in the Fourier domain; windows 2^J pixels apart, starting at the first pixel, are the usual output of a
scattering transform. Filters, padding and sampling are those of kymatio's `Scattering2D`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.errors import UserError

ALIASES = range(-2, 3)
"""Number of copies of a filter's spectrum, 2 pi apart, that are summed for a sampled filter."""
SLANT = 4.0
"""The width of a wavelet across its direction, relative to that along it, is L / SLANT."""


class Coefficients(NamedTuple):
    """Scattering coefficients under windows: zeroth [..., R, C], first [..., J, L, R, C], second [..., T, L, L, R, C].

    The axes of `second` are the pair of scales, the orientation of the first wavelet, that of the second.
    """

    zeroth: jax.Array
    first: jax.Array
    second: jax.Array


class Filters(NamedTuple):
    """Spectra on the grid of a padded image: wavelets [J, L, H, W] and window [H, W], float32, real."""

    wavelets: jax.Array
    window: jax.Array


def pairs_of_scales(scales: int) -> list[tuple[int, int]]:
    """(j1, j2) of the T pairs of scales of the second order: j1 < j2, since coarser first waves carry nothing."""
    return [(j1, j2) for j1 in range(scales) for j2 in range(j1 + 1, scales)]


def padded_size(size: int, scales: int) -> int:
    """Rows or columns of an image of even `size` after adding a margin of at least about 2^J / 2 px on both sides."""
    return (size // 2**scales + 2) * 2**scales


def check_size(shape: tuple[int, int], scales: int, where: str = "") -> None:
    """UserError unless images of this height and width can be scattered: even, and larger than the margin."""
    for size in shape:
        margin = (padded_size(size, scales) - size) // 2
        if size % 2 or margin >= size:
            raise UserError(
                f"images of {shape[0]} x {shape[1]} px cannot be scattered over {scales} scales",
                where=where,
                todo=f"make both sides even and at least {2**scales} px, or use fewer scales",
            )


@functools.lru_cache(maxsize=4)
def filters(height: int, width: int, scales: int, orientations: int) -> Filters:
    """The filters for images of height x width, which are padded to `padded_size`.

    Wavelets of scale j are Morlet: a Gaussian with deviation 0.8 2^j along the wave, times a wave with frequency
    3/4 pi / 2^j, minus the multiple of the Gaussian that makes the mean 0. Orientation l is (L / 2 - 1 - l) pi / L,
    from the axis of the rows to that of the columns. The window is a Gaussian with deviation 0.8 2^(J - 1).
    """
    rows, columns = (2 * np.pi * np.fft.fftfreq(padded_size(size, scales)) for size in (height, width))
    wavelets = [
        [_morlet(rows, columns, 0.8 * 2**j, 0.75 * np.pi / 2**j, _angle(index, orientations), SLANT / orientations)
         for index in range(orientations)]
        for j in range(scales)
    ]  # fmt: skip
    window = _gaussian(rows, columns, 0.8 * 2 ** (scales - 1), 0.0, 0.0, 1.0)
    return Filters(np.asarray(wavelets, np.float32), np.asarray(window, np.float32))  # type: ignore[arg-type]


def coefficients(
    images: jax.Array,
    bank: Filters,
    rows: jax.Array | np.ndarray,
    columns: jax.Array | np.ndarray,
    scales: int,
    origin: float = -0.5,
) -> Coefficients:
    """Coefficients of images [B, H, W] under the windows at `rows` [R] x `columns` [C], in pixels, any real numbers.

    The size must be allowed by `check_size`, and `bank` must be for this size. Coarse maps have every 2^j-th pixel,
    counted from `origin`: from half a pixel before the first, grids of any coarseness are mirrored into themselves, so
    that mirroring the image permutes its coefficients exactly. kymatio counts from 0.
    """
    height, width = bank.window.shape
    margins = [((size - length) // 2,) * 2 for size, length in zip((height, width), images.shape[1:])]
    padded = jnp.pad(images, [(0, 0), *margins], mode="reflect")
    at_rows, at_columns = rows + margins[0][0] - origin, columns + margins[1][0] - origin

    def windows(spectrum: jax.Array, j: int) -> jax.Array:
        """Spectra [..., H/2^j, W/2^j] of every 2^j-th pixel -> [..., R, C], the averages under the windows."""
        return _at_points(spectrum * _low(bank.window, j), at_rows / 2**j, at_columns / 2**j)

    spectrum = jnp.fft.fft2(padded) * _shift(height, origin)[:, None] * _shift(width, origin)
    first, second = [], []
    for j1 in range(scales):
        waves = _wave_moduli(spectrum[:, None], bank.wavelets[j1], j1)
        first.append(windows(waves, j1))
        for j2 in range(j1 + 1, scales):
            second.append(windows(_wave_moduli(waves[:, :, None], _low(bank.wavelets[j2], j1), j2 - j1), j2))
    return Coefficients(windows(spectrum, 0), jnp.stack(first, axis=1), jnp.stack(second, axis=1))


def symmetric_views(found: Coefficients) -> list[Coefficients]:
    """The coefficients of all eight mirrored and rotated versions of an image, from those of the image.

    Windows must form a square grid; those of the result are the same grid about the mirrored centre. The eight
    symmetries of the square only permute orientations and windows.
    """
    views = []
    for transposed in (False, True):
        for mirrored_rows in (False, True):
            for mirrored_columns in (False, True):
                view = _transposed(found) if transposed else found
                view = _mirrored(view, -2) if mirrored_rows else view
                views.append(_mirrored(view, -1) if mirrored_columns else view)
    return views


def invariants(found: Coefficients) -> jax.Array:
    """Means [..., F] of coefficients over the eight symmetries of the square, each distinct one once.

    Images that differ by mirroring or quarter turns, together with the centre of their windows, have the same means.
    """
    members = _orbits(found.first.shape[-4], found.first.shape[-3], found.zeroth.shape[-1])
    return flat(found)[..., members].mean(-1)


def flat(found: Coefficients) -> jax.Array:
    """All coefficients along one axis [..., F]: zeroth, first, second."""
    lead = found.zeroth.shape[:-2]
    return jnp.concatenate([part.reshape(*lead, -1) for part in found], axis=-1)


@functools.lru_cache(maxsize=8)
def _orbits(scales: int, orientations: int, windows: int) -> np.ndarray:
    """[F, 8]: the positions in `flat` that symmetries exchange with one another, each set once."""
    shapes = ((), (scales, orientations), (len(pairs_of_scales(scales)), orientations, orientations))
    sizes = [int(np.prod(shape)) * windows**2 for shape in shapes]
    starts = np.cumsum([0, *sizes[:-1]])
    places = Coefficients(
        *(
            start + np.arange(size).reshape(*shape, windows, windows)
            for start, size, shape in zip(starts, sizes, shapes)
        )
    )
    exchanged = np.stack([np.concatenate([part.ravel() for part in view]) for view in symmetric_views(places)], axis=-1)
    return exchanged[np.unique(exchanged.min(-1))]


def _mirrored(found: Coefficients, axis: int) -> Coefficients:
    """An image mirrored along rows (-2) or columns (-1): directions change their sign."""
    orientations = found.first.shape[-3]
    order = (orientations - 2 - np.arange(orientations)) % orientations
    return Coefficients(*(_reordered(part, order, number).take(np.arange(part.shape[axis])[::-1], axis)
                          for number, part in enumerate(found)))  # fmt: skip


def _transposed(found: Coefficients) -> Coefficients:
    """An image with rows and columns exchanged: directions are measured from the other axis."""
    orientations = found.first.shape[-3]
    order = (orientations // 2 - 2 - np.arange(orientations)) % orientations
    return Coefficients(*(_reordered(part, order, number).swapaxes(-2, -1) for number, part in enumerate(found)))


def _reordered(part: jax.Array, order: np.ndarray, count: int) -> jax.Array:
    """The `count` axes of orientations before the windows, each in the given order."""
    for axis in range(-2 - count, -2):
        part = part.take(order, axis)
    return part


def _shift(size: int, origin: float) -> np.ndarray:
    """Factors [size] for a spectrum that move the point `origin` to the first pixel. Real at the highest frequency."""
    factors = np.exp(2j * np.pi * np.fft.fftfreq(size) * origin)
    factors[size // 2] = factors[size // 2].real
    return factors.astype(np.complex64)


def _wave_moduli(spectra: jax.Array, wavelets: jax.Array, steps: int) -> jax.Array:
    """Spectra of |x * wavelet|, of every 2^steps-th pixel: [..., 1, h, w], [L, h, w] -> [..., L, h/2^s, w/2^s]."""
    return jnp.fft.fft2(jnp.abs(jnp.fft.ifft2(_every(spectra * wavelets, steps))))


def _every(spectrum: jax.Array, steps: int) -> jax.Array:
    """The spectrum of every 2^steps-th pixel: [..., h, w] -> [..., h/2^steps, w/2^steps], with aliasing."""
    k = 2**steps
    *lead, h, w = spectrum.shape
    return spectrum.reshape(*lead, k, h // k, k, w // k).mean(axis=(-4, -2))


def _low(spectrum: jax.Array, steps: int) -> jax.Array:
    """The frequencies of a grid 2^steps times as coarse: [..., h, w] -> [..., h/2^steps, w/2^steps]."""
    for axis in (-2, -1):
        half = spectrum.shape[axis] // 2 ** (steps + 1)
        ends = (slice(0, half), slice(spectrum.shape[axis] - half, None))
        spectrum = jnp.concatenate(
            [spectrum[(..., end) if axis == -1 else (..., end, slice(None))] for end in ends], axis
        )
    return spectrum


def _at_points(spectrum: jax.Array, rows: jax.Array | np.ndarray, columns: jax.Array | np.ndarray) -> jax.Array:
    """Spectra [..., h, w] of real maps -> [..., R, C], the maps at points between their pixels."""
    h, w = spectrum.shape[-2:]
    waves_of_rows = jnp.exp(2j * jnp.pi * jnp.outer(jnp.asarray(rows), jnp.fft.fftfreq(h))) / h
    waves_of_columns = jnp.exp(2j * jnp.pi * jnp.outer(jnp.fft.fftfreq(w), jnp.asarray(columns))) / w
    return (waves_of_rows @ (spectrum @ waves_of_columns)).real.astype(spectrum.real.dtype)


def _angle(index: int, orientations: int) -> float:
    """Direction of orientation `index`, in radians from the rows' axis to the columns'."""
    return (orientations // 2 - 1 - index) * np.pi / orientations


def _gaussian(rows: np.ndarray, columns: np.ndarray, sigma: float, frequency: float, angle: float, slant: float):
    """Spectrum [H, W] at angular frequencies rows [H] x columns [W] of a sampled Gaussian of sum 1 times a wave.

    Its deviation is sigma along the wave and sigma / slant across it.
    """
    total = np.zeros((len(rows), len(columns)))
    for shift_rows in ALIASES:
        for shift_columns in ALIASES:
            y, x = (rows + 2 * np.pi * shift_rows)[:, None], columns + 2 * np.pi * shift_columns
            along = y * np.cos(angle) + x * np.sin(angle) - frequency
            across = (x * np.cos(angle) - y * np.sin(angle)) / slant
            total += np.exp(-0.5 * sigma**2 * (along**2 + across**2))
    return total


def _morlet(rows: np.ndarray, columns: np.ndarray, sigma: float, frequency: float, angle: float, slant: float):
    """Spectrum [H, W] of a Gaussian times a wave, minus the multiple of the Gaussian that makes the mean 0."""
    wave = _gaussian(rows, columns, sigma, frequency, angle, slant)
    envelope = _gaussian(rows, columns, sigma, 0.0, angle, slant)
    return wave - wave[0, 0] / envelope[0, 0] * envelope
