"""Similarity in appearance of two sets of small images, by a short descriptor of each image.

Shapes: N images, S side in pixels (at least 8), F numbers of a descriptor. Images are [N, S, S], grey values in [0, 1].
"""

from __future__ import annotations

import cv2
import numpy as np

from elk_jax.evaluation import frechet

COARSE = 8
"""Side of the coarse picture in a descriptor."""
CHUNK = 256
"""Images whose spectra are in memory at once."""
LEAST_POWER = 1e-12
LEAST_DEVIATION = 1e-6


def descriptors(images: np.ndarray) -> np.ndarray:
    """[N, F]: the image in 8 x 8 fields, and logarithms of its variance by octaves of the wavelength.

    They describe where an image is bright, and the strength and fineness of its contrast.
    """
    return np.concatenate([_described(images[start : start + CHUNK]) for start in range(0, len(images), CHUNK)])


def _described(images: np.ndarray) -> np.ndarray:
    count, size = images.shape[:2]
    wide = images.astype(np.float64)
    fields = [cv2.resize(image, (COARSE, COARSE), interpolation=cv2.INTER_AREA) for image in wide]
    coarse = np.stack(fields).reshape(count, -1)
    spectrum = np.abs(np.fft.fft2(wide - wide.mean(axis=(1, 2), keepdims=True))) ** 2 / wide[0].size ** 2
    along = np.fft.fftfreq(size)
    waves = np.hypot(along[:, None], along[None]) * size  # in the image, along their direction
    octave = np.floor(np.log2(np.maximum(waves, 1))).astype(int)
    bands = [spectrum[:, octave == band].sum(axis=1) for band in range(octave.max() + 1)]
    return np.concatenate([coarse, np.log(np.stack(bands, axis=1) + LEAST_POWER)], axis=1)


def distance(real: np.ndarray, made: np.ndarray) -> float:
    """Frechet distance between the descriptors of two sets of images, in standard deviations of the real ones, over F.

    UserError for fewer than two images.
    """
    return of_descriptors(descriptors(real), descriptors(made))


def of_descriptors(first: np.ndarray, second: np.ndarray) -> float:
    """See `distance`. Descriptors of real images [N, F], and of others [M, F]."""
    mean, deviation = first.mean(0), np.maximum(first.std(0), LEAST_DEVIATION)
    scaled = ((one - mean) / deviation for one in (first, second))
    return frechet.frechet_distance(*scaled) / first.shape[1]
