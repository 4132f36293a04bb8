"""What sets of small images look like: their spectrum, and a short descriptor of each.

Shapes: N images, S side in pixels (even), F numbers of a descriptor. Images are [N, S, S], grey values in [0, 1].
"""

from __future__ import annotations

import numpy as np

from elk_jax.evaluation import frechet

COARSE = 8
"""Side of the coarse picture in a descriptor."""
LEAST_POWER = 1e-12
LEAST_DEVIATION = 1e-6


def power(images: np.ndarray) -> np.ndarray:
    """Power [N, S, S] of the waves of each image, without its mean, as shares of their sum; 0 for a uniform image.

    The wave of k rows and l columns stands at [k, l]; that of two pixels along both axes, a checkerboard, at
    [S/2, S/2].
    """
    images = np.asarray(images, np.float64)
    found = np.abs(np.fft.fft2(images - images.mean(axis=(1, 2), keepdims=True))) ** 2
    total = found.sum(axis=(1, 2), keepdims=True)
    return np.divide(found, total, out=np.zeros_like(found), where=total > LEAST_POWER)


def checkerboard(images: np.ndarray) -> np.ndarray:
    """Share [N] of an image's power in the wave of two pixels along both axes, the diagonal Nyquist frequency."""
    half = images.shape[1] // 2
    return power(images)[:, half, half]


def fine_share(images: np.ndarray) -> np.ndarray:
    """Share [N] of an image's power in waves shorter than four pixels."""
    return power(images)[:, _frequency(images.shape[1]) > 0.25].sum(axis=1)


def descriptors(images: np.ndarray) -> np.ndarray:
    """[N, F]: the image in 8 x 8 fields, and logarithms of its power in octaves of the wave length, times its variance.

    They see where an image is bright, how strong its contrast is and how fine; S is a multiple of 8.
    """
    count, size = images.shape[:2]
    field = size // COARSE
    coarse = images.reshape(count, COARSE, field, COARSE, field).mean(axis=(2, 4)).reshape(count, -1)
    spectrum = power(images) * images.astype(np.float64).var(axis=(1, 2))[:, None, None]
    octave = np.clip(np.floor(np.log2(np.maximum(_frequency(size), 0.5 / size) * size)), 0, None).astype(int)
    bands = [spectrum[:, octave == band].sum(axis=1) for band in range(octave.max() + 1)]
    return np.concatenate([coarse, np.log(np.stack(bands, axis=1) + LEAST_POWER)], axis=1)


def distance(real: np.ndarray, made: np.ndarray) -> float:
    """Frechet distance of the descriptors of two sets of images, each number in deviations of the real ones, over F.

    UserError for fewer than two images.
    """
    first, second = descriptors(real), descriptors(made)
    mean, deviation = first.mean(0), np.maximum(first.std(0), LEAST_DEVIATION)
    scaled = ((one - mean) / deviation for one in (first, second))
    return frechet.frechet_distance(*scaled) / first.shape[1]


def _frequency(size: int) -> np.ndarray:
    """[S, S]: waves per pixel of each wave, along its direction."""
    along = np.fft.fftfreq(size)
    return np.hypot(along[:, None], along[None])
