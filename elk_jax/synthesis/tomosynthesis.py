"""Digital breast tomosynthesis of an object made of thin layers: projections, and slices from them.

The tube moves along the rows of the image (parallel to the chest wall) and exposes N projections at angles within
+-`half_angle`. In parallel beams a layer at height z appears shifted by z tan(angle), and slices are made by filtered
shift-and-add: each projection is filtered along the motion, shifted back for the slice's height z', and the mean is
taken (Niklason et al., Radiology 205:399, 1997; Dobbins and Godfrey, Phys Med Biol 48:R65, 2003; filter: Mertelmeier et
al., SPIE 6142, 2006). A point at z therefore appears in slice z' as N faint copies (ghosts) over
2 |z - z'| tan(half_angle). The filter causes the dark shadows beside dense objects. Magnification and scatter are
neglected.

Shifts are phases of the Fourier transform along the rows, so they may be fractions of a pixel, and slices are a matrix
product per frequency, computed only for the requested slices.

Shapes: H rows and W columns of the image, F frequencies, N projections, L layers of a stack, w columns of it, D slices.
Heights are in mm above the middle of the breast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LOW_FREQUENCIES = 0.25
"""Share of the lowest frequencies that the filter passes; without them, slices would show no grey tissue."""

FULL_PASS = 0.16
"""Cycles per mm along the motion from which the filter passes everything."""


@dataclass(frozen=True)
class Geometry:
    """Geometry of a scan: projections at equal steps within +-half_angle degrees, pixels of `pixel` mm."""

    pixel: float
    projections: int = 15
    half_angle: float = 7.5

    @property
    def slopes(self) -> np.ndarray:
        """Shift of a projection per height, [N] float64: the tangents of its angles."""
        return np.tan(np.radians(np.linspace(-self.half_angle, self.half_angle, self.projections)))


@dataclass(frozen=True)
class Stack:
    """Layers of an object that share their columns of the image."""

    images: np.ndarray  # [L, H, w] float32, attenuation
    heights: np.ndarray  # [L] mm
    column: int = 0  # of the image, where the layers begin


@dataclass(frozen=True)
class Scan:
    """Projections as spectra along the rows."""

    geometry: Geometry
    rows: int  # H
    padded: int  # rows with the margin, in which the last row passes into the first
    spectra: np.ndarray  # [F, N, W] complex64


def project(stacks: Sequence[Stack], geometry: Geometry, shape: tuple[int, int], reach: float) -> Scan:
    """All projections of the sum of `stacks`. shape: H, W. reach: the largest |height| of layers and slices, mm."""
    rows, columns = shape
    margin = int(np.ceil(2 * reach * np.abs(geometry.slopes).max() / geometry.pixel)) + 4
    padded = rows + 2 * margin
    scan = Scan(geometry, rows, padded, np.zeros((padded // 2 + 1, geometry.projections, columns), np.complex64))
    blend = (np.arange(1, padded - rows + 1, dtype=np.float32) / (padded - rows + 1))[:, None]
    for stack in stacks:
        first, last = stack.images[:, :1], stack.images[:, -1:]
        images = np.concatenate([stack.images, last + blend * (first - last)], axis=1)
        layers = np.fft.rfft(images, axis=1).transpose(1, 0, 2)  # [F, L, w]
        part = slice(stack.column, stack.column + images.shape[2])
        scan.spectra[:, :, part] += _shifts(scan, stack.heights).conj().transpose(0, 2, 1) @ layers
    return scan


def with_noise(scan: Scan, noise: np.ndarray) -> Scan:
    """The scan with noise [N, H + margin, W] added to its projections; `noise_shape` says how much to draw."""
    spectra = scan.spectra + np.fft.rfft(noise, axis=1).transpose(1, 0, 2)
    return Scan(scan.geometry, scan.rows, scan.padded, spectra)


def noise_shape(scan: Scan) -> tuple[int, int, int]:
    return scan.geometry.projections, scan.padded, scan.spectra.shape[2]


def projection(scan: Scan, number: int) -> np.ndarray:
    """One projection, [H, W] float32."""
    return np.fft.irfft(scan.spectra[:, number], scan.padded, axis=0)[: scan.rows]


def reconstruct(scan: Scan, heights: np.ndarray) -> np.ndarray:
    """The slices at `heights` [D], float32 [D, H, W], each in units of a projection."""
    frequency = np.fft.rfftfreq(scan.padded)
    ramp = np.minimum(frequency / scan.geometry.pixel / FULL_PASS, 1)
    gain = (LOW_FREQUENCIES + (1 - LOW_FREQUENCIES) * ramp) * np.cos(np.pi / 2 * frequency) ** 2  # apodised
    back = _shifts(scan, heights) * (gain / scan.geometry.projections).astype(np.float32)[:, None, None]
    # One by one: a product of several slices is rounded differently, and a slice must not depend on the others.
    spectra = [np.matmul(back[:, k : k + 1], scan.spectra)[:, 0] for k in range(len(heights))]
    return np.stack([np.fft.irfft(spectrum, scan.padded, axis=0)[: scan.rows] for spectrum in spectra])


def _shifts(scan: Scan, heights: np.ndarray) -> np.ndarray:
    """Phases that move a projection back to the layers at `heights`, [F, L, N] complex64."""
    moved = np.multiply.outer(np.asarray(heights, np.float64), scan.geometry.slopes) / scan.geometry.pixel
    return np.exp(2j * np.pi * np.multiply.outer(np.fft.rfftfreq(scan.padded), moved)).astype(np.complex64)
